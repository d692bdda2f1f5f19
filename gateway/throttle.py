"""How much of the exchange one member may use: a rate, and a share of what may wait.

Refusing early is the only back-pressure there is: MQTT brokers keep sending (Receive Maximum is none on mosquitto
2.0), and what waits in memory is bounded only by what is not let in. A refused message is answered, nothing of it has
an effect, and the member sends it again later.
"""

from __future__ import annotations

from gateway.clock import SECOND_NS


class TokenBucket:
    """``rate`` per second on average, ``burst`` at once. All in whole units, times in nanoseconds of machine time."""

    __slots__ = ("_burst_ns", "_cost_ns", "_full_at")

    def __init__(self, rate: int, burst: int) -> None:
        self._cost_ns = SECOND_NS // rate
        self._burst_ns = max(burst, 1) * self._cost_ns
        self._full_at = 0  # when the bucket will be full again: the one number that says how full it is

    def take(self, count: int, now_ns: int) -> int:
        """Take ``count``: 0 when they were there, else the milliseconds after which they may be, and nothing is taken.

        More than a full bucket holds is let through when the bucket is full, and paid for afterwards: a large batch is
        slow, not impossible.
        """
        start = max(self._full_at, now_ns)
        wait = start + min(count * self._cost_ns, self._burst_ns) - self._burst_ns - now_ns
        if wait > 0:
            return wait // 1_000_000 + 1
        self._full_at = start + count * self._cost_ns
        return 0

    def owe(self, count: int, now_ns: int) -> None:
        """Take ``count`` whether they are there or not: what was taken before turned out to cost so much more."""
        self._full_at = max(self._full_at, now_ns) + count * self._cost_ns


class Share:
    """What waits between arrival and commit: in all, and of each member, in commands and in bytes.

    One member's flood fills its own share and is refused while the others still find room.
    """

    def __init__(self, *, commands: int, nbytes: int, member_commands: int, member_nbytes: int) -> None:
        self._commands, self._nbytes = commands, nbytes
        self._member_commands, self._member_nbytes = member_commands, member_nbytes
        self._used_commands = self._used_nbytes = 0
        self._members: dict[str, list[int]] = {}

    def enter(self, participant: str, commands: int, nbytes: int) -> str:
        """Empty when there was room, which is now taken; else which bound is full. An empty share takes any message."""
        used = self._members.setdefault(participant, [0, 0])
        if used[0] and (used[0] + commands > self._member_commands or used[1] + nbytes > self._member_nbytes):
            return (
                f"at most {self._member_commands} commands or {self._member_nbytes} bytes of one member waiting, "
                f"got {used[0] + commands} commands, {used[1] + nbytes} bytes"
            )
        if self._used_commands and (
            self._used_commands + commands > self._commands or self._used_nbytes + nbytes > self._nbytes
        ):
            return f"at most {self._commands} commands or {self._nbytes} bytes waiting in all"
        used[0] += commands
        used[1] += nbytes
        self._used_commands += commands
        self._used_nbytes += nbytes
        return ""

    def waiting(self, participant: str) -> int:
        """How many commands of one member wait."""
        return self._members[participant][0] if participant in self._members else 0

    def leave(self, participant: str, commands: int, nbytes: int) -> None:
        used = self._members[participant]
        used[0] -= commands
        used[1] -= nbytes
        self._used_commands -= commands
        self._used_nbytes -= nbytes
