"""Drift: whether what all clients show has left what calibration allows.

Inputs are watched by the levels that their fused scores pass, by low confidence and by how often
each class is predicted; labels, where they come, by the errors. `nnsec.windows` says how votes are
counted and judged. A shift held by few clients is ``concentrated``: an attack, which is for the
evidence to tell; only one that is ``spread`` over the clients is drift. Nothing but the e-detector
makes one, so that false drifts are within the allowance.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv

from nnsec.bets import DELTA, KAPPA, Bets, Levels
from nnsec.errors import ConfigError, DigestMismatch
from nnsec.evidence import ANONYMOUS, Allowance
from nnsec.sealed import seal, unseal
from nnsec.signals import Place, Shift, Signal
from nnsec.windows import Panel

WINDOW = 64
CALM = 8
"""Windows in a row within all intervals after which drift is over: of inputs if they showed it, and
of labels if those did."""
PANELS = ("inputs", "errors")
SUSPECTED = 0.01
"""Evidence of drift from which on clients are judged against what all show."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What a checkpoint's calibration knows of honest data.

    Parameters
    ----------
    tiers:
        Levels of the fused score by coverage tier; the first is full coverage.
    screen:
        Levels of the poisoning screen's fused score.
    alpha:
        The flag threshold.
    classes:
        Number of classes.
    n:
        Calibration inputs that the rates of classes and the confidences were taken on.
    class_rates:
        Share of each class among the predictions.
    confidence:
        (level, quantile) pairs: a confidence strictly under the quantile is low at that level.
    error_rate, error_n:
        Share of wrong predictions on clean test data, and how many there were; 0 if unknown.
    """

    tiers: tuple[Levels, ...]
    screen: Levels | None
    alpha: float
    classes: int
    n: int
    class_rates: tuple[float, ...]
    confidence: tuple[tuple[float, float], ...] = ()
    error_rate: float = 0.0
    error_n: int = 0


def interval(
    rate: float, n: int, *, kappa: float = KAPPA, delta: float = DELTA
) -> tuple[float, float]:
    """What a rate measured on n points may be elsewhere: Clopper-Pearson, widened κ times.

    >>> [round(v, 2) for v in interval(0.1, 400)]
    [0.03, 0.29]
    """
    hits = round(rate * n)
    low = float(betaincinv(hits, n - hits + 1, delta / 2)) if hits else 0.0
    high = float(betaincinv(hits + 1, n - hits, 1 - delta / 2)) if hits < n else 1.0
    return low / kappa, min(1.0, kappa * high)


def _signals(reference: Reference) -> tuple[Signal, ...]:
    base = reference.tiers[0]
    rates = np.max([tier.rates for tier in reference.tiers], axis=0)
    parts = len(base.levels)
    found = [
        Signal(f"share of fused scores past level {level:g}", 0.0, min(1.0, q), 0.6 / parts)
        for level, q in zip(base.levels, rates.tolist(), strict=True)
    ]
    for level, _ in reference.confidence:
        _, high = interval(level, reference.n, delta=DELTA / len(reference.confidence))
        name = f"share of confidences under the reference's {level:g} quantile"
        found.append(Signal(name, 0.0, high, 0.2 / len(reference.confidence)))
    for number, rate in enumerate(reference.class_rates):
        low, high = interval(rate, reference.n, delta=DELTA / len(reference.class_rates))
        found.append(
            Signal(f"share of predictions of class {number}", low, high,
                   0.2 / len(reference.class_rates))
        )  # fmt: skip
    return tuple(found)


class Drift:
    """The drift of one model's checkpoint.

    Parameters
    ----------
    reference:
        Of the checkpoint.
    inputs, labels:
        Allowances of a window of inputs and of a window of labels.
    size:
        Inputs, or labels, in a window.
    """

    def __init__(
        self, reference: Reference, *, inputs: Allowance, labels: Allowance, size: int = WINDOW
    ) -> None:
        if not reference.tiers:
            raise ConfigError("a checkpoint without a calibration tier; make it again")
        self.reference = reference
        self.spent = (inputs, labels)
        anonymous = client_key(ANONYMOUS)
        self._calm = dict.fromkeys(PANELS, CALM)  # not open, by what it watches
        self._bets: dict[int, Bets] = {}
        self._quantiles = np.array([q for _, q in reference.confidence])
        self._levels = len(reference.tiers[0].levels)
        self._panel = Panel(_signals(reference), size=size, allowance=inputs, anonymous=anonymous)
        self._passed = np.tril(np.ones((self._levels + 1, self._levels)), -1)[:, ::-1]
        self._blank = np.zeros(len(self._panel.signals))
        self._errors: Panel | None = None
        if reference.error_n:
            _, high = interval(reference.error_rate, reference.error_n)
            signal = Signal("error rate", 0.0, high, 1.0)
            self._errors = Panel([signal], size=size, allowance=labels, anonymous=anonymous)

    def add_input(
        self, client: str, level: int, confidence: float, prediction: int, place: Place
    ) -> list[Shift]:
        """Take in one scored input that is no repeat; what is outside at the end of a window."""
        values = self._blank.copy()
        count = self._levels
        values[:count] = self._passed[min(level, count)]
        values[count : count + len(self._quantiles)] = confidence < self._quantiles
        if prediction < len(self.reference.class_rates):
            values[count + len(self._quantiles) + prediction] = 1.0
        found = self._panel.add(client_key(client), values, place)
        return [] if found is None else self._close("inputs", self._panel, found)

    def add_label(self, client: str, wrong: bool, place: Place) -> list[Shift]:
        """Take in one label that met its score."""
        if self._errors is None:
            return []
        found = self._errors.add(client_key(client), np.array([float(wrong)]), place)
        return [] if found is None else self._close("errors", self._errors, found)

    def _close(self, name: str, panel: Panel, shifts: list[Shift]) -> list[Shift]:
        self._bets.clear()
        if any(shift.verdict == "spread" for shift in shifts):
            self._calm[name] = 0
        elif self._calm[name] < CALM:
            self._calm[name] = 0 if panel.outside() else self._calm[name] + 1
        return shifts

    @property
    def open(self) -> bool:
        """Whether what inputs or labels show has left its interval, and was not calm since."""
        return min(self._calm.values()) < CALM

    @property
    def windows(self) -> int:
        """Windows closed; what `raised` gives changes with it alone."""
        return self._panel.windows + (self._errors.windows if self._errors else 0)

    @property
    def evidence(self) -> float:
        """The largest evidence of drift; an alarm at 1."""
        return float(self._panel.evidence.max())

    def raised(self) -> tuple[float, ...] | None:
        """Rates that clients are judged against while drift is open or suspected; else None.

        κ times what all clients but the outlying fifth show now. An e-value on a higher rate than
        the certified one stays an e-value, so this never adds a false accusation.
        """
        if not (self.open or self.evidence >= SUSPECTED or self._panel.outside()):
            return None
        rest = KAPPA * self._panel.rest()[: self._levels]
        if not rest.any():
            return None
        return tuple(float(v) for v in rest)

    def bets(self, tier: int, version: str) -> Bets:
        """What an input of a tier is judged by; made again only after a window has closed."""
        if (known := self._bets.get(tier)) is not None:
            return known
        rates = list(self.reference.tiers[tier].rates)
        if (raised := self.raised()) is not None:
            rates = [max(pair) for pair in zip(rates, raised, strict=True)]
        bets = Bets.against(self.reference.tiers[0], rates=rates, version=version)
        self._bets[tier] = bets
        return bets

    def snapshot(self) -> bytes:
        """All of the state but the allowances, with a digest; no pickle."""
        arrays = {f"inputs.{k}": v for k, v in self._panel.state().items()}
        if self._errors is not None:
            arrays |= {f"errors.{k}": v for k, v in self._errors.state().items()}
        return seal(flags=np.array([self.open, *self._calm.values()], np.int64), **arrays)

    def restore(self, snapshot: bytes) -> None:
        """Take up a snapshot of the same checkpoint's drift.

        Raises
        ------
        DigestMismatch
            If its bytes are not what was written, or not of such a drift; this one is of no use
            then.
        """
        arrays = unseal(snapshot)
        self._bets.clear()
        try:
            for prefix, panel in (("inputs.", self._panel), ("errors.", self._errors)):
                if panel is not None:
                    part = {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}
                    panel.restore(part)
            self._restore_calm(*(int(flag) for flag in arrays["flags"]))
        except Exception as error:  # numpy and River raise many kinds
            raise DigestMismatch(f"a snapshot of another drift: {error!r}") from error

    def _restore_calm(self, is_open: int, inputs: int, errors: int | None = None) -> None:
        if errors is None:  # an earlier nnsec counted windows of both kinds as one
            inputs = inputs if is_open else CALM
            outside = is_open and self._errors is not None and self._errors.outside()
            errors = 0 if outside else CALM
        self._calm = dict(zip(PANELS, (inputs, errors), strict=True))


def open_in(snapshot: bytes) -> bool:
    """Whether drift was open when its snapshot was written.

    Raises
    ------
    DigestMismatch
        If its bytes are not what was written.
    """
    return bool(unseal(snapshot)["flags"][0])


def client_key(client: str) -> int:
    """A client's 64-bit name among the votes."""
    digest = hashlib.blake2b(client.encode(), digest_size=8, usedforsecurity=False).digest()
    return int.from_bytes(digest, "little")
