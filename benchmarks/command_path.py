"""What does a whole command cost, from a member's bytes to encoded events, and where does the time go?

A message of ``--batch`` commands is decoded and validated (``gateway.bus.codec``), each command goes through
``Engine.carry_out`` (identities, checks, book, events and their bytes), and the bytes go into the running digest, as
the sequencer does it. That is the command path, measured in one loop. The same work is then measured stage by stage,
each over some thousand commands, and after it what the gateway makes of the events: private reports and market data,
folded and encoded at the end of each message. Every stage is an upper bound on its share: it meets cold data that in
one loop is warm. Python's collector is set as in the exchange (``gateway/interpreter.py``).

Not included: the log and its sync (``durable.py``), the bus (``bus.py``). The stream, its trades and the late cancels
are checked in every round.

    python -m benchmarks.command_path [--commands N] [--batch N] [--profile] [--json]
"""

from __future__ import annotations

import cProfile
import gc
import io
import pstats
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console

from benchmarks import figures, flow, machine
from engine import Engine, Event
from engine.log.digest import DigestChain
from engine.wire import WrittenEvent, plain
from gateway.bus import codec
from gateway.bus.codec import Request
from gateway.clock import SystemClock
from gateway.interpreter import short_pauses
from gateway.marketdata import MarketDataBook
from gateway.reports import ReportBook

#: Name of the whole, and of its parts in their order. The first three make up the path.
PATH = "path"
STAGES = {
    "decode": "bytes to checked commands",
    "apply": "identities, checks, book, events and their bytes",
    "encode": "the bytes into the digest",
    "reports": "private reports, folded and encoded",
    "market data": "depth, trades, snapshots, folded and encoded",
}
START_NS = 1_795_478_400_000_000_000
#: Commands that go through one stage before the next stage begins: what a busy exchange has at hand.
AT_ONCE = 1_024


class Payloads:
    """The flow as bytes, and what is right of it."""

    def __init__(self, commands: int, batch: int) -> None:
        judge = flow.Judge()
        made = list(flow.messages(commands, batch, judge))
        self.truth = judge.truth
        self.messages = [(message.participant, message.payload()) for message in made]
        self.digest = flow.digest(made)
        self.commands = self.truth.commands


def fresh() -> Engine:
    engine = Engine()
    flow.open_market(engine)
    return engine


def whole(payloads: Payloads) -> tuple[int, int, flow.Truth]:
    """Decode, apply, encode in one loop: nanoseconds, those of the processor's own time, and what came of it.

    The events of a message are judged outside the clock, and gone when the next one comes, as in the exchange.
    """
    engine, digest, decode = fresh(), DigestChain(), codec.decode
    carry_out = engine.carry_out
    elapsed = elapsed_cpu = 0

    def answers() -> Iterator[list[Event]]:
        nonlocal elapsed, elapsed_cpu
        stamp = START_NS
        for participant, payload in payloads.messages:
            start_cpu, start = time.process_time_ns(), time.perf_counter_ns()
            said: list[list[Event | WrittenEvent]] = []
            for command in decode(payload).commands:
                stamp += 1
                said.append(carry_out(command, participant, stamp))
            digest.update_encoded(engine.told())
            elapsed += time.perf_counter_ns() - start
            elapsed_cpu += time.process_time_ns() - start_cpu
            for events in said:
                yield plain(events)

    truth = flow.found(answers())
    return elapsed, elapsed_cpu, truth


class Staged:
    """The parts of the path, and what the gateway does after it, one after the other over some messages at a time."""

    def __init__(self) -> None:
        self.engine, self.digest, self.reports = fresh(), DigestChain(), ReportBook()
        self.market_data = MarketDataBook(self.engine, SystemClock())
        opening = Engine()  # the market data book must hear of the instrument; it asks the engine for the rest
        for command in flow.OPENING:
            self.market_data.fold(opening.sequence + 1, START_NS, "", opening.apply(command))
        self.market_data.start(0)
        self.stamp = START_NS

    def turn(
        self, messages: list[tuple[str, bytes]], around: Callable[[str, Callable[[], object]], None]
    ) -> list[list[Event]]:
        """All stages over ``messages``; ``around`` runs each. Returns the events of each command."""
        requests: list[tuple[str, Request]] = []
        events: list[list[Event | WrittenEvent]] = []
        told: list[bytes] = []
        first, before = self.engine.sequence + 1, self.stamp

        def decode() -> None:
            take, keep = codec.decode, requests.append
            for participant, payload in messages:
                keep((participant, take(payload)))

        def apply() -> None:
            do, keep, stamp = self.engine.carry_out, events.append, before
            for participant, request in requests:
                for command in request.commands:
                    stamp += 1
                    keep(do(command, participant, stamp))
                told.append(self.engine.told())

        def encode() -> None:
            for data in told:
                self.digest.update_encoded(data)

        def fold(book: ReportBook | MarketDataBook) -> None:
            take, number = book.fold, 0
            for participant, request in requests:
                for _ in request.commands:
                    take(first + number, before + 1 + number, participant, events[number])
                    number += 1
                for _ in book.flush():  # a message is gone once it is published
                    pass

        around("decode", decode)
        around("apply", apply)
        around("encode", encode)
        around("reports", lambda: fold(self.reports))
        around("market data", lambda: fold(self.market_data))
        self.stamp += len(events)
        return [plain(said) for said in events]


def stages(
    payloads: Payloads, around: Callable[[str, Callable[[], object]], None], at_once: int = 0
) -> Iterator[list[Event]]:
    """The parts one after the other, ``at_once`` messages at a time (0: all); ``around`` runs each. The events."""
    staged = Staged()
    for start in range(0, len(payloads.messages), at_once or len(payloads.messages)):
        yield from staged.turn(payloads.messages[start : start + at_once or None], around)


def kept(payloads: Payloads) -> dict[str, dict[str, float]]:
    """What each stage leaves in memory per command: blocks, bytes, objects that the collector has to visit.

    What is made and dropped within a stage does not show: it costs time, which the stages tell, but no memory.
    """
    found: dict[str, dict[str, float]] = {}

    def around(name: str, work: Callable[[], object]) -> None:
        gc.collect()
        size, _ = tracemalloc.get_traced_memory()
        objects, blocks = len(gc.get_objects()), sys.getallocatedblocks()
        work()
        blocks = sys.getallocatedblocks() - blocks
        # tracemalloc keeps a block of its own per traced block, but outside of what it counts.
        found[name] = {
            "blocks": round(blocks / payloads.commands, 2),
            "bytes": round((tracemalloc.get_traced_memory()[0] - size) / payloads.commands, 1),
            "visited": round((len(gc.get_objects()) - objects) / payloads.commands, 3),
        }

    gc.disable()
    tracemalloc.start()
    try:
        for _ in stages(payloads, around):
            pass
    finally:
        tracemalloc.stop()
        gc.enable()
    return found


def profile(payloads: Payloads, lines: int = 25) -> str:
    """Where the interpreter spends the path, by its own count; compiled code shows as one line."""
    watch = cProfile.Profile()
    watch.enable()
    whole(payloads)
    watch.disable()
    text = io.StringIO()
    pstats.Stats(watch, stream=text).sort_stats("tottime").print_stats(lines)
    return text.getvalue()


def measure(commands: int, batch: int, rounds: int) -> dict[str, Any]:
    """All figures as one JSON object."""
    payloads = Payloads(commands, batch)
    times: dict[str, list[float]] = {name: [] for name in (PATH, *STAGES)}
    processor: list[float] = []
    wrong: list[str] = []
    spent: dict[str, int] = {}

    def timed(name: str, work: Callable[[], object]) -> None:
        start = time.perf_counter_ns()
        work()
        spent[name] = spent.get(name, 0) + time.perf_counter_ns() - start

    def judge(number: int, what: str, got: flow.Truth) -> None:
        wrong.extend(f"round {number}, {what}: {line}" for line in flow.differences(payloads.truth, got))

    with short_pauses():
        for number in range(rounds):
            gc.collect()
            elapsed, elapsed_cpu, got = whole(payloads)
            times[PATH].append(elapsed / payloads.commands)
            processor.append(elapsed_cpu / payloads.commands)
            judge(number, "path", got)
            gc.collect()
            spent.clear()
            judge(number, "stages", flow.found(stages(payloads, timed, max(1, AT_ONCE // batch))))
            for name in STAGES:
                times[name].append(spent[name] / payloads.commands)
    path = figures.spread(times[PATH])
    return {
        "benchmark": "command_path",
        "environment": machine.environment(),
        "workload": {
            "about": f"steady flow, {payloads.commands:,} commands of {flow.MEMBERS} members in messages of {batch}, "
            f"{payloads.truth.trades:,} trades, digest {payloads.digest}",
            "commands": payloads.commands,
            "batch": batch,
            "members": flow.MEMBERS,
            "digest": payloads.digest,
        },
        "ns_per_command": {name: figures.spread(values) for name, values in times.items()},
        "commands_per_second": round(1e9 / path["median"]),
        "cpu_ns_per_command": figures.spread(processor),
        "kept_per_command": kept(payloads),
        "checked": "every trade, refusal and order number, in every round, against the plain matcher",
        "wrong": wrong,
    }


def show(console: Console, result: dict[str, Any]) -> None:
    ns = result["ns_per_command"]
    left = result["kept_per_command"]
    rows = [[PATH, *figures.cells(ns[PATH]), "", "", ""]]
    for name in STAGES:
        kinds = (f"{left[name][kind]:,.2f}" for kind in ("blocks", "bytes", "visited"))
        rows.append([name, *figures.cells(ns[name]), *kinds])
    console.print(
        figures.table(
            f"The command path: {result['commands_per_second']:,} commands/s",
            ["stage", "ns", "least", "most", "blocks", "bytes", "visited"],
            rows,
        )
    )
    console.print(
        f"Per command: median, least and most of {ns[PATH]['rounds']} rounds; what stays in memory (one run): blocks, "
        "bytes, objects that the collector visits.",
        soft_wrap=True,
    )
    cpu = result["cpu_ns_per_command"]
    console.print(
        f"Of the path {cpu['median']:,.0f} ns are processor time ({cpu['min']:,.0f} to {cpu['max']:,.0f}): the rest "
        "it waited for a busy machine.",
        soft_wrap=True,
    )
    for name, about in {PATH: "decode, apply and encode in one loop", **STAGES}.items():
        console.print(f"  {name}: {about}", soft_wrap=True)


def main(arguments: list[str] | None = None) -> int:
    parser = figures.parser("command_path", __doc__)
    parser.add_argument("--commands", type=figures.positive, default=100_000)
    parser.add_argument("--batch", type=figures.positive, default=64, help="commands in a message")
    parser.add_argument("--profile", action="store_true", help="say where the interpreter spends the path, and leave")
    options = parser.parse_args(arguments)
    if options.profile:
        print(machine.banner())
        print(profile(Payloads(options.commands, options.batch)))
        return 0
    return figures.finish(measure(options.commands, options.batch, options.rounds), show, as_json=options.json)


if __name__ == "__main__":
    raise SystemExit(main())
