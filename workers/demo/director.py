"""The play: who sends what, and what each step waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnsec.settings import Input
from schemas.incident import Incident
from workers.demo.ledger import Ledger
from workers.demo.live import Live
from workers.demo.malformed import malformed
from workers.demo.material import Attack, Inputs
from workers.demo.poison import BAD, Sample
from workers.demo.sender import Sender

ATTACKER = "mallory"
CLIENTS = tuple(f"app-{number:02d}" for number in range(1, 13))
RATE = 100.0
"""Honest inputs a second."""
ATTACK_RATE = 40.0
SAMPLE_RATE = 60.0
"""Training samples a second, until there are enough to train on."""
LATER_SAMPLE_RATE = 4.0
LOUD_RATE = 25.0
LOUD_AFTER_VERDICT = 5
"""Loud samples that still come when the source is quarantined: they must not get in."""
RAMP_SECONDS = 32.0
"""In which the drift grows to its full size."""
PATIENCE = 40.0
"""Seconds that a step waits for what the monitor must do."""
TICK = 0.02


@dataclass(frozen=True, slots=True, eq=False)
class Script:
    """Everything that is sent.

    Parameters
    ----------
    honest:
        Enough for the longest play; none is sent twice.
    drifting:
        (amounts, seed) to as many inputs, each drifted by its amount.
    quiet, later:
        Training samples until the second checkpoint, honest ones and quiet poison mixed; and
        honest ones after it.
    loud:
        Of the bad source, after the second checkpoint.
    """

    model: str
    input: Input
    honest: Inputs
    attack: Attack
    drifting: Callable[[NDArray[np.float64], int], Inputs]
    quiet: Sequence[Sample]
    loud: Sequence[Sample]
    later: Sequence[Sample]


class Missed(Exception):  # noqa: N818 - what did not happen is told in the summary
    """The monitor did not do in time what a step waits for."""


class Director:
    """Plays a script against a running monitor.

    Parameters
    ----------
    clock:
        Seconds that never go back.
    """

    def __init__(
        self,
        script: Script,
        sender: Sender,
        ledger: Ledger,
        live: Live,
        clock: Callable[[], float],
    ) -> None:
        self._script = script
        self._send = sender
        self._ledger = ledger
        self._live = live
        self._clock = clock
        self._drifting = -1.0
        self._over = False
        self._next_honest = 0

    STEPS = (
        "honest clients, malformed records",
        "an attacker sends adversarial inputs",
        "the second checkpoint learns from what was accepted",
        "a source gets loud",
        "the model is rolled back",
        "a slow drift",
        "the last records come home",
    )

    async def play(self) -> None:
        """Play all steps; one that waits in vain is noted, and the next one begins."""
        step = self._live.begin
        async with asyncio.TaskGroup() as group:
            honest = group.create_task(self._honest())
            samples = group.create_task(self._samples())
            step(self.STEPS[0])
            await asyncio.sleep(2.0)
            await self._malformed()
            step(self.STEPS[1])
            attack = group.create_task(self._attack())
            await self._until(lambda: attack.done(), "the attack is over")
            step(self.STEPS[2])
            await self._until(lambda: self._version() > 1, "a second checkpoint serves")
            step(self.STEPS[3], f"checkpoint {self._version()} learned from quiet poison too")
            await self._loud()
            step(self.STEPS[4])
            await self._until(self._rolled_back, "the model is rolled back")
            step(self.STEPS[5], "the trainer goes on, without what was revoked")
            self._drifting = self._clock()
            await self._until(lambda: bool(self._ledger.of_family("drift")), "the drift is found")
            self._over = True
            step(self.STEPS[6])
            await asyncio.gather(honest, samples)
        await self._send.flush()
        await self._until(self._home, "every record has an outcome")

    async def _until(self, met: Callable[[], bool], what: str) -> None:
        deadline = self._clock() + PATIENCE
        while not met():
            if self._clock() > deadline:
                self._live.note(f"waited {PATIENCE:g} s in vain until {what}")
                return
            await asyncio.sleep(TICK)

    def _version(self) -> int:
        return self._ledger.active_version(self._script.model)

    def _rolled_back(self) -> bool:
        """Whether poisoning was found, and all that was to be done about it is done."""
        found = self._ledger.of_family("poisoning")
        return bool(found) and all(map(_settled, found))

    def _home(self) -> bool:
        return not self._ledger.waiting_inputs and not self._ledger.waiting_samples

    # --- who sends ---

    async def _paced(self, rate: float) -> Any:
        """Yield how many are due, for as long as the play goes on."""
        began, sent = self._clock(), 0
        while not self._over:
            due = int((self._clock() - began) * rate) - sent
            for _ in range(due):
                yield sent
                sent += 1
            await asyncio.sleep(TICK)

    async def _honest(self) -> None:
        script = self._script
        async for number in self._paced(RATE):
            client = CLIENTS[number % len(CLIENTS)]
            if self._drifting < 0:
                if number >= len(script.honest.x):
                    return
                x, label = script.honest.x[number], int(script.honest.y[number])
                await self._send.input("honest", client, x, label)
            else:
                amount = min(1.0, (self._clock() - self._drifting) / RAMP_SECONDS)
                drifted = script.drifting(np.array([amount]), number)
                await self._send.input("drift", client, drifted.x[0], int(drifted.y[0]))

    async def _malformed(self) -> None:
        kinds = malformed(self._script.model, self._script.input)
        for _ in range(3):
            for one in kinds:
                await self._send.bad(one)
        self._live.note(f"{3 * len(kinds)} malformed records of {len(kinds)} kinds")

    async def _attack(self) -> None:
        attack = self._script.attack
        async for number in self._paced(ATTACK_RATE):
            if number >= len(attack.x):
                break
            await self._send.input(
                "attack", ATTACKER, attack.x[number], int(attack.y[number]),
                epsilon=float(attack.epsilon[number]), original=attack.original[number],
            )  # fmt: skip

    async def _samples(self) -> None:
        for number, sample in enumerate(self._script.quiet):
            await self._sample(sample)
            if number % 100 == 99:
                await self._send.bad_sample(sample.source, sample.x)
            await asyncio.sleep(1 / SAMPLE_RATE)
        async for number in self._paced(LATER_SAMPLE_RATE):
            if number >= len(self._script.later):
                return
            await self._sample(self._script.later[number])

    async def _loud(self) -> None:
        """Send loud poison until the source is quarantined, and a little more."""
        left: Iterator[Sample] = iter(self._script.loud)
        more = LOUD_AFTER_VERDICT
        for sample in left:
            if self._condemned():
                more -= 1
                if more < 0:
                    break
            await self._sample(sample)
            await asyncio.sleep(1 / LOUD_RATE)
        await self._until(self._condemned, f"{BAD} is quarantined")

    def _condemned(self) -> bool:
        source = self._ledger.sources.get(BAD)
        return source is not None and source.state == "quarantined"

    async def _sample(self, sample: Sample) -> None:
        await self._send.sample(sample.kind, sample.source, sample.x, sample.label)


def _settled(incident: Incident) -> bool:
    return incident.state in {"contained", "resolved"}
