"""From what arrived to what is true: number, stamp, log, sync, apply, and only then publish and acknowledge.

While one batch syncs, the next gathers, so group commit comes by itself: an idle market commits single orders at once,
a busy one puts hundreds behind one fdatasync. Applying a large batch overlaps with the sync of the next; a few commands
are applied first, so that they do not wait for it.

Order is the order of arrival. A stamp is max(clock, last stamp + 1): clocks step back, the log does not. Nothing here
decides anything about a trade, and nothing here reads a clock but through the port.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final, cast

import msgspec

from engine.commands import Command, ExchangeCommand, SetPhase
from engine.core import Engine
from engine.events import Event
from engine.log import encode_commands
from engine.log.digest import DigestChain
from engine.ticket import CommandTicket
from engine.types import Phase
from engine.wire import WrittenEvent
from gateway.bus.port import Delivery
from gateway.clock import Clock
from gateway.journal import Group, Journal

#: Up to so many commands are applied before the next batch is written, more while it is.
FEW: Final = 64
#: Most bytes of commands in one record of the log.
BATCH_BYTES: Final = 8 * 1024 * 1024

Fold = Callable[[int, int, str, list[Event | WrittenEvent]], None]
"""Called with (sequence, time_ns, participant, events) right after each command was applied."""


class Entry:
    """What one message, or one request of the exchange itself, adds to the market's sequence."""

    __slots__ = ("commands", "delivery", "done", "first_ns", "nbytes", "participant", "raw")

    def __init__(
        self,
        participant: str,
        commands: Sequence[Command | CommandTicket],
        raw: bytes | msgspec.Raw,
        nbytes: int,
        delivery: Delivery | None = None,
        done: asyncio.Future[list[list[Event]]] | None = None,
    ) -> None:
        self.participant = participant
        self.commands = commands
        self.raw = raw
        self.nbytes = nbytes
        self.delivery = delivery
        self.done = done
        self.first_ns = 0  #: stamp of the first command


class Sequencer:
    """Feeds one engine. ``offer`` and ``submit`` from anywhere on the loop; ``run`` as a task."""

    def __init__(
        self,
        engine: Engine,
        journal: Journal,
        digest: DigestChain,
        clock: Clock,
        *,
        fold: Fold,
        committed: Callable[[Sequence[Entry]], None],
        batch_commands: int = 16_384,
        mark_every: int = 100_000,
        unmarked: int = 0,
    ) -> None:
        """``committed`` is called after each batch was applied: time to publish, and then to acknowledge.

        ``digest`` is the chain after the replay, ``unmarked`` how many commands that replayed behind the last mark.
        """
        self._engine = engine
        self._journal = journal
        self._digest = digest
        self._clock = clock
        self._fold = fold
        self._committed = committed
        self._batch_commands = batch_commands
        self._mark_every = mark_every
        self._unmarked = unmarked  # commands applied since the last digest mark
        self._last_ns = engine.time_ns
        self._intake: deque[Entry] = deque()
        self._wake = asyncio.Event()
        self._closing = False

    # --- in --------------------------------------------------------------------------------------------------------

    def offer(self, entry: Entry) -> None:
        """Take in one entry of at least one command. Bounds are the caller's business."""
        self._intake.append(entry)
        self._wake.set()

    async def submit(self, commands: Sequence[ExchangeCommand]) -> list[list[Event]]:
        """The exchange's own commands: the same way as everybody's. Returns each one's events once they are true."""
        done: asyncio.Future[list[list[Event]]] = asyncio.get_running_loop().create_future()
        raw = encode_commands(list(commands))
        self.offer(Entry("", commands, raw, len(raw), None, done))
        return await done

    def close(self) -> None:
        """Let ``run`` end once all that was taken in is committed."""
        self._closing = True
        self._wake.set()

    # --- the one path ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Commit until closed. Any exception from here means that the exchange must stop."""
        durable: list[Entry] = []
        while True:
            if not self._intake and not durable:
                if self._closing:
                    return
                self._wake.clear()
                await self._wake.wait()
                continue
            count = sum(len(entry.commands) for entry in durable)
            mark_due = count > 0 and self._mark_due(durable, count)
            mark = None
            if durable and (mark_due or count <= FEW or not self._intake):
                self._apply(durable)
                durable = []
            if mark_due:
                # It speaks about everything written before it, so the batch before it was applied first.
                mark = (self._engine.sequence, self._digest.mark(), self._engine.mark_digest())
                self._unmarked = 0
            batch, groups = self._take()
            if not batch and mark is None:
                continue
            written = asyncio.ensure_future(self._journal.append(mark, groups))
            try:
                if durable:
                    await asyncio.sleep(0)  # let the write start before the loop is busy with the batch before it
                    self._apply(durable)
            finally:
                await written
            durable = batch

    def _take(self) -> tuple[list[Entry], list[Group]]:
        """What has arrived, up to the bounds of a batch, stamped."""
        batch: list[Entry] = []
        groups: list[Group] = []
        count = nbytes = 0
        while self._intake:
            entry = self._intake[0]
            count += len(entry.commands)
            nbytes += entry.nbytes
            if batch and (count > self._batch_commands or nbytes > BATCH_BYTES):
                break
            self._intake.popleft()
            entry.first_ns = max(self._clock.now_ns(), self._last_ns + 1)
            self._last_ns = entry.first_ns + len(entry.commands) - 1
            batch.append(entry)
            groups.append((entry.first_ns, entry.participant, entry.raw))
        return batch, groups

    def _apply(self, batch: Sequence[Entry]) -> None:
        """The batch is on disk: now it happens."""
        carry_out, fold = self._engine.carry_out, self._fold
        sequence = self._engine.sequence
        for entry in batch:
            participant, time_ns = entry.participant, entry.first_ns
            said: list[list[Event | WrittenEvent]] = []
            for command in entry.commands:
                sequence += 1
                events = carry_out(command, participant, time_ns)
                said.append(events)
                fold(sequence, time_ns, participant, events)
                time_ns += 1
            self._digest.update_encoded(self._engine.told())
            self._unmarked += len(said)
            if entry.done is not None and not entry.done.done():
                entry.done.set_result(cast("list[list[Event]]", said))  # of the exchange: nothing of it is written
        self._committed(batch)

    def _mark_due(self, batch: Iterable[Entry], count: int) -> bool:
        """``count``: the commands of ``batch``."""
        if self._unmarked + count >= self._mark_every:
            return True
        return any(
            isinstance(command, SetPhase) and command.phase == Phase.CLOSED
            for entry in batch
            if not entry.participant
            for command in entry.commands
        )
