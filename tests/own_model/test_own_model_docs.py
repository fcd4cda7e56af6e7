"""``docs/own-model.md``: its blocks are run, its figures computed, its errors made."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnsec.adapters.registry import Registry
from nnsec.calibration import Calibration
from nnsec.checkpoints import create
from nnsec.checkpoints.reference import minimum
from nnsec.errors import ConfigError
from nnsec.settings import ModelTable
from tests.own_model.conftest import Own

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "own-model.md").read_text("utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_every_block_runs_in_an_empty_folder(tmp_path: Path) -> None:
    """Files are written under the names in their first lines, and commands run as they stand."""
    done = []
    for kind, text in BLOCK.findall(DOCS):
        if kind == "console":
            lines = [line.removeprefix("$ ") for line in text.splitlines()]
            found = subprocess.run(
                ["/bin/sh", "-ec", "\n".join(lines)], cwd=tmp_path, capture_output=True, text=True,
                timeout=100, check=False,
                env=os.environ | {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
                                  "COLUMNS": "200"},
            )  # fmt: skip
            assert found.returncode == 0, found.stderr
            done += lines
            for words in ("tumour/1", "clean inputs flagged", "verified", "no more than promised"):
                assert words in found.stdout
        else:
            path = tmp_path / text.splitlines()[0].removeprefix("# ")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
            done.append(path.name)
    assert done[:3] == ["networks.py", "nnsec.toml", "train.py"]
    assert len(done) == 10
    assert (tmp_path / ".nnsec" / "registry" / "tumour" / "1" / "model.sig").is_file()


def test_the_figures_are_those_of_the_code() -> None:
    """Both tables are computed again."""
    rows = re.findall(
        r"^\| (\d+) \| ([\d.]+) \| ([\d.]+) to ([\d.]+) % \| ([\d.]+) % \|$", DOCS, re.MULTILINE
    )
    assert len(rows) == 5
    for n, smallest, low, high, share in rows:
        found = Calibration.fit(np.arange(int(n)) * 1.0, np.zeros(int(n), int), alpha=0.01)
        promise = found.describe()
        assert (f"{promise.smallest_p:.2g}", f"{100 * promise.smallest_attack_share:.1f}") == (
            smallest, share,
        )  # fmt: skip
        assert [f"{100 * rate:.2f}" for rate in promise.false_positive_rate] == [low, high]
    alphas, needed = re.findall(r"^\| (?:alpha|reference inputs) \| (.*) \|$", DOCS, re.MULTILINE)
    for alpha, n in zip(alphas.split(" | "), needed.split(" | "), strict=True):
        assert minimum(float(alpha)) == int(n)


WRONG = {
    said: what
    for what, said in re.findall(r"^\| (.*) \| `(.*)` \|$", DOCS, re.MULTILINE)
    if "package.module:function`" not in what
} | {"write it as package.module:function": "the name is no function"}


def _spec(**changes: Any) -> Callable[[Own], dict[str, Any]]:
    return lambda own: {"spec": ModelTable.model_validate(own.table | changes)}


def _architecture(name: str) -> Callable[[Own], dict[str, Any]]:
    return _spec(architecture=name)


def _weights(own: Own) -> dict[str, Any]:
    return {"weights": {"0.weight": own.weights["0.weight"]}}


def _nan(own: Own) -> dict[str, Any]:
    return {"weights": dict(own.weights) | {"0.running_var": own.weights["0.running_var"] * 0 - 1}}


MISTAKES: Mapping[str, Callable[[Own], dict[str, Any]]] = {
    "write it as package.module:function": _architecture("acme.networks"),
    "cannot be imported": _architecture("acme.nowhere:two_layers"),
    "made an error": _architecture("acme.networks:Standardise"),
    "no torch module": _architecture("acme.networks:broken"),
    "the weights do not fit": _weights,
    "the model does not run on inputs of shape": lambda own: _spec(
        input=own.table["input"] | {"shape": [29]}
    )(own),
    "logits of shape [batch, classes]": lambda own: (
        _architecture("acme.networks:regression")(own) | {"weights": {}}
    ),
    "gives NaN or infinity": _nan,
    "convert the data with x.astype": lambda own: {"x": own.x.astype(np.float64)},
    "reshape the data, or change input.shape": lambda own: {"x": own.x.reshape(-1, 5, 6)},
    "outside input.range": lambda own: {"x": own.x * np.float32(2)},
    "correct y or the architecture": lambda own: {"y": own.y + 1},
    "reference inputs; at least": lambda own: {"x": own.x[:90], "y": own.y[:90]},
    "differ from each other": lambda own: {
        "x": np.concatenate([own.x[:100]] * 3), "y": np.concatenate([own.y[:100]] * 3)
    },
    "the model has no submodule": _spec(features="head"),
}  # fmt: skip


def test_every_mistake_in_the_docs_is_made_here() -> None:
    """No row of the table goes untested, and no message is missing from it."""
    assert WRONG.keys() == MISTAKES.keys()


@pytest.mark.parametrize("said", MISTAKES)
def test_a_mistake_is_told_in_the_words_of_the_docs(
    owns: Mapping[str, Own], tmp_path: Path, said: str
) -> None:
    """Before anything is signed: the registry stays empty."""
    own, registry = owns["vectors"], Registry(str(tmp_path / "r"))
    given = {"model": "m", "spec": own.spec, "weights": own.weights, "x": own.x, "y": own.y,
             "key": own.key, "now": own.made.manifest.created}  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        create(registry, **(given | MISTAKES[said](own)))
    assert said in str(caught.value)
    assert registry.models() == ()
