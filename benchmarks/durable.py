"""How many commands a second become durable, and how long does one wait for it?

The real way in: a member's bytes are decoded, the gateway's sequencer numbers and stamps the commands, the order log
writes and ``fdatasync``s them on a real disk, then the engine applies them and the digest takes in their events. A
command is done when its events exist in this process and nothing but a lost disk can take it back.

* *rate*: messages of 1, 16, 64 and 256 commands, offered as fast as they are taken; ``--window`` commands may be on
  their way at a time, so that group commit has something to group.
* *latency*: single commands at fixed offered rates, from the moment at which a command **was to be sent** to its
  events. A process of its own sends them through a socket, so that keeping the schedule costs the exchange nothing; the
  way through the socket is in the figure. The schedule does not wait for answers: when the exchange is held up,
  everything that was due meanwhile has waited too and counts so (no coordinated omission). A rate that is not kept up
  is said not to be, and its percentiles then measure the backlog.

Not included: reports, market data (``command_path.py``), MQTT (``bus.py``). After every run the log is closed, read
back and replayed, and market, trades and digest are compared.

    python -m benchmarks.durable [--batches 1,16,64,256] [--rates 5000,20000,50000] [--directory DIR] [--json]
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import figures, flow, machine
from engine import Engine, Event
from engine.log import FileStorage, Header, Log, encode_commands
from engine.log.digest import DigestChain
from engine.log.replay import replay
from engine.wire import WrittenEvent, plain
from gateway.bus import codec
from gateway.clock import SystemClock
from gateway.interpreter import short_pauses
from gateway.journal import DiskJournal
from gateway.sequencer import Entry, Sequencer

#: What a shipped exchange has (``gateway.config``): commands in one record, commands between two digest marks.
BATCH_COMMANDS = 16_384
MARK_EVERY = 100_000
#: How long before the first command is due its sender hears of it.
LEAD_NS = 10_000_000

Payload = tuple[str, bytes, int]  #: participant, message, commands in it


class Market:
    """Log, engine and sequencer in ``directory``, with an open market, and what became of the flow."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = Log.open(FileStorage(directory), Header("benchmark"))
        self.engine = Engine()
        self.digest = DigestChain()
        self.events: list[tuple[Event | WrittenEvent, ...]] = []  # not lists, which the collector would have to visit
        self.done_ns: list[int] = []  #: when each command's events existed
        self.in_flight = 0
        self.on_commit: Callable[[], None] = lambda: None
        clock = SystemClock()
        self.journal = DiskJournal(self.log, clock)
        stamp = clock.now_ns()
        self.log.append([(stamp, "", encode_commands(list(flow.OPENING)))])
        for number, command in enumerate(flow.OPENING):
            answer = self.engine.apply(command, "", stamp + number)
            self.digest.update(self.engine.sequence, stamp + number, answer)
        self.sequencer = Sequencer(
            self.engine,
            self.journal,
            self.digest,
            clock,
            fold=self._fold,
            committed=self._committed,
            batch_commands=BATCH_COMMANDS,
            mark_every=MARK_EVERY,
        )

    def _fold(self, sequence: int, time_ns: int, participant: str, events: list[Event | WrittenEvent]) -> None:
        self.done_ns.append(time.perf_counter_ns())
        self.events.append(tuple(events))

    def _committed(self, batch: Sequence[Entry]) -> None:
        self.in_flight -= sum(len(entry.commands) for entry in batch)
        self.on_commit()

    def offer(self, participant: str, payload: bytes) -> None:
        """What the gateway does with a message that arrives."""
        request = codec.decode(payload)
        self.in_flight += len(request.commands)
        self.sequencer.offer(Entry(participant, request.commands, request.raw, len(payload)))

    async def run(self, feed: Callable[[], Any]) -> None:
        """Serve while ``feed()`` is awaited, and until all it offered is done."""
        serving = asyncio.create_task(self.sequencer.run())
        feeding = asyncio.ensure_future(feed())
        await asyncio.wait((serving, feeding), return_when=asyncio.FIRST_COMPLETED)
        self.sequencer.close()
        await serving
        await feeding

    def close(self) -> None:
        self.journal.close()
        self.log.close()

    def verify(self, right: flow.Truth) -> list[str]:
        """What is wrong; the log must give the same market again."""
        wrong = flow.differences(right, flow.found(map(plain, self.events)))
        result = replay(self.directory)
        result.reader.close()
        if result.sequence != self.engine.sequence:
            wrong.append(f"log: expected {self.engine.sequence} commands, got {result.sequence}")
        elif result.digest.value() != self.digest.value() or result.engine.digest() != self.engine.digest():
            wrong.append("log: replayed, it gives other events or another state")
        return wrong


def payloads(commands: int, batch: int) -> tuple[list[Payload], flow.Truth]:
    judge = flow.Judge()
    made = [(m.participant, m.payload(), len(m.commands)) for m in flow.messages(commands, batch, judge)]
    return made, judge.truth


def run_loop(main: Any) -> None:
    """On the event loop of the exchange: uvloop where it exists."""
    factory = None
    with contextlib.suppress(ImportError):
        import uvloop

        factory = uvloop.new_event_loop
    with short_pauses(), asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main)


def rate(made: list[Payload], right: flow.Truth, window: int, scratch: Path) -> tuple[float, list[str]]:
    """Commands a second through log, sync and engine, offered as fast as they are taken; and what was wrong."""
    with tempfile.TemporaryDirectory(dir=scratch) as directory:
        market = Market(Path(directory))
        room = asyncio.Event()
        market.on_commit = room.set
        started = 0

        async def feed() -> None:
            nonlocal started
            started = time.perf_counter_ns()
            for participant, payload, count in made:
                while market.in_flight and market.in_flight + count > window:
                    room.clear()
                    await room.wait()
                market.offer(participant, payload)

        try:
            run_loop(market.run(feed))
            elapsed = market.done_ns[-1] - started
        finally:
            market.close()
        return right.commands / elapsed * 1e9, market.verify(right)


def send(to: socket.socket, made: list[Payload], offered: int) -> None:
    """A process of its own: told when to begin, it sends each message when it is due, whatever became of others."""
    clock = time.perf_counter_ns  # one clock for all processes of a machine
    begin = int.from_bytes(to.recv(8), "big")
    sent = count = 0
    while sent < len(made):
        due = begin + count * 1_000_000_000 // offered
        if (ahead := due - clock()) > 0:
            time.sleep(ahead / 1e9)
        now = clock()
        frames: list[bytes] = []
        while due <= now and sent < len(made):
            _, payload, size = made[sent]
            frames += (len(payload).to_bytes(4, "big"), payload)
            sent += 1
            count += size
            due = begin + count * 1_000_000_000 // offered
        to.sendall(b"".join(frames))
    to.close()


class Intake(asyncio.Protocol):
    """Messages as they come from the other process, each with its length in front, into the market."""

    def __init__(self, market: Market, made: list[Payload]) -> None:
        self._market = market
        self._participants = iter([participant for participant, _, _ in made])
        self._rest = b""
        self.ended = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        data, start = self._rest + data, 0
        while len(data) >= (begin := start + 4) and len(data) >= (
            end := begin + int.from_bytes(data[start:begin], "big")
        ):
            self._market.offer(next(self._participants), data[begin:end])
            start = end
        self._rest = data[start:]

    def connection_lost(self, error: Exception | None) -> None:
        self.ended.set_result(None)


def latency(
    made: list[Payload], right: flow.Truth, offered: int, scratch: Path
) -> tuple[dict[str, float], float, list[str]]:
    """Percentiles in µs from intended sending to events, commands a second done, and what was wrong."""
    with tempfile.TemporaryDirectory(dir=scratch) as directory:
        here, there = socket.socketpair()
        sender = multiprocessing.get_context("fork").Process(target=send, args=(there, made, offered))
        sender.start()
        there.close()
        market = Market(Path(directory))
        begin = 0

        async def feed() -> None:
            nonlocal begin
            loop = asyncio.get_running_loop()
            transport, intake = await loop.create_connection(lambda: Intake(market, made), sock=here)
            begin = time.perf_counter_ns() + LEAD_NS
            transport.write(begin.to_bytes(8, "big"))
            await intake.ended

        try:
            run_loop(market.run(feed))
        finally:
            market.close()
            sender.join()
        intended: list[int] = []  # by command, in the order of the flow, which is that of the log
        for _, _, size in made:
            intended += [begin + len(intended) * 1_000_000_000 // offered] * size
        waits = [done - due for done, due in zip(market.done_ns, intended, strict=True)]
        achieved = right.commands / (market.done_ns[-1] - intended[0]) * 1e9
        return figures.percentiles(waits), achieved, market.verify(right)


def sync_alone(scratch: Path, count: int = 200) -> dict[str, float]:
    """What one small ``fdatasync`` costs here with nothing around it, in µs: the disk's share of every wait."""
    waits = []
    with tempfile.TemporaryDirectory(dir=scratch) as directory:
        log = Log.open(FileStorage(directory), Header("benchmark"))
        raw = encode_commands(list(flow.OPENING))
        for number in range(count):
            log.write([(1 + number * 10, "", raw)])
            start = time.perf_counter_ns()
            log.sync()
            waits.append(time.perf_counter_ns() - start)
        log.close()
    return figures.percentiles(waits)


def filesystem(path: Path) -> str:
    """Type of the file system that holds ``path``; ``unknown`` where the system does not tell."""
    try:
        mounts = [line.split()[:3] for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return "unknown"
    resolved = path.resolve()
    holding = [(len(mount), kind) for _, mount, kind in mounts if resolved.is_relative_to(mount)]
    return max(holding)[1] if holding else "unknown"


def measure(
    commands: int, batches: list[int], rates: list[int], seconds: float, window: int, rounds: int, scratch: Path
) -> dict[str, Any]:
    """All figures as one JSON object. Files go to ``scratch`` and are removed."""
    wrong: list[str] = []
    by_batch = {batch: payloads(commands, batch) for batch in batches}
    by_rate = {offered: payloads(max(1, round(offered * seconds)), 1) for offered in rates}

    def run_rate(batch: int) -> float:
        got, problems = rate(*by_batch[batch], window, scratch)
        wrong.extend(f"batch {batch}: {line}" for line in problems)
        return got

    def run_latency(offered: int) -> tuple[dict[str, float], float]:
        found, achieved, problems = latency(*by_rate[offered], offered, scratch)
        wrong.extend(f"{offered}/s: {line}" for line in problems)
        return found, achieved

    rates_found = figures.interleaved(batches, rounds, run_rate)
    latencies = figures.interleaved(rates, rounds, run_latency)
    return {
        "benchmark": "durable",
        "environment": machine.environment(),
        "workload": {
            "about": f"steady flow of {flow.MEMBERS} members; rate: {commands:,} commands, at most {window:,} on their "
            f"way; latency: {seconds:g} s of single commands; disk {filesystem(scratch)}",
            "commands": commands,
            "seconds": seconds,
            "window": window,
            "filesystem": filesystem(scratch),
            "sync_alone_us": sync_alone(scratch),
        },
        "commands_per_second": {str(batch): figures.spread(values, 0) for batch, values in rates_found.items()},
        "latency_us": {
            str(offered): {
                "offered": offered,
                "achieved": figures.spread([achieved for _, achieved in values], 0),
                "sustained": min(achieved for _, achieved in values) >= 0.98 * offered,
                "percentiles": figures.percentiles_over([found for found, _ in values]),
            }
            for offered, values in latencies.items()
        },
        "checked": "every run: all trades against the plain matcher, and the log replayed to the same market",
        "wrong": wrong,
    }


def show(console: Console, result: dict[str, Any]) -> None:
    rows = [[batch, *figures.cells(value)] for batch, value in result["commands_per_second"].items()]
    console.print(
        figures.table("Durable commands a second", ["commands in a message", "median", "least", "most"], rows)
    )
    names = ("p50", "p90", "p99", "p99.9", "max")
    rows = []
    for answer in result["latency_us"].values():
        cells = [f"{answer['percentiles'][name]['median']:,.0f}" for name in names]
        rows.append([f"{answer['offered']:,}/s", f"{answer['achieved']['median']:,.0f}", *cells])
        if not answer["sustained"]:
            rows[-1][1] += " !"
    alone = [f"{result['workload']['sync_alone_us'][name]:,.0f}" for name in names]
    rows.append(["fdatasync alone", "", *alone])
    title = "Latency in µs, from the intended sending to durable events"
    console.print(figures.table(title, ["offered", "done/s", *names], rows))
    console.print("Each cell is the median over rounds of that round's percentile.  !: not kept up", soft_wrap=True)


def main(arguments: list[str] | None = None) -> int:
    parser = figures.parser("durable", __doc__)
    parser.add_argument("--commands", type=figures.positive, default=100_000, help="in each run for the rate")
    parser.add_argument("--batches", type=figures.numbers, default=[1, 16, 64, 256], help="commands in a message")
    parser.add_argument("--rates", type=figures.numbers, default=[5_000, 20_000, 50_000], help="commands a second")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each run for the latency")
    parser.add_argument("--window", type=figures.positive, default=16_384, help="commands on their way, for the rate")
    parser.add_argument("--directory", type=Path, default=machine.ROOT / "build", help="on the disk to measure")
    options = parser.parse_args(arguments)
    options.directory.mkdir(parents=True, exist_ok=True)
    result = measure(
        *(options.commands, options.batches, options.rates, options.seconds),
        *(options.window, options.rounds, options.directory),
    )
    return figures.finish(result, show, as_json=options.json)


if __name__ == "__main__":
    raise SystemExit(main())
