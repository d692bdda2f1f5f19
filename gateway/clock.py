"""Time and chance, as ports: the exchange reads the one and draws the other here and nowhere else.

*Market time* (``now_ns``) is what commands are stamped with and what the schedule runs by; it may be accelerated, and
it goes on from the log's last stamp after a restart. *Machine time* (``monotonic_ns``, ``sleep``) measures what the
machine itself can bear: throttles, intervals between snapshots, back-off. *Chance* (``draw``) decides how late a call
ends at random. A simulator replaces all three.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from typing import Final, Protocol

SECOND_NS: Final = 1_000_000_000
#: ``draw(n)`` gives 0 to n - 1, each as likely, and nobody can foretell which.
Draw = Callable[[int], int]
draw: Draw = secrets.randbelow


class Clock(Protocol):
    def now_ns(self) -> int:
        """Market time in nanoseconds since the epoch, UTC. May step back; the sequencer's stamps do not."""

    def monotonic_ns(self) -> int:
        """Machine time from an arbitrary start, never stepping back."""

    async def sleep(self, seconds: float) -> None:
        """Machine time."""

    def seconds_until(self, time_ns: int) -> float:
        """How long to ``sleep`` until market time is ``time_ns``; 0 when it has passed."""

    def resume(self, time_ns: int) -> None:
        """The log's last stamp: a made-up market time goes on from there, a real one takes no notice."""

    def skip_to(self, time_ns: int) -> bool:
        """Nothing happens before ``time_ns``: jump there. False when this clock does not jump."""


class SystemClock:
    """The machine's own time."""

    def now_ns(self) -> int:
        return time.time_ns()

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def seconds_until(self, time_ns: int) -> float:
        return max(0, time_ns - time.time_ns()) / SECOND_NS

    def resume(self, time_ns: int) -> None:
        pass

    def skip_to(self, time_ns: int) -> bool:
        return False


class AcceleratedClock:
    """Market time that starts at ``start_ns`` and runs ``factor`` times as fast as the machine's.

    With ``skip`` it jumps over times in which nothing is due (nights, weekends). Downtime of the process is not market
    time: a restarted exchange finds the market where it left it.
    """

    def __init__(self, factor: int, start_ns: int, *, skip: bool = False) -> None:
        self.factor = factor
        self._skip = skip
        self._market = start_ns
        self._machine = time.monotonic_ns()

    def now_ns(self) -> int:
        return self._market + (time.monotonic_ns() - self._machine) * self.factor

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def seconds_until(self, time_ns: int) -> float:
        return max(0, time_ns - self.now_ns()) / self.factor / SECOND_NS

    def resume(self, time_ns: int) -> None:
        self._jump(time_ns)

    def skip_to(self, time_ns: int) -> bool:
        if self._skip and time_ns > self.now_ns():
            self._jump(time_ns)
        return self._skip

    def _jump(self, time_ns: int) -> None:
        self._market = time_ns
        self._machine = time.monotonic_ns()
