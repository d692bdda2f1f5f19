"""One member firm as a process: ``python -m gateway.demo.member``, started by ``day``.

It reads one line of JSON (``Start``) from standard input, trades its plan through the client SDK like any member would,
and writes down what it is told, each report before it asks for the next: ``audit`` compares that with the log. On
standard output it says how far it is, one JSON object a line; the last one has ``"done": true``.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

import msgspec
from msgspec import Struct

from engine.types import PHASE_LABELS, Phase
from gateway.child import die_with_parent
from gateway.client import (
    Accepted,
    Amended,
    Cancelled,
    Client,
    Fill,
    LiveBook,
    Missed,
    NumberedReport,
    Rejected,
    Stream,
)
from gateway.demo.strategy import Step, plan
from gateway.demo.tokens import load_tokens

#: Steps that fall due within this time travel in one message.
TICK = 0.15
_ORDER = {label: phase for phase, label in PHASE_LABELS.items()}


class Start(Struct):
    firm: str
    url: str
    seed: int
    codes: list[str]
    journal: str
    busy: int  #: orders in percent of the usual
    phase_seconds: dict[str, float]  #: real length of each phase by its name
    parent: int  #: process id of who started it
    patience: float = 60.0  #: seconds to wait for the exchange to appear, or for an answer


class Progress(Struct):
    """What a firm says about itself."""

    firm: str
    connected: bool = False
    sent: int = 0  #: commands handed to the client
    accepted: int = 0
    rejected: int = 0
    cancelled: int = 0
    amended: int = 0
    fills: int = 0
    units: int = 0  #: traded, both sides
    resent: int = 0
    gaps: int = 0
    late: int = 0  #: steps whose phase was over before they could be sent
    next_report: int = 1
    done: bool = False


class Day:
    """How far the day has come, by what is published about one token. All tokens of the demo keep the same hours."""

    def __init__(self, book: LiveBook) -> None:
        self.book = book
        self.phase = Phase.CLOSED  #: the furthest seen; CLOSED before the first
        self.over = False

    def look(self) -> None:
        now = _ORDER.get(self.book.phase, Phase.CLOSED)
        if now == Phase.CLOSED:
            self.over = self.phase != Phase.CLOSED
        else:
            self.phase = max(self.phase, now)

    async def until(self, phase: Phase) -> None:
        """Wait until the day has come to this phase, is past it, or is over."""
        self.look()
        if not self.over and self.phase < phase:
            async for _ in self.book.changes():
                self.look()
                if self.over or self.phase >= phase:
                    return


async def trade(start: Start) -> None:
    tokens = [token for token in load_tokens() if token.code in set(start.codes)]
    steps = plan(start.firm, tokens, start.seed, start.busy)
    progress = Progress(start.firm)
    journal = Path(start.journal)
    client = Client(
        start.url,
        start.firm,
        os.environ.get("DOJIMA_PASSWORD", ""),
        position=journal.with_suffix(".position"),
        timeout=start.patience,
    )
    reports = client.reports()
    shown = asyncio.create_task(show(progress, client))
    file = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    async with client:
        told = asyncio.create_task(write_down(reports, file, progress))
        day = Day(await client.book(start.codes[0]))
        for phase in (Phase.PRE_OPEN, Phase.PRE_OPEN_NCP, Phase.BREAK, Phase.PRE_CLOSE, Phase.PRE_CLOSE_NCP):
            due = [step for step in steps if step.phase == phase]
            await trade_phase(client, day, phase, due, start.phase_seconds.get(phase.label, 0.0), progress)
        while not day.over:
            await day.until(Phase.CALL)  # beyond all phases of the day: only its end is left to wait for
        await client.drain()
        # The answer counts every report before it; after Closed no order of the day may be left.
        while await client.open_orders():  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        while progress.next_report < client.next_report and not told.done():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        if told.done():
            told.result()
        told.cancel()
    shown.cancel()
    progress.done = True
    say(progress, client)


async def trade_phase(
    client: Client, day: Day, phase: Phase, steps: list[Step], seconds: float, progress: Progress
) -> None:
    await day.until(phase)
    began = time.monotonic()
    while steps:
        day.look()
        if day.over or day.phase > phase:
            progress.late += len(steps)  # the day went on without us: these would only be refused
            return
        elapsed = time.monotonic() - began
        ready = [step for step in steps if step.permille * seconds <= elapsed * 1_000]
        steps = steps[len(ready) :]
        if ready:
            await client.send(*(step.command for step in ready))
            progress.sent += len(ready)
        await asyncio.sleep(TICK)


async def write_down(reports: Stream[NumberedReport | Missed], file: int, progress: Progress) -> None:
    async for report in reports:
        os.write(file, msgspec.msgpack.encode(report))
        if isinstance(report, Missed):
            continue
        event = report.event
        progress.next_report = report.number + 1
        if isinstance(event, Accepted):
            progress.accepted += not event.repeat
        elif isinstance(event, Rejected):
            progress.rejected += not event.repeat
        elif isinstance(event, Fill):
            progress.fills += 1
            progress.units += event.quantity
        elif isinstance(event, Cancelled):
            progress.cancelled += not event.repeat
        elif isinstance(event, Amended):
            progress.amended += not event.repeat


async def show(progress: Progress, client: Client) -> None:
    while True:
        say(progress, client)
        await asyncio.sleep(0.5)


def say(progress: Progress, client: Client) -> None:
    progress.connected = client.connected
    progress.resent = client.resent
    progress.gaps = client.gaps
    sys.stdout.write(msgspec.json.encode(progress).decode() + "\n")
    sys.stdout.flush()


def main() -> None:
    line = b""
    while not line.endswith(b"\n"):  # not a buffered read: the end of the stream belongs to the watch below
        piece = os.read(0, 1)
        if not piece:
            sys.exit("Expected one line of JSON on standard input")
        line += piece
    start = msgspec.json.decode(line, type=Start)
    die_with_parent(start.parent)
    asyncio.run(trade(start))


if __name__ == "__main__":
    main()
