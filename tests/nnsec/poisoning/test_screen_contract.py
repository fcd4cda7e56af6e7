"""What every screen owes, crossed over all that are found."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nnsec import poisoning
from nnsec.checkpoints.tensors import dump_arrays, load_arrays
from nnsec.errors import ConfigError, Unsafe
from nnsec.poisoning import REASONS, SourceWindow, base, discovery
from nnsec.poisoning.base import Finding, Reference, SampleScreen, Screen, WindowScreen, replay
from nnsec.poisoning.samples import Geometry, Samples

pytestmark = pytest.mark.parametrize("name", discovery.names())


@pytest.fixture(scope="module")
def fitted(reference: Reference) -> dict[str, Screen]:
    screens = {name: discovery.make(name, reference.geometry) for name in discovery.names()}
    for screen in screens.values():
        screen.fit(reference)
    return screens


@pytest.fixture
def batch(reference: Reference) -> Samples:
    """Samples, clean and not: some are flipped, stamped, sent twice, or noise."""
    rng = np.random.default_rng(5)
    fresh = reference.fresh
    x, y = fresh.x.copy(), fresh.labels.copy()
    y[::5] = (y[::5] + 1) % reference.classes
    x[1::6, ..., -2:] = reference.geometry.high
    x[2::7] = x[2]
    x[3::11] = rng.integers(0, 4, x[3::11].shape)
    features = fresh.features + rng.normal(0, 0.1, fresh.features.shape)
    return Samples.describe(reference.geometry, x, y, features)


def judged(screen: Screen, samples: Samples) -> list[Any]:
    """All that a screen says of samples, sent by one source in their order."""
    if isinstance(screen, SampleScreen):
        return list(screen.score(samples).tolist())
    assert isinstance(screen, WindowScreen)
    return replay(screen, samples, np.arange(len(samples)))


def test_what_is_fitted_comes_back_bit_identical(
    name: str, fitted: dict[str, Screen], batch: Samples, reference: Reference
) -> None:
    """Through the file that a checkpoint keeps it in."""
    screen = fitted[name]
    state = load_arrays("screens", dump_arrays(screen.state()))
    again = discovery.make(name, reference.geometry)
    again.restore(state)
    assert judged(again, batch) == judged(screen, batch)
    assert {k: v.tobytes() for k, v in again.state().items()} == {
        k: v.tobytes() for k, v in screen.state().items()
    }


def test_fitting_is_a_function_of_its_reference(
    name: str, fitted: dict[str, Screen], reference: Reference
) -> None:
    """Twice the same gives the same, and a second fit forgets the first."""
    again = discovery.make(name, reference.geometry)
    again.fit(replace(reference, fresh=reference.fit, fit=reference.fresh))
    again.fit(reference)
    for key, array in fitted[name].state().items():
        assert array.tobytes() == again.state()[key].tobytes()


def test_judging_changes_nothing_but_the_window(
    name: str, fitted: dict[str, Screen], batch: Samples
) -> None:
    """Neither the screen nor the samples; so the same comes out again."""
    screen = fitted[name]
    before = {key: array.tobytes() for key, array in screen.state().items()}
    locked = {}
    for key in batch.__dataclass_fields__:
        locked[key] = getattr(batch, key).copy()
        locked[key].flags.writeable = False
    assert judged(screen, Samples(**locked)) == judged(screen, batch)
    assert {key: array.tobytes() for key, array in screen.state().items()} == before


def test_rows_do_not_depend_on_each_other(
    name: str, fitted: dict[str, Screen], batch: Samples
) -> None:
    """A row's figures are the same alone, in any order, and in any company."""
    screen = fitted[name]

    def figures(samples: Samples) -> NDArray[np.float64]:
        if isinstance(screen, SampleScreen):
            return screen.score(samples)
        assert isinstance(screen, WindowScreen)
        return screen.prepare(samples)

    whole = figures(batch)
    assert len(whole) == len(batch)
    order = np.random.default_rng(0).permutation(len(batch))
    assert figures(batch.take(order)).tobytes() == whole[order].tobytes()
    for row in range(0, len(batch), 7):
        assert figures(batch.take([row])).tobytes() == whole[row : row + 1].tobytes()
    assert figures(batch.take(range(3, 40))).tobytes() == whole[3:40].tobytes()
    if isinstance(screen, SampleScreen):
        assert np.isfinite(whole).all()


def test_a_batch_cut_differently_is_judged_the_same(
    name: str, fitted: dict[str, Screen], batch: Samples
) -> None:
    """What is found depends on the samples before, not on how they came."""
    screen = fitted[name]
    window: SourceWindow = SourceWindow(batch.codes.shape[1])
    found: list[Any] = []
    for row in range(len(batch)):
        one = batch.take([row])
        if isinstance(screen, SampleScreen):
            found += screen.score(one).tolist()
            continue
        assert isinstance(screen, WindowScreen)
        found.append(screen.judge(one, 0, screen.prepare(one), window))
        base.remember(window, one, 0, offset=row)
    assert found == judged(screen, batch)


def test_hostile_state_is_refused(
    name: str, fitted: dict[str, Screen], reference: Reference
) -> None:
    """What is missing, not finite, or of another kind is named."""
    state = fitted[name].state()
    for key, array in state.items():
        spoiled: list[Any] = [None, array[None], array.astype("S4"), array.astype(np.complex128)]
        if array.dtype.kind == "f":
            wrong = array.copy()
            wrong[...] = np.nan
            spoiled.append(wrong)
        for bad in spoiled:
            changed = {k: v for k, v in (state | {key: bad}).items() if v is not None}
            with pytest.raises(Unsafe, match=f"{key}.*{name}|{name}.*{key}"):
                discovery.make(name, reference.geometry).restore(changed)


def test_findings_exceed_their_thresholds(
    name: str, fitted: dict[str, Screen], batch: Samples
) -> None:
    """A figure is told only where it is larger than what passes."""
    screen = fitted[name]
    for found in judged(screen, batch):
        if isinstance(found, Finding):
            assert found.figure > found.threshold


def test_clean_samples_of_an_honest_source_pass(
    name: str, fitted: dict[str, Screen], reference: Reference
) -> None:
    """Those that thresholds were not set on are hardly ever held back by a window screen."""
    screen = fitted[name]
    if isinstance(screen, WindowScreen):
        found = replay(screen, reference.fit, np.arange(len(reference.fit)))
        held = sum(f.quarantine for f in found if f is not None)
        assert held <= 0.02 * len(found) + 1


def test_its_reason_is_its_name(name: str, fitted: dict[str, Screen]) -> None:
    """By it the configuration, the summary's bits and a dead record's header know it."""
    assert fitted[name].reason == name
    assert name in REASONS
    assert "," not in name


def test_two_of_one_reason_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would depend on the order of files which one judges."""
    module = discovery.importlib.import_module(discovery.found()[name].__module__)
    twin = type("Twin", (discovery.found()[name],), {"__module__": module.__name__})
    monkeypatch.setattr(module, "Twin", twin, raising=False)
    with pytest.raises(ConfigError, match=f"two screens give the reason '{name}'"):
        discovery.found.__wrapped__()


def test_an_added_screen_has_the_next_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fixed reasons keep theirs; more than a row has bits for are refused."""
    module = discovery.importlib.import_module(discovery.found()[name].__module__)
    parent = discovery.found()[name]
    for number in range(7):
        one = type(f"N{number}", (parent,), {"__module__": module.__name__, "reason": f"n{number}"})
        monkeypatch.setattr(module, f"N{number}", one, raising=False)
    monkeypatch.setattr(discovery, "found", lambda: discovery_found())
    assert discovery.reasons() == (*REASONS, *(f"n{number}" for number in range(7)))
    assert discovery.make("n3", Geometry((1, 8, 8), 0, 16)).reason == "n3"
    with pytest.raises(ConfigError, match="there is no screen 'none'; there are"):
        discovery.make("none", Geometry((1, 8, 8), 0, 16))
    extra = type("More", (parent,), {"__module__": module.__name__, "reason": "more"})
    monkeypatch.setattr(module, "More", extra, raising=False)
    with pytest.raises(ConfigError, match="more than 16 reasons"):
        discovery_found()


discovery_found = discovery.found.__wrapped__


def test_modules_with_an_underscore_are_no_screens(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are a screen's own parts."""
    infos = [
        info
        for info in discovery.pkgutil.iter_modules(poisoning.__path__)
        if info.name == discovery.found()[name].__module__.rsplit(".", 1)[1]
    ]
    renamed = [info._replace(name=f"_{info.name}") for info in infos]
    monkeypatch.setattr(discovery.pkgutil, "iter_modules", lambda _: [*infos, *renamed])
    assert list(discovery_found()) == [name]
