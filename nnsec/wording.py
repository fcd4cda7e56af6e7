"""Alerts in plain words, with the figures behind them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nnsec.episodes import Episode, Report
from nnsec.evidence import Levels
from nnsec.signals import Shift
from schemas.base import Severity, format_time, from_millis
from schemas.threats import Threat

TAGS: tuple[Threat, ...] = ("data_poisoning", "label_flip", "backdoor")
HIGH = 0.1
"""Share of a client's inputs past the telling level from which on its alert is ``high``."""
CRITICAL = 0.5
CRITICAL_INPUTS = 20
"""… and ``critical``, with at least so many inputs."""


def tag(reasons: Sequence[str]) -> int:
    """What the named reasons of a sample speak for: an index into `TAGS`; −1 for nothing."""
    if not reasons:
        return -1
    if any("trigger" in reason for reason in reasons):
        return 2
    if any("label" in reason or "flip" in reason for reason in reasons):
        return 1
    return 0


def telling(inputs: int, passed: Sequence[int], rates: Sequence[float]) -> int:
    """Index of the level whose share is furthest above its rate, by likelihood."""

    def weight(index: int) -> float:
        share, rate = passed[index] / max(inputs, 1), min(rates[index], 0.999)
        if share <= rate:
            return share - rate
        rest = (1 - share) * math.log((1 - share) / (1 - rate)) if share < 1 else 0.0
        return share * math.log(share / rate) + rest

    return max(range(len(rates)), key=weight)


def severity(rule: str, share: float, inputs: int) -> Severity:
    """By the share of the inputs past the telling level; many inputs for the highest.

    A source is never below ``high``: the bound has kept false accusations within the budget, and
    a share of 2 % is enough for a backdoor, while clean samples beside it cost nothing.
    """
    if share >= CRITICAL and inputs >= CRITICAL_INPUTS:
        return "critical"
    return "high" if rule == "poisoning" or share >= HIGH else "medium"


def accusation(episode: Episode, levels: Levels, budget: float) -> Report:
    """The report on a client or a source."""
    index = telling(episode.inputs, episode.passed, levels.rates)
    flagged, rate = episode.passed[index], levels.rates[index]
    share = flagged / max(episode.inputs, 1)
    what = "inputs" if episode.rule == "evasion" else "samples"
    threat: Threat = "evasion"
    if episode.rule == "poisoning":
        found = episode.tags[: len(TAGS)]
        threat = TAGS[max(range(len(TAGS)), key=lambda i: (found[i], i))] if any(found) else TAGS[0]
    counts: dict[str, float] = {
        what: episode.inputs, "crossings": episode.crossings, "flagged": flagged,
        "flagged_share": share, "expected_share_at_most": rate,
    }  # fmt: skip
    for level, passed, bound in zip(levels.levels, episode.passed, levels.rates, strict=True):
        counts[f"flagged_{level:g}"] = passed
        counts[f"expected_share_at_most_{level:g}"] = bound
    if episode.rule == "poisoning":
        counts |= {name: float(n) for name, n in zip(TAGS, episode.tags, strict=False)}
    text = (
        f"{episode.kind} {episode.subject!r}: {flagged} of {episode.inputs} {what} ({share:.0%}) "
        f"pass the level {levels.levels[index]:g}, which honest {what} pass at most {rate:.1%} of "
        f"the time (certified from {levels.n} calibration points). Evidence {episode.evidence:.3g} "
        f"where the bound is 1, in a budget of {budget:g} falsely accused subjects a day."
    )
    if episode.void:
        text += (
            " Drift is open: the guarantee for single inputs is void, and this client was judged"
            " against what all clients show now."
        )
    return Report(threat, severity(episode.rule, share, episode.inputs), counts, text)


def drift_figures(shifts: Sequence[Shift]) -> tuple[dict[str, float], str]:
    """Figures and words of what moved; the strongest first."""
    ordered = sorted(shifts, key=lambda s: -s.evidence)
    first = ordered[0]
    counts: dict[str, float] = {
        "signals": len(shifts), "clients": first.clients, "clients_outside": first.moved,
        "pooled": first.pooled, "pooled_without_outliers": first.rest,
        "expected_at_least": first.signal.low, "expected_at_most": first.signal.high,
        "outliers_share_of_excess": first.top_share, "since_ms": first.since[5],
        "since_partition": first.since[2], "since_offset": first.since[3],
    }  # fmt: skip
    parts = []
    for shift in ordered:
        past = max(shift.pooled - shift.signal.high, shift.signal.low - shift.pooled)
        parts.append(
            f"{shift.signal.name} is {shift.pooled:.3f} where calibration allows "
            f"{shift.signal.low:.3f} to {shift.signal.high:.3f}, {past:.3f} past it "
            f"({shift.rest:.3f} without the fifth of the clients that stands out most, which "
            f"holds {shift.top_share:.0%} of the excess; {shift.moved} of {shift.clients} clients "
            f"are outside; found by {', '.join(shift.by)})"
        )
    _, topic, partition, offset, _, time = first.since
    text = (
        f"Verdict spread: it shows with most clients. {'; '.join(parts)}. Since about "
        f"{topic}/{partition}/{offset} at {format_time(from_millis(time))}. While it is open, "
        "clients are judged against what all show now; the guarantee for single inputs is void."
    )
    return counts, text


def drift_report(episode: Episode) -> Report:
    """The report on a drift: ``high`` from twice the interval's bound, else ``medium``."""
    facts = episode.facts
    far = facts["pooled"] >= min(2 * facts["expected_at_most"], 0.9)
    counts = {**facts, "crossings": float(episode.crossings)}
    return Report("drift", "high" if far else "medium", counts, episode.text)
