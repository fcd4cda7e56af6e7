"""The screens together: each catches what it is for, and honest sources are left alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nnsec import transforms
from nnsec.checkpoints.tensors import dump_arrays, load_arrays
from nnsec.errors import ConfigError, Unsafe
from nnsec.network import Network
from nnsec.poisoning import Rated, ScreenSuite, strictness, trigger
from nnsec.poisoning.samples import Place
from nnsec.splits import Splits
from tests.conftest import MadeCheckpoint
from tests.nnsec.poisoning.conftest import DIGITS, Clean

Vectors = tuple[Network, NDArray[Any], NDArray[np.int64]]


def send(suite: ScreenSuite, x: NDArray[Any], y: NDArray[np.int64]) -> Rated:
    """One source sends all of it in one record."""
    return suite.rate(x, y, None, suite.window())


def reasons(rated: Rated) -> Counter[str]:
    return Counter(name for row in range(len(rated)) for name in rated.named(row))


def same(a: Rated, b: Rated) -> bool:
    return all(
        getattr(a, name).tobytes() == getattr(b, name).tobytes()
        for name in ("quarantined", "reasons", "figures", "thresholds", "score", "p_value", "level")
    ) and (a.patterns == b.patterns)


def test_honest_samples_pass(suite: ScreenSuite, clean: Clean) -> None:
    """About α of them are held back, from one source or ten, and none for its window."""
    whole = send(suite, clean.x, clean.y)
    assert whole.quarantined.mean() <= 0.03
    assert not set(reasons(whole)) - {"label_disagreement", "outlier"}
    assert (whole.p_value > 0).all()
    assert (whole.quarantined == (whole.p_value <= suite.calibration.alpha)).all()


def test_an_honest_source_of_one_class_passes(suite: ScreenSuite, clean: Clean) -> None:
    """Its label distribution is told, not held against it."""
    rows = clean.y == 3
    rated = send(suite, clean.x[rows], clean.y[rows])
    assert rated.quarantined.mean() <= 0.06
    named = reasons(rated)
    assert "trigger" not in named
    told = [row for row in range(len(rated)) if rated.named(row) == ("label_distribution",)]
    assert told
    assert not rated.quarantined[told].any()


def test_wrong_labels_are_caught_by_their_neighbours(suite: ScreenSuite, clean: Clean) -> None:
    """Nine in ten, with the figure, what would pass, and whose label the neighbours have."""
    wrong = (clean.y + 1 + np.arange(len(clean.y)) % 9) % 10
    rated = send(suite, clean.x, wrong)
    assert rated.quarantined.mean() >= 0.9
    assert reasons(rated)["label_disagreement"] >= 0.9 * len(rated)
    assert (rated.neighbour_label == clean.y).mean() > 0.9
    assert (rated.level[rated.quarantined] >= 2).all()


def test_a_stamp_under_one_label_is_a_trigger(suite: ScreenSuite, clean: Clean) -> None:
    """Its place, label and values are named, and further samples that bear it are caught alone."""
    # Over the middle, where digits have ink: no outlier, and its class is not looked at here.
    rows = np.flatnonzero(clean.y != 7)[:100]
    x = clean.x[rows].copy()
    x[..., 0, 0:2] = (16, 5)
    window = suite.window()
    rated = suite.rate(x, np.full(100, 7), None, window)
    assert reasons(rated)["trigger"] >= 70
    assert rated.level[-1] == 5
    pattern = rated.patterns[-1]
    assert pattern is not None
    assert (pattern.label, pattern.log10_p < -8, pattern.samples <= pattern.of) == (7, True, True)
    assert pattern.place in {Place((0, 2), (column, column + 2)) for column in range(3)}
    assert 16 in pattern.values
    marked = clean.x[clean.y == 7][:3].copy()
    marked[..., 0, 0:2] = (16, 5)
    again = suite.rate(marked, np.full(3, 7), None, window, offset=1)
    assert reasons(again)["trigger"] == 3
    unmarked = suite.rate(clean.x[clean.y == 7][:3], np.full(3, 7), None, window, offset=2)
    assert "trigger" not in reasons(unmarked)


def test_a_speck_on_a_lens_is_hardly_ever_a_trigger(suite: ScreenSuite, clean: Clean) -> None:
    """What a source shows under every label speaks for its camera, not for poison."""
    x = transforms.stamp_trigger(clean.x, DIGITS)
    assert reasons(send(suite, x, clean.y))["trigger"] <= 0.02 * len(x)


def test_five_frames_of_one_scene_are_no_trigger(suite: ScreenSuite, clean: Clean) -> None:
    """They agree everywhere, because they are one thing and not several."""
    frames = np.repeat(clean.x[:1], 8, 0).astype(int)
    frames[:, 0, 4, 4] = np.arange(8)
    rated = send(suite, frames.astype(np.uint8), np.repeat(clean.y[:1], 8))
    assert "trigger" not in reasons(rated)
    assert rated.patterns == (None,) * 8


def test_copies_are_caught_from_the_second_on(suite: ScreenSuite, clean: Clean) -> None:
    """Under whatever label; another source may send the same."""
    x, y = np.repeat(clean.x[:1], 4, 0), np.repeat(clean.y[:1], 4)
    y[3] = (y[3] + 1) % 10
    rated = send(suite, x, y)
    assert [("duplicate" in rated.named(row)) for row in range(4)] == [False, True, True, True]
    assert rated.quarantined.tolist() == [False, True, True, True]
    assert len(set(rated.fingerprint.tolist())) == 1
    assert not send(suite, x[:1], y[:1]).quarantined.any()


def test_near_copies_are_caught(suite: ScreenSuite, clean: Clean) -> None:
    """One grey level in one pixel does not make another sample."""
    x = clean.x[:20].repeat(2, 0)
    x[1::2, 0, 3, 3] ^= 1
    rated = send(suite, x, clean.y[:20].repeat(2))
    held = reasons(rated)
    assert held["near_duplicate"] >= 18
    assert not rated.quarantined[::2].any()
    assert not held["duplicate"]


def test_a_known_sample_under_another_label_is_caught(
    suite: ScreenSuite, checkpoint: MadeCheckpoint
) -> None:
    """A copy of a reference sample passes under its own label, and not under another."""
    with np.load(checkpoint.reference) as arrays:
        rows = Splits.stratified(arrays["y"], seed=0).train[:20]
        x, y = arrays["x"][rows], arrays["y"][rows]
    assert not send(suite, x, y).quarantined.any()
    rated = send(suite, x, (y + 4) % 10)
    assert reasons(rated)["near_duplicate"] == 20
    assert rated.quarantined.all()


def test_what_is_no_digit_is_an_outlier(suite: ScreenSuite) -> None:
    """Noise is caught by the input alone, whatever its label."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 17, (60, 1, 8, 8)).astype(np.uint8)
    rated = send(suite, x, rng.integers(0, 10, 60))
    assert rated.quarantined.all()
    assert reasons(rated)["outlier"] >= 55


def test_a_source_that_is_often_suspicious_is_judged_more_strictly(
    suite: ScreenSuite, clean: Clean
) -> None:
    """Samples past the 3 % level go too, while its share is past what clean ones can have."""
    screened = suite.screen(clean.x, clean.y)
    edge = np.flatnonzero(
        (screened.level >= strictness.STRICT_LEVEL) & (screened.p_value > suite.calibration.alpha)
    )
    edge = edge[edge >= 40]
    assert len(edge) >= 3
    assert not suite.advance(screened, edge[:1], suite.window(), offset=0).quarantined.any()
    window = suite.window()
    wrong = (clean.y[:40] + 5) % 10
    suite.rate(clean.x[:40], wrong, None, window)
    later = suite.advance(screened, edge.tolist(), window, offset=1)
    assert later.quarantined.all()
    for row in range(len(later)):
        assert later.named(row)
    window = suite.window()
    suite.rate(clean.x[:40], clean.y[:40], None, window)
    assert not suite.advance(screened, edge[:1].tolist(), window, offset=1).quarantined.any()


def test_every_reason_has_a_figure_past_what_passes(suite: ScreenSuite, clean: Clean) -> None:
    """Even where several screens share the blame; rows without a reason have none."""
    x = clean.x.copy()
    x[::3] = transforms.stamp_trigger(x[::3], DIGITS)
    y = np.where(np.arange(len(x)) % 3 == 0, 7, (clean.y + np.arange(len(x)) % 2) % 10)
    rated = send(suite, x, y)
    set_bits = (rated.reasons[:, None] >> np.arange(len(rated.names)) & 1).astype(bool)
    assert (rated.figures[set_bits] > rated.thresholds[set_bits]).all()
    assert (rated.figures[~set_bits] == 0).all()
    assert set_bits[rated.quarantined].any(1).all()


def test_figures_of_a_sample_do_not_depend_on_its_batch(suite: ScreenSuite, clean: Clean) -> None:
    """Alone, among others, or with features computed before: the same to the last bit."""
    whole = suite.screen(clean.x[:90], clean.y[:90])
    for rows in (slice(5, 6), slice(17, 60)):
        part = suite.screen(clean.x[:90][rows], clean.y[:90][rows])
        for name in ("score", "p_value", "level", "raw", "p_values", "neighbour_label"):
            assert getattr(part, name).tobytes() == getattr(whole, name)[rows].tobytes()
    given = suite.network.forward(clean.x[:90]).features.cpu().numpy()
    again = suite.screen(clean.x[:90], clean.y[:90], given)
    assert again.score.tobytes() == whole.score.tobytes()
    assert len(again) == 90


def test_records_cut_differently_are_judged_the_same(suite: ScreenSuite, clean: Clean) -> None:
    """A source's samples in one record or in many; and a record that comes again."""
    wrong = np.where(np.arange(len(clean.y)) % 3, clean.y, (clean.y + 1) % 10)
    whole = send(suite, clean.x, wrong)
    window = suite.window()
    held: list[bool] = []
    for offset, start in enumerate(range(0, len(wrong), 7)):
        some = slice(start, start + 7)
        first = suite.rate(clean.x[some], wrong[some], None, window, offset=offset)
        again = suite.rate(clean.x[some], wrong[some], None, window, offset=offset)
        assert same(first, again)
        held += first.quarantined.tolist()
    assert held == whole.quarantined.tolist()


def restored(suite: ScreenSuite, **changes: Any) -> ScreenSuite:
    state = suite.state() | changes
    return ScreenSuite.from_state(
        suite.network, {name: array for name, array in state.items() if array is not None}
    )


def test_a_suite_comes_back_bit_identical(suite: ScreenSuite, clean: Clean) -> None:
    """Through the file that a checkpoint keeps it in."""
    state = load_arrays("screens", dump_arrays(suite.state()))
    again = ScreenSuite.from_state(suite.network, state)
    wrong = (clean.y + np.arange(len(clean.y)) % 2) % 10
    assert same(send(again, clean.x, wrong), send(suite, clean.x, wrong))
    assert again.levels == suite.levels
    assert suite.levels.n == suite.calibration.n


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"screens": None}, "incomplete"),
        ({"screens": np.frombuffer("ä".encode(), np.uint8)}, "incomplete"),
        ({"columns": None}, "incomplete"),
        ({"columns": np.zeros((3, 2))}, "do not fit"),
        ({"excess.usual": None}, "incomplete"),
        ({"excess.usual": np.zeros(3), "excess.spread": np.ones(3)}, "do not fit"),
        ({"excess.spread": np.zeros(2)}, "does not fit itself"),
        ({"excess.usual": np.zeros((2, 1))}, "does not fit itself"),
        ({"calibration.alpha": np.array([2.0])}, "calibration is none"),
        ({"screen.outlier.mean": None}, "lacks 'mean'"),
        ({"screen.outlier.mean": np.zeros(3, np.float32)}, "do not fit the model"),
        ({"screen.label_disagreement.axes": np.zeros((3, 3), np.float32)}, "do not fit the model"),
        ({"screen.label_distribution.shares": np.ones(4)}, "do not fit the model"),
        ({"screen.trigger.counts": np.zeros((4, 49, 256), np.uint32)}, "do not fit the model"),
        ({"screens": np.frombuffer(b"outlier,trigger", np.uint8)}, "lack 'label_disagreement'"),
    ],
)
def test_state_that_is_none_is_refused(
    suite: ScreenSuite, changes: dict[str, Any], said: str
) -> None:
    """Before a sample is screened with it."""
    with pytest.raises(Unsafe, match=said):
        restored(suite, **changes)


def test_a_screen_that_is_not_installed_is_named(suite: ScreenSuite) -> None:
    """A checkpoint may come from a machine that has more."""
    with pytest.raises(ConfigError, match="there is no screen 'other'; there are duplicate"):
        restored(suite, screens=np.frombuffer(b"other", np.uint8))


def test_vectors_are_screened_too(vectors: Vectors) -> None:
    """Wrong labels, copies, and one value set in all samples of a class."""
    network, x, y = vectors
    suite = ScreenSuite.fit(
        network, x[:600], y[:600], splits=Splits.stratified(y[:600], seed=0), seed=0, alpha=0.01
    )
    x, y = x[600:], y[600:]
    clean = send(suite, x, y)
    assert clean.quarantined.mean() <= 0.04
    assert send(suite, x, (y + 1) % 3).quarantined.mean() > 0.9
    stamped = x[y != 0][:120].copy()
    stamped[:, 4] = 3.9
    rated = send(suite, stamped, np.zeros(len(stamped), np.int64))
    assert reasons(rated)["trigger"] > 100
    pattern = rated.patterns[-1]
    assert pattern is not None
    assert pattern.place == Place((0, 1), (4, 5))
    assert pattern.values == (pytest.approx(3.9),)
    again = restored(suite)
    assert same(send(again, x, y), clean)


def test_too_few_calibration_samples_hold_back_nothing_by_score(vectors: Vectors) -> None:
    """With fewer than 1/α of them no p-value reaches α; the window screens still work."""
    network, x, y = vectors
    parts = Splits.stratified(y[:120], seed=0)
    suite = ScreenSuite.fit(network, x[:120], y[:120], splits=parts, seed=0, alpha=0.001)
    x, y = x[700:].repeat(2, 0), y[700:].repeat(2)
    rated = send(suite, x, y)
    assert not {"outlier", "label_disagreement"} & set(reasons(rated))
    assert rated.quarantined[1::2].all()


def test_a_table_too_large_for_every_label_is_shared(
    vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With many classes the trigger screen counts over all; it still finds what repeats."""
    monkeypatch.setattr(trigger, "MAX_CELLS", 1000)
    monkeypatch.setattr(trigger, "MAX_FRESH", 100)
    network, x, y = vectors
    suite = ScreenSuite.fit(
        network, x[:600], y[:600], splits=Splits.stratified(y[:600], seed=0), seed=0, alpha=0.01
    )
    assert suite.state()["screen.trigger.counts"].shape == (1, 30, 256)
    stamped = x[600:][y[600:] != 0][:100].copy()
    stamped[:, 4] = 3.9
    assert reasons(send(suite, stamped, np.zeros(100, np.int64)))["trigger"] > 80
    assert not reasons(send(suite, x[600:], y[600:]))["trigger"]
