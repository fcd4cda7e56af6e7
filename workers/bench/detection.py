"""How well each detector, and all of them fused, tell attacks from honest inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta
from sklearn.metrics import roc_auc_score

from nnsec.calibration import rank_p_value
from nnsec.network import Network
from nnsec.splits import Splits
from nnsec.suite import Suite
from workers.demo.material import EPSILONS, Attack, Material

FUSED = "fused"
"""The name under which the score that decides is listed."""
HONEST_SEED, ATTACK_SEED = 1, 2


@dataclass(frozen=True, slots=True)
class Rate:
    """Hits among trials, with an interval of 95 % (Clopper and Pearson 1934).

    The interval takes trials for independent; several may come from one image.

    >>> Rate(98, 100)
    Rate(hits=98, n=100)
    >>> [round(bound, 3) for bound in Rate(98, 100).interval]
    [0.93, 0.998]
    """

    hits: int
    n: int

    @property
    def value(self) -> float:
        """The share, 0 if there were no trials."""
        return self.hits / self.n if self.n else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper bound of the rate."""
        low = float(beta.ppf(0.025, self.hits, self.n - self.hits + 1)) if self.hits else 0.0
        high = (
            float(beta.ppf(0.975, self.hits + 1, self.n - self.hits)) if self.hits < self.n else 1.0
        )
        return low, high

    def plus(self, other: Rate) -> Rate:
        """Both taken together."""
        return Rate(self.hits + other.hits, self.n + other.n)

    def figures(self) -> dict[str, Any]:
        """For programs."""
        low, high = self.interval
        return {"flagged": self.hits, "n": self.n, "rate": self.value, "interval": [low, high]}


@dataclass(frozen=True, slots=True)
class Line:
    """One detector at one ε.

    Parameters
    ----------
    auroc:
        Probability that an attack looks more suspicious than an honest input, mean over seeds;
        NaN where no attack succeeded.
    found:
        Attacks with a p-value of at most α.
    benign:
        Honest inputs with a p-value of at most α; the same at every ε.
    """

    detector: str
    epsilon: float
    auroc: float
    found: Rate
    benign: Rate


@dataclass(frozen=True, slots=True)
class Report:
    """A benchmark's result.

    Parameters
    ----------
    points:
        Calibration points of each seed.
    accuracy:
        Share of honest inputs that the network classifies right.
    honest_in_doubt:
        Honest inputs that the cheap detectors leave in doubt.
    attacks_in_doubt:
        Successful attacks that they leave in doubt, for each ε; the others never meet the costly
        detectors, unless they are drawn.
    """

    dataset: str
    alpha: float
    seeds: tuple[int, ...]
    points: tuple[int, ...]
    accuracy: Rate
    honest_in_doubt: Rate
    attacks_in_doubt: tuple[Rate, ...]
    lines: tuple[Line, ...]

    def figures(self) -> dict[str, Any]:
        """For programs."""
        lines = [
            asdict(line)
            | {
                "auroc": None if np.isnan(line.auroc) else line.auroc,
                "found": line.found.figures(),
                "benign": line.benign.figures(),
            }
            for line in self.lines
        ]
        whole = {"dataset": self.dataset, "alpha": self.alpha, "seeds": list(self.seeds)}
        accuracy = {"right": self.accuracy.hits, "n": self.accuracy.n}
        doubt = {
            "honest": _share(self.honest_in_doubt),
            "by_epsilon": {
                str(epsilon): _share(rate)
                for epsilon, rate in zip(EPSILONS, self.attacks_in_doubt, strict=True)
            },
        }
        points = list(self.points)
        return whole | {
            "points": points, "accuracy": accuracy, "in_doubt": doubt, "detectors": lines,
        }  # fmt: skip


def measure(
    dataset: str, folder: str | None, *, seeds: Sequence[int], honest: int, attacks: int
) -> Iterator[Report]:
    """Deal out, train, fit, calibrate, attack and score, for each seed anew.

    Parameters
    ----------
    dataset, folder:
        As in `datasets.load`.
    seeds:
        At least one.
    honest, attacks:
        Inputs of each kind and seed; the attacks over all ε, those that fail are left out.

    Yields
    ------
    Report
        Of each seed; `joined` makes one of them.
    """
    for seed in seeds:
        material = Material.load(dataset, folder, seed=seed)
        network = material.network(material.trained())
        yield once(material, network, honest=honest, attacks=attacks)


def once(material: Material, network: Network, *, honest: int, attacks: int) -> Report:
    """Measure one network on one deal of the data."""
    x, y = material.reference_x, material.reference_y
    alpha, seed = material.spec.alpha, material.seed
    suite = Suite.fit(
        network, x, y, splits=Splits.stratified(y, seed=seed), seed=seed, alpha=alpha,
        detectors=material.spec.detectors,
    )  # fmt: skip
    clean = material.honest(honest, seed=HONEST_SEED)
    attack = material.attack(network, attacks, seed=ATTACK_SEED)
    right = network.forward(clean.x).prediction == clean.y
    won, doubt = attack.successful(network), suite.in_doubt(attack.x)
    return Report(
        dataset=material.name,
        alpha=alpha,
        seeds=(seed,),
        points=(suite.calibration.n,),
        accuracy=_rate(right),
        honest_in_doubt=_rate(suite.in_doubt(clean.x)),
        attacks_in_doubt=tuple(_rate(doubt[won & (attack.epsilon == e)]) for e in EPSILONS),
        lines=_lines(suite, clean.x, attack, alpha),
    )


def joined(reports: Sequence[Report]) -> Report:
    """Several reports on one data set as one: counts are added, AUROC is averaged."""
    first = reports[0]
    lines = tuple(_together(group) for group in zip(*(r.lines for r in reports), strict=True))
    return Report(
        dataset=first.dataset,
        alpha=first.alpha,
        seeds=tuple(seed for report in reports for seed in report.seeds),
        points=tuple(n for report in reports for n in report.points),
        accuracy=_sum(r.accuracy for r in reports),
        honest_in_doubt=_sum(r.honest_in_doubt for r in reports),
        attacks_in_doubt=tuple(map(_sum, zip(*(r.attacks_in_doubt for r in reports), strict=True))),
        lines=lines,
    )


def _lines(suite: Suite, clean: NDArray[Any], attack: Attack, alpha: float) -> tuple[Line, ...]:
    won = attack.successful(suite.network)
    honest, attacked = _figures(suite, clean), _figures(suite, attack.x)
    lines = []
    for name, (score, p_value) in honest.items():
        benign = _rate(p_value <= alpha)
        for epsilon in EPSILONS:
            rows = won & (attack.epsilon == epsilon)
            scores, p_values = (figure[rows] for figure in attacked[name])
            found = _rate(p_values <= alpha)
            lines.append(Line(name, epsilon, _auroc(score, scores), found, benign))
    return tuple(lines)


def _figures(
    suite: Suite, x: NDArray[Any]
) -> dict[str, tuple[NDArray[np.floating], NDArray[np.floating]]]:
    """Of each detector on all inputs, and fused: scores and p-values, (n,) each."""
    scored, raw = suite.score(x), suite.raw_scores(x)
    figures: dict[str, tuple[NDArray[np.floating], NDArray[np.floating]]] = {
        name: (raw[:, d], rank_p_value(suite.columns[:, d], raw[:, d]))
        for d, name in enumerate(suite.names)
    }
    figures[FUSED] = (scored.score, scored.p_value)
    return figures


def _auroc(honest: NDArray[np.floating], attacked: NDArray[np.floating]) -> float:
    if not len(attacked):
        return float("nan")
    truth = np.repeat([0, 1], [len(honest), len(attacked)])
    return float(roc_auc_score(truth, np.concatenate([honest, attacked])))


def _together(lines: Sequence[Line]) -> Line:
    found, benign = _sum(line.found for line in lines), _sum(line.benign for line in lines)
    known = [line.auroc for line in lines if not np.isnan(line.auroc)]
    auroc = float(np.mean(known)) if known else float("nan")
    return Line(lines[0].detector, lines[0].epsilon, auroc, found, benign)


def _rate(hits: NDArray[np.bool_]) -> Rate:
    return Rate(int(hits.sum()), len(hits))


def _sum(rates: Iterable[Rate]) -> Rate:
    whole = Rate(0, 0)
    for rate in rates:
        whole = whole.plus(rate)
    return whole


def _share(rate: Rate) -> dict[str, int]:
    return {"in_doubt": rate.hits, "n": rate.n}
