"""The owner's view of a model: what opens an episode, what it says, and that it resumes exactly."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from nnsec import episodes as module
from nnsec import wording
from nnsec.bets import Levels
from nnsec.drift import WINDOW, Reference
from nnsec.episodes import QUIET_MS, RESEND_MS, Episodes, Report
from nnsec.errors import DigestMismatch, SchemaError
from nnsec.sealed import seal, unseal
from nnsec.settings import Budget, PolicyTable
from nnsec.signals import Place
from nnsec.versions import REPLACED_MS, VERSIONS
from nnsec.watch import Watch
from schemas.alert import Alert
from schemas.base import SEVERITIES, from_millis
from schemas.summary import INPUT_ROW, LABEL_ROW, SAMPLE_ROW, Summary
from schemas.topics import DAY_MS

LOG = uuid.UUID(int=9)
LEVELS = Levels.certified(400)
REFERENCE = Reference(
    (LEVELS,), LEVELS, 0.01, 10, 400, (0.1,) * 10, ((0.03, 0.3), (0.1, 0.5)), 0.03, 300
)
UNSCREENED = Reference((LEVELS,), None, 0.01, 10, 400, (0.1,) * 10)
REASONS = ("near_duplicate", "label_disagreement", "trigger")


class Feed:
    """Writes summaries whose positions go on from one to the next."""

    def __init__(self) -> None:
        self.offset = 0
        self.time = 0

    def make(
        self, kind: Any, rows: Sequence[tuple[str, dict[str, Any]]], *, version: str = "1"
    ) -> Summary:
        dtype = {"input": INPUT_ROW, "sample": SAMPLE_ROW, "label": LABEL_ROW}[kind]
        topic = {"input": "inference.inputs", "sample": "training.samples", "label": "labels"}[kind]
        names: dict[str, int] = {}
        found = np.zeros(len(rows), dtype)
        for i, (subject, values) in enumerate(rows):
            found[i]["offset"] = self.offset
            found[i]["subject"] = names.setdefault(subject, len(names))
            if kind != "label":
                found[i]["fingerprint"] = self.offset + 1
            if kind == "input":
                found[i]["prediction"], found[i]["confidence"] = self.offset % 10, 0.9
            for name, value in values.items():
                found[i][name] = value
            self.offset += 1
        return Summary.pack(
            found, kind=kind, log=LOG, topic=topic, model="digits", model_version=version,
            time=from_millis(self.time), subjects=tuple(names), reasons=REASONS,
        )  # fmt: skip

    def inputs(self, count: int, level: int, *, clients: int = 12, **more: Any) -> Summary:
        rows = [(f"c{i % clients}", {"level": level}) for i in range(count)]
        return self.make("input", rows, **more)

    def attack(self, count: int, client: str = "mallory", level: int = 5) -> Summary:
        return self.make("input", [(client, {"level": level})] * count)


def watch() -> Watch:
    return Watch("digits", Budget())


def test_an_attacker_is_accused_and_honest_clients_are_not() -> None:
    """One alert, with the positions of its rows and the figures behind it."""
    watched, feed = watch(), Feed()
    assert watched.apply(feed.inputs(120, 0), REFERENCE) == []
    (alert,) = watched.apply(feed.attack(6), REFERENCE)
    assert (alert.threat, alert.subject.kind, alert.subject.id) == ("evasion", "client", "mallory")
    assert (alert.seq, alert.severity) == (0, "high")
    assert alert.evidence >= 1
    assert 2 <= alert.counts["inputs"] == alert.counts["flagged"] <= 6
    assert all(
        topic == "inference.inputs" and offset >= 120 for topic, _, offset, _ in alert.positions
    )
    assert "client 'mallory'" in alert.explanation
    assert alert.atlas


@pytest.mark.parametrize(
    ("reasons", "threat"), [(0, "data_poisoning"), (1, "data_poisoning"), (2, "label_flip"),
                            (4, "backdoor"), (6, "backdoor")]
)  # fmt: skip
def test_a_source_is_accused_of_what_most_of_its_samples_show(reasons: int, threat: str) -> None:
    """The reasons of the screens name the threat."""
    watched, feed = watch(), Feed()
    rows = [("s", {"level": 5, "reasons": reasons})] * 8
    (alert,) = watched.apply(feed.make("sample", rows), REFERENCE)
    assert (alert.threat, alert.subject.kind, alert.subject.id) == (threat, "source", "s")
    assert "samples" in alert.counts


def test_without_a_screen_samples_accuse_nobody() -> None:
    """A checkpoint that has none says nothing of samples."""
    watched, feed = watch(), Feed()
    assert watched.apply(feed.make("sample", [("s", {"level": 5})] * 20), UNSCREENED) == []


def test_anonymous_and_repeats_accuse_nobody() -> None:
    """Nobody is behind the one, and the others are one input."""
    watched, feed = watch(), Feed()
    assert watched.apply(feed.attack(50, "anonymous"), REFERENCE) == []
    same = feed.make("input", [("frame", {"level": 5, "fingerprint": 7})] * 50)
    assert watched.apply(same, REFERENCE) == []
    again = feed.make("sample", [("frame", {"level": 5, "fingerprint": 7})] * 50)
    assert watched.apply(again, REFERENCE) == []


def test_a_redelivered_row_changes_nothing() -> None:
    """Whole summaries that come again, or that overlap with what was applied."""
    watched, feed = watch(), Feed()
    first = feed.attack(3)
    watched.apply(first, REFERENCE)
    before = watched.snapshot()
    watched.apply(first, REFERENCE)
    assert watched.redelivered == 3
    watched.redelivered = 0
    assert watched.snapshot() == before


def test_rows_that_come_again_in_other_summaries_move_no_episode() -> None:
    """Neither by what the rows before them led to, nor by the time that their summary names."""
    watched, feed = watch(), Feed()
    watched.apply(feed.attack(6), REFERENCE)
    feed.time = RESEND_MS
    attack = feed.attack(3)
    watched.apply(attack, REFERENCE)
    before = watched.snapshot()
    fields = attack.model_dump(exclude={"rows", "time"})
    later = from_millis(RESEND_MS + QUIET_MS)
    parts = (Summary.pack(attack.unpack()[i : i + 1], time=later, **fields) for i in range(3))
    assert [alert for part in parts for alert in watched.apply(part, REFERENCE)] == []
    watched.redelivered = 0
    assert watched.snapshot() == before


@pytest.mark.parametrize("size", [1, 3, 7])
def test_how_rows_are_cut_into_summaries_does_not_matter(size: int) -> None:
    """The same rows in other summaries give the same alerts and the same state."""
    whole, cut = watch(), watch()
    feed = Feed()
    summary = feed.make("input", [("mallory", {"level": 5})] * 6 + [("a", {"level": 0})] * 80)
    rows = summary.unpack()
    expected = whole.apply(summary, REFERENCE)
    fields = summary.model_dump(exclude={"rows"})
    found: list[Alert] = []
    for start in range(0, len(rows), size):
        found += cut.apply(Summary.pack(rows[start : start + size], **fields), REFERENCE)
    assert found == expected
    assert cut.snapshot() == whole.snapshot()


def test_a_flood_of_what_is_plain_hides_nobody() -> None:
    """After ten times what a day expects, a client, a source and a drift are still found."""
    budget = Budget(expected_inputs_per_day=1000, expected_samples_per_day=100)
    watched, feed = Watch("digits", budget), Feed()
    assert watched.apply(feed.inputs(10_000, 0), REFERENCE) == []
    assert watched.apply(feed.make("sample", [("plain", {})] * 1000), REFERENCE) == []
    spent = [allowance.traffic for allowance in watched.allowances.values()]
    assert spent == pytest.approx([10, 10, 10, 0], rel=0.01)
    (client,) = watched.apply(feed.attack(8), REFERENCE)
    (source,) = watched.apply(feed.make("sample", [("s", {"level": 5})] * 8), REFERENCE)
    assert (client.subject.id, source.subject.id) == ("mallory", "s")
    alerts = watched.apply(feed.inputs(8 * WINDOW, 5), REFERENCE)
    assert "drift" in {alert.threat for alert in alerts}


def test_an_episode_is_told_every_ten_seconds_and_ends_after_a_quiet_minute() -> None:
    """By stream time; the last message has the totals, and what comes later is a new episode."""
    watched, feed = watch(), Feed()
    (first,) = watched.apply(feed.attack(5), REFERENCE)
    feed.time = RESEND_MS - 1
    assert watched.apply(feed.attack(20), REFERENCE) == []
    feed.time = RESEND_MS
    (second,) = watched.apply(feed.attack(1), REFERENCE)
    assert (second.episode, second.seq) == (first.episode, 1)
    assert second.counts["inputs"] == first.counts["inputs"] + 20
    assert len(second.positions) <= 100
    assert second.time - first.time == timedelta(seconds=10)
    feed.time = RESEND_MS + QUIET_MS
    (last,) = watched.apply(feed.inputs(1, 0), REFERENCE)
    assert (last.episode, last.seq) == (first.episode, 2)
    (fresh,) = watched.apply(feed.attack(6), REFERENCE)
    assert fresh.episode != first.episode
    assert fresh.seq == 0


def test_only_what_is_spread_over_the_clients_is_drift() -> None:
    """A few clients' shift is counted as concentrated and opens nothing."""
    watched, feed = watch(), Feed()
    rows = [(f"c{i % 12}", {"level": 5 if i % 12 < 2 else 0}) for i in range(20 * WINDOW)]
    alerts = watched.apply(feed.make("input", rows), REFERENCE)
    assert {alert.subject.id for alert in alerts} == {"c0", "c1"}
    assert watched.concentrated > 0
    assert not watched.drifting
    alerts = watched.apply(feed.inputs(8 * WINDOW, 5), REFERENCE)
    (drift,) = [alert for alert in alerts if alert.threat == "drift"]
    assert (drift.subject.kind, drift.subject.id) == ("model", "digits")
    assert drift.severity == "high"
    assert "Verdict spread" in drift.explanation
    assert watched.drifting


def test_while_drift_is_open_clients_are_judged_by_what_all_show() -> None:
    """Nobody is accused of what all do; the episode lasts as long as the drift, however quiet."""
    watched, feed = watch(), Feed()
    watched.apply(feed.inputs(4 * WINDOW, 0), REFERENCE)
    found: list[Alert] = []
    for _ in range(30):
        feed.time += 30_000
        found += watched.apply(feed.inputs(WINDOW, 2), REFERENCE)
    assert {alert.threat for alert in found} == {"drift"}
    assert len({alert.episode for alert in found}) == 1
    assert [alert.seq for alert in found] == list(range(len(found)))
    assert found[-1].counts["crossings"] > 1


def test_an_accusation_while_drift_is_open_says_so() -> None:
    """The guarantee for single inputs is void then."""
    watched, feed = watch(), Feed()
    rows = [(f"c{i % 12}", {"level": 3 if i % 3 else 0}) for i in range(12 * WINDOW)]
    watched.apply(feed.make("input", rows), REFERENCE)
    assert watched.drifting
    found = watched.apply(feed.attack(60), REFERENCE)
    assert any("guarantee for single inputs is void" in a.explanation for a in found
               if a.subject.id == "mallory")  # fmt: skip


def test_drift_of_inputs_takes_no_guarantee_from_samples() -> None:
    """Neither when a source is accused nor when its evidence crosses again."""
    watched, feed, _ = drifted()
    rows = [("s", {"level": 5, "reasons": 4})] * 20
    found = watched.apply(feed.make("sample", rows), REFERENCE)
    feed.time += RESEND_MS
    found += watched.apply(feed.make("sample", rows), REFERENCE)
    accused = [alert for alert in found if alert.subject.id == "s"]
    assert accused[-1].counts["crossings"] > 1
    assert not any("void" in alert.explanation for alert in accused)


def test_labels_that_show_errors_of_all_are_drift() -> None:
    """The error rate is watched by itself, at the label's position."""
    watched, feed = watch(), Feed()
    watched.apply(feed.inputs(1, 0), REFERENCE)
    rows = [(f"c{i % 12}", {"prediction": 1, "label": i % 2}) for i in range(12 * WINDOW)]
    alerts = watched.apply(feed.make("label", rows), REFERENCE)
    assert [alert.threat for alert in alerts] == ["drift"]
    assert "error rate" in alerts[0].explanation
    assert "labels/0/" in alerts[0].explanation


def test_two_checkpoints_are_judged_side_by_side() -> None:
    """Around a swap two score; older ones are forgotten."""
    watched, feed = watch(), Feed()
    for version in ("1", "2", "1", "3"):
        watched.apply(feed.inputs(WINDOW, 0, version=version), REFERENCE)
    assert list(watched._versions) == ["1", "3"]
    assert len(list(watched._versions)) == VERSIONS


def test_a_summary_that_cannot_be_read_changes_nothing() -> None:
    """Neither the time nor the positions."""
    watched, feed = watch(), Feed()
    before = watched.snapshot()
    feed.time = 10**6
    bad = feed.inputs(3, 0).model_copy(update={"subjects": ()})
    with pytest.raises(SchemaError):
        watched.apply(bad, REFERENCE)
    assert watched.snapshot() == before


def story() -> list[Summary]:
    feed = Feed()
    found = []
    for i in range(24):
        feed.time += 4000
        found.append(feed.inputs(40, 5 if i > 12 else 0, version=str(1 + i // 20)))
        found.append(feed.attack(4))
        found.append(feed.make("sample", [("s", {"level": 4, "reasons": 4})] * 4))
        found.append(feed.make("label", [(f"c{j}", {"prediction": 1}) for j in range(9)]))
    return found


@pytest.mark.parametrize("cut", [1, 10, 60, 81, 95])
def test_a_snapshot_resumes_bit_identically(cut: int) -> None:
    """In the middle of an attack, of a drift and of a swap, all that follows is the same."""
    summaries = story()
    whole, half, resumed = watch(), watch(), watch()
    for summary in summaries[:cut]:
        assert whole.apply(summary, REFERENCE) == half.apply(summary, REFERENCE)
    resumed.restore(half.snapshot())
    assert resumed.snapshot() == half.snapshot()
    later = [a for s in summaries[cut:] for a in whole.apply(s, REFERENCE)]
    assert [a for s in summaries[cut:] for a in resumed.apply(s, REFERENCE)] == later
    assert resumed.snapshot() == whole.snapshot()
    assert cut > 90 or len({alert.threat for alert in later}) == 3


def again(watched: Watch, budget: Budget | None = None) -> Watch:
    """The next life: what a worker has after a kill."""
    resumed = Watch("digits", budget or Budget())
    resumed.restore(watched.snapshot())
    return resumed


def drawn(seed: int, count: int = 80) -> list[Summary]:
    """Rows of all kinds, of a new checkpoint every 30 summaries, seconds apart."""
    rng, feed, found = np.random.default_rng(seed), Feed(), []
    for i in range(count):
        feed.time += int(rng.integers(0, 8000))
        size, level, kind = int(rng.integers(1, 90)), int(rng.integers(0, 6)), rng.integers(0, 4)
        if kind == 0:
            found.append(feed.attack(1 + size % 4, f"m{size % 3}"))
        elif kind == 1:
            rows = [(f"s{size % 3}", {"level": level, "reasons": size % 8})] * (1 + size % 8)
            found.append(feed.make("sample", rows))
        elif kind == 2:
            labels = [(f"c{j}", {"prediction": size % 2}) for j in range(20)]
            found.append(feed.make("label", labels, version=str(1 + i // 31)))
        else:
            found.append(feed.inputs(size, level // 2, version=str(1 + i // 30)))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_a_restart_after_every_summary_changes_nothing(seed: int) -> None:
    """Alerts and state are those of one life, whichever rows come first after a restart."""
    whole, resumed = watch(), watch()
    for summary in drawn(seed):
        resumed = again(resumed)
        assert resumed.apply(summary, REFERENCE) == whole.apply(summary, REFERENCE)
    assert resumed.snapshot() == whole.snapshot()


def test_a_drift_lasts_over_a_restart() -> None:
    """Its episode goes on, though no row of its checkpoint has come since."""
    watched, feed = watch(), Feed()
    watched.apply(feed.inputs(4 * WINDOW, 0), REFERENCE)
    found = watched.apply(feed.inputs(6 * WINDOW, 5), REFERENCE)
    resumed = again(watched)
    assert resumed.drifting
    feed.time += QUIET_MS + 1000
    found += resumed.apply(feed.inputs(WINDOW, 5), REFERENCE)
    drift = [alert for alert in found if alert.threat == "drift"]
    assert [(a.episode, a.seq) for a in drift] == [(drift[0].episode, n) for n in range(2)]


def test_no_restart_hands_out_a_day_of_the_budget_again() -> None:
    """Nor does a late row of a checkpoint whose drift was written on an earlier day."""
    budget = Budget(expected_inputs_per_day=10.0 * WINDOW)
    watched, feed = Watch("digits", budget), Feed()
    watched.apply(feed.inputs(WINDOW, 0), REFERENCE)
    feed.time = 5 * DAY_MS
    watched.apply(feed.inputs(4 * WINDOW, 0, version="2"), REFERENCE)
    for _ in range(2):
        watched = again(watched, budget)
        watched.apply(feed.inputs(4 * WINDOW, 0, version="2"), REFERENCE)
        watched.apply(feed.inputs(1, 0), REFERENCE)
    assert watched._versions.state()["spent"][0] == (5, 12)  # what came over all three


def test_checkpoints_do_not_pile_up_over_restarts() -> None:
    """The same two are kept as in one life, and one that was forgotten begins anew."""
    whole, resumed, feed = watch(), watch(), Feed()
    for version in ("1", "2", "3", "1", "4", "2", "2", "1"):
        resumed = again(resumed)
        summary = feed.inputs(WINDOW + 3, 0, version=version)
        assert resumed.apply(summary, REFERENCE) == whole.apply(summary, REFERENCE)
        assert resumed.snapshot() == whole.snapshot()
    assert list(resumed._versions) == ["2", "1"]


def drifted() -> tuple[Watch, Feed, Alert]:
    """Checkpoint 1 while its drift is open, and the drift's first alert."""
    watched, feed = watch(), Feed()
    watched.apply(feed.inputs(4 * WINDOW, 0), REFERENCE)
    found = watched.apply(feed.inputs(8 * WINDOW, 5), REFERENCE)
    assert watched.drifting
    return watched, feed, next(alert for alert in found if alert.threat == "drift")


def test_the_drift_of_a_replaced_checkpoint_ends() -> None:
    """After a minute in which the next one alone scored; what that shows later is its own drift."""
    watched, feed, first = drifted()
    for _ in range(REPLACED_MS // 10_000 + 2):
        feed.time += 10_000
        watched.apply(feed.inputs(8, 0, version="2"), REFERENCE)
        watched = again(watched)
    assert not watched.drifting
    assert watched.episodes.find("drift", "digits") is None
    rows = [("mallory", {"level": 5})] * 6
    (accused,) = watched.apply(feed.make("input", rows, version="2"), REFERENCE)
    assert "void" not in accused.explanation
    found = watched.apply(feed.inputs(20 * WINDOW, 5, version="2"), REFERENCE)
    (fresh,) = {a.episode for a in found if a.threat == "drift"}
    assert fresh != first.episode


@pytest.mark.parametrize("how", ["input", "label", "jump", "short"])
def test_a_drift_does_not_end_while_its_checkpoint_may_score(how: str) -> None:
    """Not while its own inputs come, by another's labels, after a pause, or within a minute."""
    watched, feed, _ = drifted()
    watched.apply(feed.inputs(1, 0, version="2"), REFERENCE)
    for _ in range(10):
        feed.time += {"jump": 10 * REPLACED_MS, "short": REPLACED_MS // 11}.get(how, 50_000)
        if how == "input":
            watched.apply(feed.inputs(1, 0), REFERENCE)
        if how == "label":
            watched.apply(feed.make("label", [("c", {})], version="2"), REFERENCE)
        elif how != "jump":
            watched.apply(feed.inputs(1, 0, version="2"), REFERENCE)
    if how == "jump":
        watched.apply(feed.inputs(1, 0), REFERENCE)
    assert watched.drifting


def test_a_checkpoint_that_scores_again_drifts_on() -> None:
    """A rollback to it brings its drift back at once."""
    watched, feed, _ = drifted()
    for _ in range(2):
        feed.time += REPLACED_MS
        watched.apply(feed.inputs(1, 0, version="2"), REFERENCE)
    assert not watched.drifting
    watched.apply(feed.inputs(1, 0), REFERENCE)
    assert watched.drifting


def test_late_labels_of_a_replaced_checkpoint_wipe_no_evidence() -> None:
    """Its errors are told, and what clients do to the next one still counts."""
    watched, feed = watch(), Feed()
    watched.apply(feed.inputs(1, 0), REFERENCE)
    for _ in range(2):
        feed.time += REPLACED_MS
        watched.apply(feed.inputs(1, 0, version="2"), REFERENCE)
    watched.apply(feed.make("input", [("mallory", {"level": 5})], version="2"), REFERENCE)
    evidence = watched.clients.evidence("mallory")
    rows = [(f"c{i % 12}", {"prediction": 1, "label": i % 2}) for i in range(12 * WINDOW)]
    (alert,) = watched.apply(feed.make("label", rows), REFERENCE)
    assert (alert.threat, alert.model_version) == ("drift", "1")
    assert watched.clients.evidence("mallory") == evidence > 0
    assert not watched.drifting


def test_labels_of_forgotten_checkpoints_are_counted_and_change_nothing() -> None:
    """They bring none back, and take no place from the one that serves; after a restart neither."""
    watched, quiet, feed = watch(), watch(), Feed()
    expected: list[Alert] = []
    found: list[Alert] = []
    for _ in range(40):
        inputs = feed.inputs(WINDOW // 4, 5, version="3")
        expected += quiet.apply(inputs, REFERENCE)
        found += watched.apply(inputs, REFERENCE)
        for version in ("1", "2"):
            watched.apply(feed.make("label", [("c", {})], version=version), REFERENCE)
        watched = again(watched)
    assert found == expected
    assert watched.drifting
    assert list(watched._versions) == ["3"]
    assert watched.late_labels == 80


def test_labels_do_not_say_which_checkpoint_goes() -> None:
    """Of two that are kept, the one longest without an input."""
    watched, feed = watch(), Feed()
    for version in ("1", "2"):
        watched.apply(feed.inputs(1, 0, version=version), REFERENCE)
    watched.apply(feed.make("label", [("c", {})]), REFERENCE)
    watched.apply(feed.inputs(1, 0, version="3"), REFERENCE)
    assert list(watched._versions) == ["2", "3"]
    assert watched.late_labels == 0


def test_a_checkpoint_that_was_forgotten_is_judged_anew() -> None:
    """By its own rates, and not by those that were raised for its earlier drift."""
    watched, feed = watch(), Feed()
    labels = [(f"c{i % 12}", {"prediction": 1, "label": 1}) for i in range(WINDOW)]
    rows = [(f"c{i % 12}", {"level": 3}) for i in range(4 * WINDOW)]
    watched.apply(feed.make("input", rows + rows[:1]), REFERENCE)
    for version in ("2", "3"):
        watched.apply(feed.inputs(1, 0, version=version), REFERENCE)
    for _ in range(4):
        watched.apply(feed.make("label", labels), REFERENCE)
    resumed, summary = again(watched), feed.attack(60, level=3)
    assert watched.apply(summary, REFERENCE) == resumed.apply(summary, REFERENCE)
    assert watched.snapshot() == resumed.snapshot()


def test_a_snapshot_of_an_earlier_nnsec_is_taken_up() -> None:
    """It held drifts of more checkpoints, and in each the allowance of when it was written."""
    watched, feed = watch(), Feed()
    for version in ("1", "2"):
        watched.apply(feed.inputs(WINDOW + 9, 0, version=version), REFERENCE)
    parts = {name: array.tobytes() for name, array in unseal(watched.snapshot()).items()}
    state = json.loads(parts["state"])
    for name in ("drift0", "drift1"):
        arrays = unseal(parts[name])
        for prefix in ("inputs.", "errors."):
            counters = arrays[prefix + "counters"]
            arrays[prefix + "counters"] = np.array([*counters, 3, 1], np.int64)
        parts[name] = seal(**arrays)
    parts["drift2"], parts["drift1"] = parts["drift1"], parts["drift0"]
    state["drifts"] = ["0", "1", "2"]
    del state["others"]
    parts["state"] = json.dumps(state).encode()
    resumed = watch()
    resumed.restore(seal(**{name: np.frombuffer(raw, np.uint8) for name, raw in parts.items()}))
    for version in ("1", "2"):
        summary = feed.inputs(WINDOW, 0, version=version)
        assert resumed.apply(summary, REFERENCE) == watched.apply(summary, REFERENCE)
    assert resumed.snapshot() == watched.snapshot()


@pytest.mark.parametrize("at", [0, 33, 500, -1])
def test_a_changed_snapshot_is_refused(at: int) -> None:
    """Whichever byte it is; nothing was taken up then."""
    watched, other = watch(), watch()
    watched.apply(Feed().inputs(100, 1), REFERENCE)
    raw = bytearray(watched.snapshot())
    raw[at] ^= 1
    before = other.snapshot()
    with pytest.raises(DigestMismatch):
        other.restore(bytes(raw))
    assert other.snapshot() == before


def test_a_drift_that_is_none_begins_anew(caplog: pytest.LogCaptureFixture) -> None:
    """Its bytes wait until an input comes; then it is said, and all else goes on."""
    watched, feed = watch(), Feed()
    watched.apply(feed.inputs(3 * WINDOW, 0), REFERENCE)
    parts = unseal(watched.snapshot())
    for odd in (
        seal(flags=np.array([0, 0], np.int64)),
        seal(
            **{
                n: a[:1] if n == "inputs.m" else a
                for n, a in unseal(parts["drift0"].tobytes()).items()
            }
        ),
    ):
        caplog.clear()
        resumed = watch()
        resumed.restore(seal(**{**parts, "drift0": np.frombuffer(odd, np.uint8)}))
        resumed.apply(feed.inputs(WINDOW, 0), REFERENCE)
        assert "begins anew" in caplog.text
        assert resumed._versions.drift("1", REFERENCE).windows == 1


def test_too_many_episodes_end_the_one_longest_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a flood of subjects takes bounded memory."""
    monkeypatch.setattr(module, "MOST", 2)
    episodes = Episodes("m", lambda episode: Report("evasion", "low", {}, "text"))
    for i, name in enumerate("abc"):
        where: Place = (str(LOG), "t", 0, i, 0, i)
        opened = episodes.open("evasion", "client", name, "1", 1.0, where)
        assert episodes.send(opened, i).id == uuid.uuid5(opened.id, "0")
    assert [episodes.find("evasion", name) is None for name in "abc"] == [True, False, False]


@pytest.mark.parametrize(
    ("rule", "share", "inputs", "expected"),
    [
        ("evasion", 0.05, 100, "medium"), ("evasion", 0.1, 100, "high"),
        ("evasion", 0.5, 19, "high"), ("evasion", 0.5, 20, "critical"),
        ("poisoning", 0.02, 100, "high"), ("poisoning", 0.5, 19, "high"),
        ("poisoning", 0.5, 20, "critical"),
    ],
)  # fmt: skip
def test_severity_follows_share_and_number(
    rule: str, share: float, inputs: int, expected: str
) -> None:
    """Many of many are worse than few of few; a source is never below `high`."""
    assert wording.severity(rule, share, inputs) == expected


def test_a_source_that_hides_poison_among_clean_samples_is_acted_on() -> None:
    """4 % of its samples are poison; its alerts reach the severity that a policy asks for."""
    levels = Levels.certified(2000)
    reference = Reference((levels,), levels, 0.01, 10, 2000, (0.1,) * 10)
    watched, feed = watch(), Feed()
    rows = [("s", {"level": 5 if i % 25 == 0 else 0}) for i in range(1000)]
    alerts = watched.apply(feed.make("sample", rows), reference)
    assert alerts
    assert alerts[-1].counts["flagged_share"] < wording.HIGH
    wanted = SEVERITIES.index(PolicyTable().severity)
    assert all(SEVERITIES.index(alert.severity) >= wanted for alert in alerts)


def test_the_telling_level_is_the_least_likely_one() -> None:
    """By likelihood, and the nearest to its rate where none is above."""
    assert wording.telling(10, (10, 10, 10, 10, 10), LEVELS.rates) == 0
    assert wording.telling(10, (5, 5, 10, 10, 10), LEVELS.rates) == 2
    assert wording.telling(100, (0, 0, 0, 60, 60), LEVELS.rates) == 3
    assert wording.telling(10, (0, 0, 0, 0, 10), LEVELS.rates) == 4
    assert wording.telling(100, (0, 0, 0, 0, 1), (0.1, 0.2, 0.3, 0.4, 0.5)) == 0
