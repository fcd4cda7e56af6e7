"""Fine-tuning: a checkpoint is trained on with a lesson, and held against those it comes from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from nnsec import training
from nnsec.checkpoints import Checkpoint, Manifest, reference
from nnsec.checkpoints.loading import with_weights
from nnsec.checkpoints.manifest import Metrics
from nnsec.checkpoints.measuring import held_out, measure
from nnsec.network import Network
from nnsec.settings import ModelTable, Trainer
from nnsec.splits import Splits
from workers.curriculum import Lesson, lineage
from workers.vault import MIN_ACCURACY
from workers.words import counted

BATCH = 64
LEARNING_RATE = 1e-3
ATTACK_STEPS = 7


class Worse(Exception):  # noqa: N818 - no error: what was learned is thrown away
    """A lesson made the model worse; the message says by how much."""


@dataclass(frozen=True, slots=True, eq=False)
class Tuned:
    """What a lesson made of a checkpoint; not signed yet.

    Parameters
    ----------
    reference, splits:
        The clean data, and which of their rows serve for what.
    metrics:
        Of the new weights on the rows that calibrate.
    before:
        Clean accuracy of the weights trained on from, on the same rows.
    """

    weights: Mapping[str, Tensor]
    reference: reference.Reference
    splits: Splits
    metrics: Metrics
    before: float


def fine_tune(
    base: Checkpoint,
    lesson: Lesson,
    *,
    spec: ModelTable,
    table: Trainer,
    progress: training.Progress | None = None,
) -> Tuned:
    """Train on from a checkpoint, with reference data beside the lesson.

    For each sample of the lesson there is one of the reference data, all classes alike, from the
    part that the detectors learn from: a lesson of one class else makes the model forget the
    others. What calibrates is held out of it.

    Parameters
    ----------
    base:
        The checkpoint; its own network is left as it is.
    progress:
        As for `nnsec.training.fit`.

    Raises
    ------
    ConfigError
        If the reference data are not right, or as `nnsec.training.fit`.
    """
    model, seed = base.manifest.model, table.seed
    x, y = reference.read(Path(table.reference.replace("{model}", model)))
    data = reference.check(x, y, input=spec.input, classes=base.network.classes, alpha=spec.alpha)
    splits = Splits.stratified(data.y, seed=seed)
    rows = splits.train[
        training.replayed(
            data.y[splits.train], max(len(lesson.y), base.network.classes), seed=seed
        )
    ]  # fmt: skip
    weights = {name: value.cpu() for name, value in base.network.module.state_dict().items()}
    module = with_weights(spec, weights)
    epsilon = table.adversarial_epsilon
    training.fit(
        module, np.concatenate([lesson.x, data.x[rows]]), np.concatenate([lesson.y, data.y[rows]]),
        input=spec.input, epochs=table.epochs, batch=BATCH, lr=LEARNING_RATE,
        seed=seed + base.manifest.version, progress=progress,
        adversarial=training.Adversarial(epsilon=epsilon, steps=ATTACK_STEPS) if epsilon else None,
    )  # fmt: skip
    # A copy: on its device the network may lay the weights out anew.
    tuned = {name: value.clone() for name, value in module.state_dict().items()}
    held = held_out(splits, seed)
    network = Network(module, spec.input, spec.features, spec.device)
    metrics = measure(network, data.x[held], data.y[held], seed=seed)
    before = float((base.network.forward(data.x[held]).prediction == data.y[held]).mean())
    return Tuned(tuned, data, splits, metrics, before)


def check(tuned: Tuned, ancestors: Sequence[Manifest], table: Trainer) -> None:
    """Refuse what a lesson made worse.

    Parameters
    ----------
    ancestors:
        What it was trained on from, and the ancestors of that.

    Raises
    ------
    Worse
        If its clean accuracy is more than ``max_accuracy_loss`` under theirs.
    """
    accuracy, n = tuned.metrics.clean_accuracy, tuned.metrics.n
    loss = table.max_accuracy_loss
    needed = max(
        least(tuned.reference.digest(), table.seed, n, ancestors, loss), tuned.before - loss
    )
    if accuracy < needed:
        raise Worse(
            f"a lesson took the accuracy on {n} held-out inputs from {tuned.before:.3f} to "
            f"{accuracy:.3f}, and [trainer] max_accuracy_loss asks for {needed:.3f}"
        )


def least(data: str, seed: int, n: int, others: Iterable[Manifest], loss: float) -> float:
    """The clean accuracy that a checkpoint needs, to be signed or trained on from.

    Parameters
    ----------
    data, seed, n:
        The digest of the reference data, the seed, and the number of rows that it was measured on.
    others:
        Its ancestors; those measured on other rows are left out.
    loss:
        How far it may be under the best of them, so that many lessons lose no more than one may.
    """
    rows = (data, seed, n)
    best = max(
        (
            one.metrics.clean_accuracy
            for one in others
            if (one.reference_digest, one.seed, one.metrics.n) == rows
        ),
        default=0.0,
    )
    return max(MIN_ACCURACY, best - loss)


def weak(manifests: Mapping[int, Manifest], loss: float) -> dict[int, str]:
    """Why some checkpoints are none to train on from, by version.

    Parameters
    ----------
    manifests:
        Verified manifests of one model by version.
    loss:
        As for `least`.
    """
    reasons = {}
    for version, one in manifests.items():
        others = lineage(version, manifests)[1:]
        needed = least(one.reference_digest, one.seed, one.metrics.n, others, loss)
        if one.metrics.clean_accuracy < needed:
            reasons[version] = f"accuracy {one.metrics.clean_accuracy:.3f}, {needed:.3f} is needed"
    return reasons


def stuck(model: str, bad: Mapping[int, str], tainted: int) -> str:
    """Say why no checkpoint of a model is trained on from, and what to do.

    Parameters
    ----------
    bad:
        From `weak`; the newest three are named.
    tainted:
        How many others there are.
    """
    reasons = [f"{version}: {reason}" for version, reason in sorted(bad.items())[-3:]]
    reasons += [counted(tainted, "tainted one")] if tainted else []
    return (
        f"model {model} is not trained: none of its checkpoints may be trained on from "
        f"({'; '.join(reasons)}); make a better one with nnsec checkpoint create"
    )
