"""The cascade: one ordered score, whose guarantee stands whatever the first stage hides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nnsec.calibration import Calibration
from nnsec.cascade import AUDIT, DOUBT, Cascade
from nnsec.detectors.feature_squeezing import FeatureSqueezing
from nnsec.detectors.knn import Knn
from nnsec.errors import Unsafe
from nnsec.network import Forward, Network
from nnsec.stages import cheap
from nnsec.suite import Suite

CHEAP = np.array([True, True, False, True])


def _raw(n: int, seed: int) -> NDArray[np.float64]:
    """Four correlated scores, the last with a heavy tail."""
    rng = np.random.default_rng(seed % 2**32)
    raw = rng.normal(size=(n, 4))
    raw[:, 1] += raw[:, 0]
    raw[:, 2] -= 0.7 * raw[:, 1]
    raw[:, 3] = np.exp(raw[:, 3])
    return raw


def _contents(n: int, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n, 12)).astype(np.uint8)


def _score(cascade: Cascade, raw: NDArray[np.float64], x: NDArray[Any]) -> NDArray[np.float32]:
    first = cascade.first_score(raw)
    return cascade.score(first, raw, cascade.doubt(first) | cascade.drawn(x))


def test_costly_detectors_only_ever_add_to_the_distance() -> None:
    """Clear inputs lie under the threshold and those in doubt over it: one order for both."""
    cascade = Cascade.fit(_raw(500, 0), CHEAP)
    raw = np.concatenate([_raw(3000, 1), 30 * _raw(50, 2)])
    first, whole = cascade.first_score(raw), cascade.fusion.score(raw)
    assert (whole >= first * (1 - 1e-6)).all()
    assert (whole > first + 0.1).mean() > 0.5
    doubt = cascade.doubt(first)
    score = cascade.score(first, raw, doubt)
    assert score[~doubt].max() < cascade.threshold <= score[doubt].min()
    assert np.array_equal(score[~doubt], first[~doubt])
    assert score[doubt] == pytest.approx(whole[doubt], rel=1e-6)


def test_the_share_in_doubt_is_that_of_clean_inputs() -> None:
    """Fitted on some, met by others; every input of another kind is in doubt."""
    cascade = Cascade.fit(_raw(4000, 0), CHEAP)
    fresh = cascade.doubt(cascade.first_score(_raw(20_000, 1)))
    assert fresh.mean() == pytest.approx(DOUBT, rel=0.2)
    assert cascade.doubt(cascade.first_score(_raw(500, 2) + np.array([0, 9, 0, 0]))).all()


def test_what_did_not_run_is_not_read() -> None:
    """A clear input's score does not depend on what stands in the columns of costly detectors."""
    cascade = Cascade.fit(_raw(500, 0), CHEAP)
    raw = _raw(200, 1)
    other = np.where(CHEAP, raw, 1e30)
    assert np.array_equal(cascade.first_score(raw), cascade.first_score(other))
    nobody = np.zeros(200, bool)
    first = cascade.first_score(raw)
    assert np.array_equal(cascade.score(first, raw, nobody), cascade.score(first, other, nobody))


def test_the_guarantee_stands_for_the_cascade_as_a_whole() -> None:
    """Calibrated through the same rule, α of fresh clean inputs are flagged, over 200 draws."""
    alpha, n, m = 0.02, 400, 500
    rates = []
    cascades = [Cascade.fit(_raw(150, -1 - k), CHEAP) for k in range(10)]
    for draw in range(200):
        cascade = cascades[draw % 10]
        kept = _score(cascade, _raw(n, 3 * draw + 1), _contents(n, draw))
        calibration = Calibration.fit(kept, np.zeros(n, np.int64), alpha=alpha)
        fresh = _score(cascade, _raw(m, 3 * draw + 2), _contents(m, 1000 + draw))
        rates.append((calibration.p_value(fresh) <= alpha).mean())
    wanted = np.floor(alpha * (n + 1)) / (n + 1)
    error = np.std(rates) / np.sqrt(len(rates))
    assert abs(np.mean(rates) - wanted) < 3 * error


def test_one_input_in_a_hundred_is_drawn_by_content_and_key_alone() -> None:
    """Its place and its neighbours do not matter, another key draws others."""
    cascade = Cascade.fit(_raw(200, 0), CHEAP)
    x = _contents(40_000, 1)
    drawn = cascade.drawn(x)
    expected = len(x) / AUDIT
    assert abs(drawn.sum() - expected) < 4 * np.sqrt(expected)
    assert np.array_equal(cascade.drawn(x[::-1]), drawn[::-1])
    assert np.array_equal(
        np.concatenate([cascade.drawn(row[None]) for row in x[:300]]), drawn[:300]
    )
    other = Cascade.fit(_raw(200, 5), CHEAP)
    assert (other.drawn(x) & drawn).mean() < 0.001
    assert other.drawn(x).any()
    assert not replace(cascade, cheap=np.ones(4, bool)).drawn(x).any()


def test_what_the_first_stage_hides_is_found_among_the_drawn() -> None:
    """Inputs that only a costly detector sees: hidden when clear, found when drawn."""
    cascade = Cascade.fit(_raw(1000, 0), CHEAP)
    x = _contents(1000, 1)
    kept = _score(cascade, _raw(1000, 1), x)
    calibration = Calibration.fit(kept, np.zeros(1000, np.int64), alpha=0.01)
    raw = _raw(5000, 2)
    raw[:, 2] += 25
    x = _contents(5000, 3)
    first = cascade.first_score(raw)
    clear = ~cascade.doubt(first)
    drawn = cascade.drawn(x)
    flagged = calibration.p_value(_score(cascade, raw, x)) <= 0.01
    assert not flagged[clear & ~drawn].any()
    assert drawn[clear].sum() > 20
    assert flagged[clear & drawn].all()


@pytest.fixture(scope="module")
def suite(on_images: Any) -> Suite:
    """All detectors, fitted on digits."""
    found: Suite = on_images.suite()
    return found


def test_costly_detectors_see_only_what_is_in_doubt_or_drawn(
    suite: Suite, on_images: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clear input has p-value 1 from what did not run, and full coverage all the same."""
    seen: list[NDArray[np.float32]] = []
    plain = FeatureSqueezing.score

    def spy(self: FeatureSqueezing, forward: Forward, network: Network) -> NDArray[np.float64]:
        seen.append(forward.inputs.numpy())
        return plain(self, forward, network)

    monkeypatch.setattr(FeatureSqueezing, "score", spy)
    x = on_images.x
    scored = suite.score(x)
    through = suite.through(x)
    assert 0.03 < through.mean() < 0.3
    scaled = on_images.network.scale(x).numpy()
    looked_at = np.concatenate(seen)[: through.sum()]
    assert np.array_equal(looked_at, scaled[through])
    costly = ~cheap(suite.detectors)
    assert [name for name, one in zip(suite.names, costly, strict=True) if one] == [
        "feature_squeezing", "knn",
    ]  # fmt: skip
    assert (scored.p_values[~through][:, costly] == 1).all()
    assert (scored.p_values[through][:, costly] < 1).any(axis=0).all()
    assert (scored.coverage == 1).all()
    assert scored.audited.any()
    assert (scored.audited <= through).all()
    first = suite.cascade.first_score(suite.raw_scores(x))
    assert np.array_equal(scored.audited, through & (first < suite.cascade.threshold))
    assert scored.flag[~through].sum() == 0


def test_all_figures_are_those_of_all_detectors_where_all_ran(suite: Suite, on_images: Any) -> None:
    """The second stage gives a row the same raw scores whether few rows go through it or all."""
    x = on_images.x[on_images.splits.calibrate]
    scored, raw = suite.score(x), suite.raw_scores(x)
    through = suite.through(x)
    whole = suite.cascade.fusion.score(raw).astype(np.float32)
    first = suite.cascade.first_score(raw)
    assert np.array_equal(scored.score, np.where(through, np.maximum(first, whole), first))


def test_a_suite_of_one_stage_only(on_images: Any) -> None:
    """All cheap, or all costly: every detector runs on every input, and nothing is drawn."""
    for names in (("energy", "confidence"), ("knn", "feature_squeezing")):
        one = on_images.suite(detectors=names)
        scored = one.score(on_images.x[:200])
        assert not scored.audited.any()
        assert (scored.p_values < 1).any(axis=0).all()
        whole = one.cascade.fusion.score(one.raw_scores(on_images.x[:200]))
        assert scored.score == pytest.approx(whole, rel=1e-6)
        assert np.array_equal(
            Suite.restore(one.state(), one.network).score(on_images.x[:40]).score, scored.score[:40]
        )


def test_a_checkpoint_without_a_cascade_sends_all_through_all(suite: Suite, on_images: Any) -> None:
    """One that was made before there was a cascade is scored as it was then."""
    old = {k: v for k, v in suite.state().items() if not k.startswith("cascade.")}
    again = Suite.restore(old, suite.network)
    x = on_images.x[:60]
    scored = again.score(x)
    assert again.through(x).all()
    assert not scored.audited.any()
    assert scored.score == pytest.approx(suite.cascade.fusion.score(suite.raw_scores(x)), rel=1e-6)


Change = Callable[[dict[str, NDArray[Any]]], object]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda s: s.pop("cascade.threshold"), "incomplete"),
        (lambda s: s.pop("cascade.key"), "incomplete"),
        (lambda s: s.pop("cascade.first.mean"), "lacks 'mean'"),
        (lambda s: s.update({"cascade.threshold": np.array([np.nan], np.float32)}), "threshold"),
        (lambda s: s.update({"cascade.threshold": np.zeros(2, np.float32)}), "incomplete"),
        (lambda s: s.update({"cascade.key": np.zeros(65, np.uint8)}), "cascade"),
        (
            lambda s: s.update(
                {k: v for k, v in s.items() if k.startswith("fusion.")}
                | {
                    k.replace("fusion.", "cascade.first."): v
                    for k, v in s.items()
                    if k.startswith("fusion.")
                }
            ),
            "other detectors",
        ),
        (
            lambda s: s.update(
                {k: s[k][:-1] for k in s if k.startswith("fusion.") and s[k].ndim == 1}
                | {"fusion.precision": s["fusion.precision"][:-1, :-1]}
            ),
            "of 7 detectors, and there are 8",
        ),
    ],
)
def test_hostile_cascades_are_refused(suite: Suite, change: Change, word: str) -> None:
    """What is missing, not finite or of other detectors is a named error."""
    state = suite.state()
    change(state)
    with pytest.raises(Unsafe, match=word):
        Suite.restore(state, suite.network)


def test_knn_is_the_same_in_pieces_of_any_order(suite: Suite, on_images: Any) -> None:
    """Rows in doubt are gathered; who else is in doubt does not move a last digit."""
    assert Knn.costly
    rows = np.flatnonzero(suite.through(on_images.x))[:9]
    together = suite.score(on_images.x[rows])
    for place, row in enumerate(rows):
        alone = suite.score(on_images.x[row][None])
        assert alone.p_values.tobytes() == together.p_values[place : place + 1].tobytes()
        assert alone.score.tobytes() == together.score[place : place + 1].tobytes()
