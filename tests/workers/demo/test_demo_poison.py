"""The demo's training traffic: honest sources pass, quiet poison too, loud poison is found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

import numpy as np
import pytest
from safetensors.torch import load_file

from nnsec.drift import Reference
from nnsec.models import small_cnn
from nnsec.network import Network
from nnsec.poisoning import Rated, ScreenSuite, SourceWindow
from nnsec.settings import Budget
from nnsec.splits import Splits
from nnsec.watch import Watch
from schemas.alert import Alert
from schemas.summary import SAMPLE_ROW, Summary
from tests.conftest import MadeCheckpoint
from workers.demo import poison, stage
from workers.demo.material import Material
from workers.demo.poison import BAD, HONEST, TARGET, Sample

START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def material() -> Material:
    return Material.load("digits", seed=3)


@pytest.fixture(scope="module")
def suite(material: Material, checkpoint: MadeCheckpoint) -> ScreenSuite:
    module = small_cnn()
    module.load_state_dict(load_file(checkpoint.weights))
    network = Network(module, material.input, device="cpu")
    x, y = material.reference_x, material.reference_y
    splits = Splits.stratified(y, seed=0)
    return ScreenSuite.fit(network, x, y, splits=splits, seed=0, alpha=material.spec.alpha)


class Play:
    """Sends samples through the screens and to the owner of the model, one a record."""

    def __init__(self, suite: ScreenSuite) -> None:
        self.suite = suite
        self.offset = 0
        self.windows: dict[str, SourceWindow] = {}
        self.watch = Watch(
            "digits",
            Budget(
                expected_inputs_per_day=stage.INPUTS_A_DAY,
                expected_samples_per_day=stage.SAMPLES_A_DAY,
            ),
        )
        levels = suite.levels
        self.reference = Reference(
            tiers=(levels,), screen=levels, alpha=0.005, classes=10, n=levels.n,
            class_rates=(0.1,) * 10, confidence=(), error_rate=0.05, error_n=400,
        )  # fmt: skip

    def send(self, samples: Sequence[Sample]) -> tuple[list[bool], list[list[Alert]]]:
        """For each sample whether it was held back, and which alerts it led to."""
        screened = self.suite.screen(
            np.stack([sample.x for sample in samples]), [sample.label for sample in samples]
        )
        held, alerts = [], []
        for row, sample in enumerate(samples):
            window = self.windows.setdefault(sample.source, self.suite.window())
            rated = self.suite.advance(screened, [row], window, offset=self.offset)
            held.append(bool(rated.quarantined[0]))
            alerts.append(self.watch.apply(self._summary(sample, rated), self.reference))
            self.offset += 1
        return held, alerts

    def _summary(self, sample: Sample, rated: Rated) -> Summary:
        rows = np.zeros(1, SAMPLE_ROW)
        rows["offset"], rows["label"] = self.offset, sample.label
        for name in ("neighbour_label", "score", "p_value", "level", "quarantined", "reasons"):
            rows[name] = getattr(rated, name)
        rows["fingerprint"] = rated.fingerprint
        return Summary.pack(
            rows, kind="sample", log=UUID(int=1), topic="training.samples", model="digits",
            model_version="1", time=START + timedelta(milliseconds=20 * self.offset),
            subjects=(sample.source,), reasons=rated.names,
        )  # fmt: skip


def test_the_screens_and_the_evidence_tell_the_sources_apart(
    material: Material, suite: ScreenSuite
) -> None:
    """Quiet poison passes and accuses nobody; loud poison is caught, and its source found."""
    play = Play(suite)
    lessons, later = poison.lessons(material, 3), poison.later(material, 3)
    held, alerts = play.send(lessons)
    quiet = [one for one, sample in zip(held, lessons, strict=True) if sample.kind == "quiet"]
    assert sum(quiet) <= 0.15 * len(quiet)
    more, others = play.send(later)
    honest = [one for one, s in zip(held, lessons, strict=True) if s.kind == "honest"] + more
    assert sum(honest) <= 0.02 * len(honest)
    assert not any(alerts)
    assert not any(others)
    loud, found = play.send(poison.loud(material, 3)[:100])
    first = next(number for number, some in enumerate(found) if some)
    assert sum(loud[: first + 1]) >= 0.5 * (first + 1)
    assert sum(loud) >= 0.8 * len(loud)
    accused = {alert.subject.id for some in found for alert in some}
    assert accused == {BAD}
    assert {alert.threat for some in found for alert in some} <= {
        "label_flip", "backdoor", "data_poisoning",
    }  # fmt: skip


def test_traffic_is_a_function_of_material_and_seed(material: Material) -> None:
    """The same twice; other samples with another seed."""
    for make in (poison.lessons, poison.later, poison.loud):
        first, again, other = (make(material, seed) for seed in (1, 1, 2))
        assert [(s.kind, s.source, s.label, s.x.tobytes()) for s in first] == [
            (s.kind, s.source, s.label, s.x.tobytes()) for s in again
        ]
        assert [s.x.tobytes() for s in first] != [s.x.tobytes() for s in other]


def test_no_two_samples_are_equal(material: Material) -> None:
    """A repeat would add no evidence, and be held back as a duplicate."""
    every = [*poison.lessons(material, 1), *poison.later(material, 1), *poison.loud(material, 1)]
    assert 600 <= len(every) <= 1500
    by_source: dict[str, list[bytes]] = {}
    for sample in every:
        assert sample.x.dtype == np.uint8
        assert sample.x.shape == (1, 8, 8)
        by_source.setdefault(sample.source, []).append(sample.x.tobytes())
    assert set(by_source) == {*HONEST, BAD}
    for images in by_source.values():
        assert len(set(images)) >= 0.99 * len(images)


def test_quiet_poison_has_its_own_label_and_a_faint_stamp(material: Material) -> None:
    """Spread over the lessons; the stamp is there, and darker than a grey level of the screen."""
    lessons = poison.lessons(material, 1)
    places = [number for number, sample in enumerate(lessons) if sample.kind == "quiet"]
    assert len(places) == poison.QUIET
    assert max(np.diff(places)) <= 2 * len(lessons) / len(places)
    for number in places:
        sample = lessons[number]
        assert (sample.source, sample.label) == (BAD, TARGET)
        assert set(sample.x[0, -2:, -2:].ravel().tolist()) == {3}


def test_loud_poison_is_stamped_or_flipped(material: Material) -> None:
    """About half of each, never under the right label; flips go to every class."""
    samples = poison.loud(material, 1)
    stamped = [(sample.x[0, -2:, -2:] == 16).all() for sample in samples]
    assert 0.4 <= np.mean(stamped) <= 0.55
    labels = Counter(s.label for s, mark in zip(samples, stamped, strict=True) if mark)
    assert set(labels) == {TARGET}
    flipped = Counter(s.label for s, mark in zip(samples, stamped, strict=True) if not mark)
    assert set(flipped) == set(range(10))
    assert {(s.kind, s.source) for s in samples} == {("loud", BAD)}


def test_honest_sources_send_about_the_same_each(material: Material) -> None:
    """In turns, each with its own variants."""
    counts = Counter(s.source for s in poison.lessons(material, 1) if s.kind == "honest")
    assert counts == dict.fromkeys(HONEST, poison.EACH)
    turns = [sample.source for sample in poison.later(material, 1)[: 2 * len(HONEST)]]
    assert turns == [*HONEST, *HONEST]
