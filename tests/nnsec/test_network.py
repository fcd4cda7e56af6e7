from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nnsec.checkpoints.tensors import dump_tensors, load_tensors
from nnsec.errors import ConfigError
from nnsec.network import Network
from nnsec.settings import Input

GREY = Input(shape=(1, 8, 8), range=(0, 16))
COLOUR = Input(shape=(3, 16, 16))
VECTOR = Input(shape=(6,), dtype="float32", range=(-2.0, 2.0))
ODD = Input(shape=(5,), dtype="float32", range=(-2.0, 2.0))


class Residual(nn.Module):
    """Normalisation of its own, BatchNorm, dropout, a sum, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.block = nn.Conv2d(8, 8, 3, padding=1)
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.5))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x - self.mean)).relu()
        x = self.drop((x + self.block(x)).relu())
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def _convolutional() -> nn.Module:
    """No linear layer at all."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


def _draw(spec: Input, n: int) -> Any:
    rng = np.random.default_rng(0)
    return rng.uniform(*spec.range, (n, *spec.shape)).astype(spec.dtype)


def _made(name: str) -> tuple[Network, Any]:
    torch.manual_seed(0)
    module, spec = {
        "residual": (Residual(), COLOUR),
        "convolutional": (_convolutional(), GREY),
        "vector": (nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)), VECTOR),
        "bare": (nn.Flatten(), VECTOR),
    }[name]
    return Network(module, spec, device="cpu"), _draw(spec, 50)


@pytest.mark.parametrize("name", ["residual", "convolutional", "vector", "bare"])
def test_a_row_does_not_depend_on_its_batch(name: str) -> None:
    """In eval mode and in equal tiles: cut anyhow, figures are the same to the last bit."""
    network, x = _made(name)
    whole = network.forward(x)
    assert len(whole) == 50
    for cut in (1, 7, 32, 33):
        parts = [network.forward(x[k : k + cut]) for k in range(0, 50, cut)]
        assert torch.equal(torch.cat([part.logits for part in parts]), whole.logits)
        assert torch.equal(torch.cat([part.features for part in parts]), whole.features)


def test_large_images_go_through_in_the_order_that_is_fastest() -> None:
    """With the colours of a pixel side by side; what comes out is the same but for rounding."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(4 * 6 * 6, 3),
    )  # fmt: skip
    spec = Input(shape=(1, 16, 16), dtype="uint8", range=(0, 255))
    x = _draw(spec, 50)
    with torch.inference_mode():
        plain = module(torch.from_numpy(x).float() / 255)
    network = Network(module, spec, device="cpu")
    assert module[2].weight.is_contiguous(memory_format=torch.channels_last)
    found = network.forward(x)
    assert torch.allclose(found.logits, plain, atol=1e-5)
    singly = torch.cat([network.forward(row[None]).logits for row in x])
    assert torch.equal(singly, found.logits)
    again = load_tensors("weights", dump_tensors(module.state_dict()))
    assert all(torch.equal(again[name], array) for name, array in module.state_dict().items())


def test_a_model_of_volumes_is_taken_too() -> None:
    """The order of weights is one of images; others keep theirs."""
    module = nn.Sequential(nn.Conv3d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 6**3, 3))
    spec = Input(shape=(1, 8, 8, 8))
    network = Network(module, spec, device="cpu")
    assert len(network.forward(_draw(spec, 5))) == 5


def test_odd_widths_move_the_last_digit_at_most() -> None:
    """MKL computes a few small layers differently by the row's place; a float's precision stays."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    network, x = Network(module, ODD, device="cpu"), _draw(ODD, 50)
    singly = torch.cat([network.forward(row[None]).logits for row in x])
    assert torch.allclose(singly, network.forward(x).logits, rtol=1e-5, atol=1e-6)


def test_features_are_what_goes_into_the_head() -> None:
    """The last linear layer's input; applying the head to it gives the logits."""
    network, x = _made("residual")
    found = network.forward(x)
    assert (network.classes, network.width) == (4, 8)
    assert torch.allclose(network.module.head(found.features), found.logits, atol=1e-6)  # type: ignore[operator]
    network, x = _made("vector")
    found = network.forward(x)
    assert torch.allclose(network.module[2](found.features), found.logits, atol=1e-6)  # type: ignore[index]


def test_without_a_head_features_are_averaged_over_space() -> None:
    """The last layer with a weight matrix counts, and without one the logits do."""
    network, x = _made("convolutional")
    found = network.forward(x)
    wanted = network.module[:2](network.scale(x)).mean((2, 3))  # type: ignore[index]
    assert network.width == 6
    assert torch.allclose(found.features, wanted, atol=1e-6)
    bare, x = _made("bare")
    assert torch.equal(bare.forward(x).features, bare.forward(x).logits)


def test_features_may_be_named() -> None:
    """The named submodule's input; a wrong name says the nearest."""
    network = Network(Residual(), COLOUR, features="block", device="cpu")
    assert network.width == 8
    with pytest.raises(ConfigError, match="did you mean 'block'"):
        Network(Residual(), COLOUR, features="blok", device="cpu")
    with pytest.raises(ConfigError, match="no submodule 'a'"):
        Network(nn.Flatten(), VECTOR, features="a", device="cpu")


def test_inputs_are_scaled_to_the_unit_range() -> None:
    """Both ends of the range, in both wire types."""
    network, _ = _made("vector")
    assert network.scale(np.array([[-2, 0, 1, 2, 2, 2]], np.float32)).tolist() == [
        [0.0, 0.5, 0.75, 1.0, 1.0, 1.0]
    ]
    grey, _ = _made("convolutional")
    assert grey.scale(np.full((1, 1, 8, 8), 16, np.uint8)).unique().tolist() == [1.0]


def test_what_is_an_image() -> None:
    """Two or three axes with at least four pixels a side."""
    shapes = {(8, 8): True, (3, 16, 16): True, (12,): False, (2, 3): False, (1, 2, 9): False}
    for shape, image in shapes.items():
        module = nn.Flatten()
        assert Network(module, Input(shape=shape), device="cpu").image is image


def test_rows_are_picked_and_figures_shared() -> None:
    """A part of a batch has its own figures; a shared one is computed once."""
    network, x = _made("vector")
    whole = network.forward(x)
    picked = whole[np.array([3, 1])]
    assert torch.equal(picked.logits, whole.logits[[3, 1]])
    assert len(whole[2:5]) == 3
    calls: list[int] = []
    assert [whole.once("k", lambda: calls.append(1) or 7) for _ in range(2)] == [7, 7]
    assert calls == [1]
    assert np.array_equal(whole.prediction, whole.logits.argmax(1).numpy())
    assert whole.embedding.dtype == np.float64


class Strange(nn.Module):
    """A head that is called with a keyword, and not the last one of equal rank."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(input=x)
        return out


def test_a_head_called_by_keyword_leaves_the_logits() -> None:
    """What cannot be seen is done without."""
    network = Network(Strange(), VECTOR, device="cpu")
    found = network.forward(_draw(VECTOR, 2))
    assert torch.equal(found.features, found.logits)


@pytest.mark.parametrize(
    ("module", "spec", "word"),
    [
        (nn.Linear(4, 2), VECTOR, r"inputs of shape \[6\]; correct input.shape"),
        (nn.Linear(6, 1), VECTOR, r"two classes or more"),
        (nn.Conv2d(1, 3, 3), GREY, r"logits of shape \[batch, classes\]"),
    ],
)
def test_a_model_that_does_not_fit_is_a_clear_error(
    module: nn.Module, spec: Input, word: str
) -> None:
    """A wrong shape, too few classes, and no logits say what to change."""
    with pytest.raises(ConfigError, match=word):
        Network(module, spec, device="cpu")


def test_a_device_that_is_not_there_is_a_clear_error() -> None:
    """A device that torch cannot name or does not have."""
    with pytest.raises(ConfigError, match="device 'abacus' cannot be used"):
        Network(nn.Flatten(), VECTOR, device="abacus")
    assert Network(nn.Flatten(), VECTOR).device.type in {"cpu", "cuda"}


def test_padding_adds_rows_of_zeros() -> None:
    """Rows of its own come first, unchanged; as many as there are already adds none."""
    network, x = _made("residual")
    forward = network.forward(x[:5])
    padded = forward.padded(8)
    assert len(padded) == 8
    for name in ("inputs", "logits", "features"):
        part = getattr(padded, name)
        assert torch.equal(part[:5], getattr(forward, name))
        assert not part[5:].any()
    assert len(forward.padded(5)) == 5


def test_larger_inputs_go_in_smaller_tiles() -> None:
    """One that comes alone does not wait for 31 empty places, where a pass is dear."""
    assert _made("residual")[0].tile == 8
    assert _made("convolutional")[0].tile == _made("vector")[0].tile == 32
