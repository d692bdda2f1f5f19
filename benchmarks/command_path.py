"""What does a whole command cost, from a member's bytes to encoded events, and where does the time go?

A message of ``--batch`` commands is decoded and validated (``gateway.bus.codec``), each command goes through
``Engine.apply`` (identities, checks, book, events), and what it led to is encoded into the running digest, as the
sequencer does it. That is the command path, measured in one loop. The same work is then measured stage by stage, each
over all messages, and after it what the gateway makes of the events: private reports and market data, folded and
encoded at the end of each message. Every stage is an upper bound on its share: it meets cold data that in one loop
is warm.

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
from collections.abc import Callable
from typing import Any

from rich.console import Console

from benchmarks import figures, flow, machine
from engine import Engine, Event
from engine.log.digest import DigestChain
from gateway.bus import codec
from gateway.bus.codec import Request
from gateway.clock import SystemClock
from gateway.marketdata import MarketDataBook
from gateway.reports import ReportBook

#: Name of the whole, and of its parts in their order. The first three make up the path.
PATH = "path"
STAGES = {
    "decode": "bytes to checked commands",
    "apply": "identities, checks, book, events",
    "encode": "events into the digest",
    "reports": "private reports, folded and encoded",
    "market data": "depth, trades, snapshots, folded and encoded",
}
START_NS = 1_795_478_400_000_000_000


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


def whole(payloads: Payloads) -> tuple[int, int, list[list[Event]]]:
    """Decode, apply, encode in one loop: nanoseconds, those of the processor's own time, and the events."""
    engine, digest, decode = fresh(), DigestChain(), codec.decode
    apply, update = engine.apply, digest.update_all
    events: list[list[Event]] = []
    keep = events.append
    sequence, stamp = engine.sequence, START_NS
    start, start_cpu = time.perf_counter_ns(), time.process_time_ns()
    for participant, payload in payloads.messages:
        said: list[tuple[int, int, list[Event]]] = []
        for command in decode(payload).commands:
            sequence += 1
            stamp += 1
            answer = apply(command, participant, stamp)
            said.append((sequence, stamp, answer))
            keep(answer)
        update(said)
    digest.value()
    return time.perf_counter_ns() - start, time.process_time_ns() - start_cpu, events


def stages(payloads: Payloads, around: Callable[[str, Callable[[], object]], None]) -> list[list[Event]]:
    """The parts one after the other; ``around`` runs each. Returns the events."""
    engine, digest = fresh(), DigestChain()
    requests: list[tuple[str, Request]] = []
    events: list[list[Event]] = []
    first = engine.sequence + 1

    def decode() -> None:
        take, keep = codec.decode, requests.append
        for participant, payload in payloads.messages:
            keep((participant, take(payload)))

    def apply() -> None:
        do, keep, stamp = engine.apply, events.append, START_NS
        for participant, request in requests:
            for command in request.commands:
                stamp += 1
                keep(do(command, participant, stamp))

    def encode() -> None:
        update, number = digest.update_all, 0
        for _, request in requests:
            end = number + len(request.commands)
            update([(first + i, START_NS + 1 + i, events[i]) for i in range(number, end)])
            number = end
        digest.value()

    def fold(book: ReportBook | MarketDataBook) -> None:
        take, number = book.fold, 0
        for participant, request in requests:
            for _ in request.commands:
                take(first + number, START_NS + 1 + number, participant, events[number])
                number += 1
            for _ in book.flush():  # a message is gone once it is published
                pass

    clock = SystemClock()
    market_data = MarketDataBook(engine, clock)
    opening = Engine()  # the market data book must hear of the instrument; it asks the engine for the rest
    for command in flow.OPENING:
        market_data.fold(opening.sequence + 1, START_NS, "", opening.apply(command))
    market_data.start(0)
    around("decode", decode)
    around("apply", apply)
    around("encode", encode)
    around("reports", lambda: fold(ReportBook()))
    around("market data", lambda: fold(market_data))
    return events


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
        stages(payloads, around)
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

    def timed(name: str, work: Callable[[], object]) -> None:
        gc.collect()
        start = time.perf_counter_ns()
        work()
        times[name].append((time.perf_counter_ns() - start) / payloads.commands)

    for number in range(rounds):
        gc.collect()
        elapsed, elapsed_cpu, events = whole(payloads)
        times[PATH].append(elapsed / payloads.commands)
        processor.append(elapsed_cpu / payloads.commands)
        wrong += [f"round {number}, path: {line}" for line in flow.differences(payloads.truth, flow.found(events))]
        del events
        events = stages(payloads, timed)
        wrong += [f"round {number}, stages: {line}" for line in flow.differences(payloads.truth, flow.found(events))]
        del events
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
