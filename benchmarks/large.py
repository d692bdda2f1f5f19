"""Does it stay fast when it is large?

* *auction*: one itayose of 500,000 orders, in the one command that holds it, and the indicative price before it;
* *mass cancel* of 100,000 resting orders, in one command;
* *replay* of a log, records checked and digests compared, as every start does. ``--commands`` says how many:
  ten million is what a long day comes to, the default is smaller so that a run takes minutes;
* *bare book*: 1,000,000 orders come to rest in the book as ``workload.py`` drives it: memory of an order, and the
  longest single one;
* *book size*: what a command costs while 1,000 to 1,000,000 orders rest, what memory an order takes, and the longest
  single command, which is where a pause for memory (growing arrays, the collector) would show.

Memory is the growth of the process, so everything is in it: the row in the book, the member's id, what is remembered
to answer a repeat. The longest command is the machine's as much as ours; beside it stands the longest step of a loop
that does nothing, of the same length in time. Each run has a process of its own, with the collector as
an exchange has it (``gateway/interpreter.py``).

    python -m benchmarks.large [--only auction,mass-cancel,replay,bare-book,book-size] [--commands 10000000] [--json]
"""

from __future__ import annotations

import gc
import multiprocessing
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from benchmarks import figures, flow, machine, workload
from engine import (
    Accepted,
    AuctionUncrossed,
    Cancelled,
    CancelOrder,
    Command,
    Engine,
    Event,
    ListInstrument,
    MassCancel,
    MassCancelled,
    MemberCommand,
    NewOrder,
    Phase,
    SetCalendar,
    SetPhase,
    Side,
    StartDay,
    TimeInForce,
    Traded,
)
from engine.log import FileStorage, Header, Log, encode_commands
from engine.log.digest import DigestChain
from engine.log.replay import replay
from gateway.interpreter import short_pauses

CASES = ("auction", "mass-cancel", "replay", "bare-book", "book-size")
MIDDLE = 100_000
START_NS = 1_795_478_400_000_000_000
#: Messages in one record of the log that is replayed, commands in a message.
RECORD_MESSAGES, BATCH = 16, 64
#: Orders that came and went before memory is looked at.
WARM = 200

Answer = TypeVar("Answer")
Found = tuple[dict[str, float], list[str]]  #: figures, and what was wrong


def in_a_process_of_its_own(work: Callable[..., Answer], *arguments: Any) -> Answer:
    """What ``work`` returns; its memory goes with it."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_as_an_exchange, work, *arguments).result()


def _as_an_exchange(work: Callable[..., Answer], *arguments: Any) -> Answer:
    with short_pauses():
        return work(*arguments)


def resident_bytes() -> int:
    """Memory this process has now; where the system does not tell, the most it ever had."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
    return pages * resource.getpagesize()


# --- auction -----------------------------------------------------------------------------------------------------


def call_orders(count: int) -> Iterator[tuple[str, NewOrder]]:
    """Orders of a call that overlap around ``MIDDLE``, so that about half of them trade."""
    draw = random.Random(5)
    for number in range(count):
        side = Side(draw.getrandbits(1))
        price = MIDDLE + int(draw.gauss(0, 300)) + (-40 if side == Side.SELL else 40)
        yield (
            flow.member_name(number % flow.MEMBERS),
            NewOrder(f"o{number}", flow.CODE, side, draw.randrange(1, 100), price),
        )


def wrong_auction(orders: list[NewOrder], events: list[Event]) -> list[str]:
    """What is wrong with an auction, by adding up demand and supply at every price, in the plainest way."""
    wanted: tuple[Counter[int], Counter[int]] = (Counter(), Counter())
    for order in orders:
        wanted[order.side][order.price] += order.quantity
    prices = list(range(min(min(side) for side in wanted), max(max(side) for side in wanted) + 1))
    supply = list(accumulate(wanted[Side.SELL][price] for price in prices))
    demand = list(accumulate(wanted[Side.BUY][price] for price in reversed(prices)))[::-1]
    volume = max(map(min, demand, supply))
    surplus = min(abs(d - s) for d, s in zip(demand, supply, strict=True) if min(d, s) == volume)
    [result] = [event for event in events if isinstance(event, AuctionUncrossed)]
    trades = [event for event in events if isinstance(event, Traded)]
    at = prices.index(result.price)
    wrong = []
    if (result.volume, abs(result.surplus)) != (volume, surplus):
        wrong.append(f"auction: expected {volume} with {surplus} left over, got {result.volume} with {result.surplus}")
    if (min(demand[at], supply[at]), demand[at] - supply[at]) != (result.volume, result.surplus):
        wrong.append(f"auction: at {result.price} the orders give another volume or surplus")
    if (sum(trade.quantity for trade in trades), len(trades)) != (result.volume, result.trades):
        wrong.append("auction: the trades do not add up to the result")
    if any(trade.price != result.price for trade in trades):
        wrong.append("auction: a trade has another price")
    for side in Side:
        filled: Counter[int] = Counter()
        for trade in trades:
            filled[trade.buy_order_id if side == Side.BUY else trade.sell_order_id] += trade.quantity
        for order_id, quantity in filled.items():
            order = orders[order_id - 1]
            better = order.price >= result.price if side == Side.BUY else order.price <= result.price
            if order.side != side or quantity > order.quantity or not better:
                wrong.append(f"auction: order {order_id} was filled against its terms")
    return wrong


def auction(count: int) -> Found:
    """Milliseconds of one itayose, and of the indicative price before it."""
    engine = Engine()
    opening: list[Command] = [
        SetCalendar(20261101, 20261231, []),
        ListInstrument(flow.CODE, reference_price=MIDDLE),
        StartDay(20261124),
        SetPhase(flow.CODE, Phase.PRE_OPEN),
    ]
    for command in opening:
        engine.apply(command)
    orders = []
    for participant, order in call_orders(count):
        [accepted] = engine.apply(order, participant)
        assert isinstance(accepted, Accepted), accepted
        orders.append(order)
    engine.apply(SetPhase(flow.CODE, Phase.PRE_OPEN_NCP))
    gc.collect()
    start = time.perf_counter_ns()
    before = engine.indicative(flow.CODE)
    asked = time.perf_counter_ns()
    events = engine.apply(SetPhase(flow.CODE, Phase.OPENING_AUCTION))
    done = time.perf_counter_ns()
    wrong = wrong_auction(orders, events)
    [result] = [event for event in events if isinstance(event, AuctionUncrossed)]
    if (before.price, before.volume, before.surplus) != (result.price, result.volume, result.surplus):
        wrong.append(f"auction: {before} was announced, {result} came")
    return {"auction_ms": (done - asked) / 1e6, "indicative_ms": (asked - start) / 1e6, "trades": result.trades}, wrong


# --- mass cancel -------------------------------------------------------------------------------------------------


def mass_cancel(count: int) -> Found:
    """Milliseconds in which one member's ``count`` resting orders are gone, and another's stay."""
    engine = Engine()
    flow.open_market(engine)
    for number in range(count):
        away = 1 + number * 7919 % 500
        for participant in ("leaves", "stays"):
            side = Side((number + (participant == "stays")) % 2)
            price = MIDDLE + (away if side == Side.SELL else -away)
            [accepted] = engine.apply(NewOrder(f"o{number}", flow.CODE, side, 100, price), participant)
            assert isinstance(accepted, Accepted), accepted
    gc.collect()
    start = time.perf_counter_ns()
    events = engine.apply(MassCancel("all"), "leaves")
    elapsed = time.perf_counter_ns() - start
    left = {participant: sum(1 for _ in engine.open_orders(participant)) for participant in ("leaves", "stays")}
    wrong = []
    gone = sum(isinstance(event, Cancelled) and event.participant == "leaves" for event in events)
    last = events[-1]
    if gone != count or not isinstance(last, MassCancelled) or last.count != count:
        wrong.append(f"mass cancel: expected {count} orders cancelled, got {gone}, closed by {last}")
    if left != {"leaves": 0, "stays": count}:
        wrong.append(f"mass cancel: expected the other member's {count} orders to stay alone, got {left}")
    return {"mass_cancel_ms": elapsed / 1e6}, wrong


# --- replay ------------------------------------------------------------------------------------------------------


def write_log(directory: Path, commands: int) -> tuple[int, list[str]]:
    """A log of the steady flow with a digest mark at its end; its size in bytes, and what was wrong with its market."""
    engine, digest, judge = Engine(), DigestChain(), flow.Judge()
    with Log.open(FileStorage(directory), Header("benchmark")) as log:

        def applied() -> Iterator[list[Event]]:
            stamp = START_NS
            log.write([(stamp, "", encode_commands(list(flow.OPENING)))])
            for command in flow.OPENING:
                digest.update(engine.sequence + 1, stamp, engine.apply(command, "", stamp))
                stamp += 1
            groups: list[tuple[int, str, bytes]] = []
            for message in flow.messages(commands, BATCH, judge):
                groups.append((stamp, message.participant, encode_commands(list(message.commands))))
                for member_command in message.commands:
                    events = engine.apply(member_command, message.participant, stamp)
                    digest.update(engine.sequence, stamp, events)
                    yield events
                    stamp += 1
                if len(groups) == RECORD_MESSAGES:
                    log.write(groups)
                    groups = []
            if groups:
                log.write(groups)

        got = flow.found(applied())
        log.write_mark(engine.sequence, digest.mark(), engine.mark_digest())
        log.sync()
        size = log.end
    return size, flow.differences(judge.truth, got)


def replay_log(directory: Path, commands: int) -> Found:
    """Seconds to replay the log of ``directory``. The mark at its end makes the replay compare events and state."""
    start = time.perf_counter_ns()
    result = replay(directory)
    elapsed = time.perf_counter_ns() - start
    result.reader.close()
    wrong = []
    if (result.sequence, result.marks) != (commands + len(flow.OPENING), 1):
        wrong.append(f"replay: expected {commands} commands and a mark, got {result.sequence} and {result.marks}")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "darwin" else 1)
    return {
        "replay_s": elapsed / 1e9,
        "replay_ns_per_command": elapsed / commands,
        "replay_most_mib": most / 1024,
    }, wrong


# --- bare book ---------------------------------------------------------------------------------------------------


def bare_book(count: int) -> Found:
    """Memory of an order in the bare book, and the longest single order while ``count`` come to rest."""
    draw = random.Random(7)
    orders = []
    for _ in range(count):
        side, away = draw.getrandbits(1), 1 + int(draw.expovariate(1 / 300))
        orders.append((side, MIDDLE + (away if side else -away), draw.randrange(1, 100)))
    market = workload.market(1)
    new, clock = market.new, time.perf_counter_ns
    waits = [0] * count
    new(0, 0, 0, 1, 1, 0)
    gc.collect()
    before = resident_bytes()
    for place, (side, price, quantity) in enumerate(orders):
        start = clock()
        new(side, 0, 0, price, quantity, 0)  # all under one number: what finds the caller's number is not the book's
        waits[place] = clock() - start
    grown = resident_bytes() - before
    # Integers above 256 are objects of 32 bytes in ``waits``; they came with the loop.
    grown -= sum(sys.getsizeof(wait) for wait in waits)
    resting = sum(len(book.orders(market.table, side)) for book in market.books for side in (0, 1))
    wrong = [] if resting == count + 1 else [f"bare book: expected {count + 1} orders to rest, got {resting}"]
    return {
        "row_bytes": grown / count,
        "row_ns": sum(waits) / count,
        "row_longest_us": max(waits) / 1000,
        "row_idle_longest_us": idle_longest_us(sum(waits)),
    }, wrong


# --- book size ---------------------------------------------------------------------------------------------------


class Resting:
    """Commands for a book that keeps its size: as many orders come to rest as are cancelled, a few trade."""

    def __init__(self) -> None:
        self._draw = random.Random(6)
        self._number = 0
        self._open: list[str] = []

    def order(self) -> tuple[str, NewOrder]:
        """One that comes to rest."""
        side = Side(self._draw.getrandbits(1))
        away = 1 + int(self._draw.expovariate(1 / 300))
        price = MIDDLE + (away if side == Side.SELL else -away)
        name = f"o{self._number}"
        self._number += 1
        self._open.append(name)
        return self._owner(name), NewOrder(name, flow.CODE, side, self._draw.randrange(1, 100), price)

    def any(self) -> tuple[str, MemberCommand]:
        """45 of 100 rest, 45 cancel one that rested, 10 take what is there and leave."""
        kind = self._draw.random()
        if kind < 0.45:
            return self.order()
        if kind < 0.9 and self._open:
            place = self._draw.randrange(len(self._open))
            self._open[place], self._open[-1] = self._open[-1], self._open[place]
            name = self._open.pop()
            return self._owner(name), CancelOrder("c" + name, name)
        name = f"t{self._number}"
        self._number += 1
        side = Side(self._draw.getrandbits(1))
        price = MIDDLE + (1000 if side == Side.BUY else -1000)
        order = NewOrder(name, flow.CODE, side, 50, price, time_in_force=TimeInForce.IOC)
        return flow.member_name(0), order

    def _owner(self, name: str) -> str:
        return flow.member_name(int(name[1:]) % flow.MEMBERS)


def idle_longest_us(duration_ns: int) -> float:
    """The longest step of a loop that only looks at the clock: what the machine does to everybody."""
    clock = time.perf_counter_ns
    begin = last = clock()
    longest = 0
    while last - begin < duration_ns:
        now = clock()
        if now - last > longest:
            longest = now - last
        last = now
    return longest / 1000


def book_size(resting: int, commands: int) -> Found:
    """Memory per resting order; nanoseconds per command and the longest command while so many rest."""
    engine, source, judge = Engine(), Resting(), flow.Judge()
    flow.open_market(engine)
    for _ in range(WARM):  # what is made once is not the orders'
        engine.apply(source.order()[1], "warm")
    engine.apply(MassCancel("away"), "warm")
    source = Resting()
    wrong: list[str] = []
    gc.collect()
    before = resident_bytes()
    for _ in range(resting):
        participant, order = source.order()
        [accepted] = engine.apply(order, participant)
        if not isinstance(accepted, Accepted):
            wrong.append(f"book size: expected an order to rest, got {accepted}")
            return {}, wrong
    gc.collect()
    grown = resident_bytes() - before

    # The commands are made beforehand; an idle loop as long as the measured one says what the machine adds.
    probes = [source.any() for _ in range(2 * commands)]
    apply = engine.apply
    answers: list[tuple[Event, ...]] = []  # not lists, which the collector would have to visit
    keep = answers.append
    gc.collect()
    start = time.perf_counter_ns()
    for participant, command in probes[:commands]:
        keep(tuple(apply(command, participant)))
    elapsed = time.perf_counter_ns() - start

    pauses: list[int] = []
    began = 0

    def collecting(phase: str, info: dict[str, int]) -> None:
        nonlocal began
        if phase == "start":
            began = time.perf_counter_ns()
        else:
            pauses.append(time.perf_counter_ns() - began)

    clock = time.perf_counter_ns
    waits: list[int] = []
    note = waits.append
    gc.callbacks.append(collecting)
    try:
        for participant, command in probes[commands:]:
            before_one = clock()
            answer = apply(command, participant)
            note(clock() - before_one)
            keep(tuple(answer))
    finally:
        gc.callbacks.remove(collecting)

    again = Resting()
    for _ in range(resting):
        judge.take(*again.order())
    for participant, command in probes:
        judge.take(participant, command)
    got = flow.found(answers)
    right = judge.truth
    checksum = checksum_from(answers, WARM)
    for name, expected, came in (
        ("trades", right.trades, got.trades),
        ("volume", right.volume, got.volume),
        ("refused", right.refused, got.refused),
        ("checksum of trades", right.checksum, checksum),
        ("orders", right.orders - resting, got.orders),
    ):
        if expected != came:
            wrong.append(f"book size {resting}: expected {name} {expected}, got {came}")
    percentiles = figures.percentiles(waits)
    return {
        "ns_per_command": elapsed / commands,
        "bytes_per_order": grown / resting,
        "p99.9_us": percentiles["p99.9"],
        "longest_us": percentiles["max"],
        "collector_longest_us": max(pauses, default=0) / 1000,
        "idle_longest_us": idle_longest_us(sum(waits)),
    }, wrong


def checksum_from(answers: Sequence[Sequence[Event]], numbered: int) -> int:
    """The checksum of all trades, where ``numbered`` orders had been numbered before the first that counts."""
    checksum = 0
    for answer in answers:
        for event in answer:
            if isinstance(event, Traded):
                maker, taker = event.buy_order_id - numbered, event.sell_order_id - numbered
                if event.maker == Side.SELL:
                    maker, taker = taker, maker
                checksum = (checksum * 1_000_003 + maker * 31 + taker * 17 + event.price * 7 + event.quantity) % 2**64
    return checksum


# --- all of it ---------------------------------------------------------------------------------------------------


def measure(
    cases: list[str],
    orders: int,
    cancels: int,
    commands: int,
    sizes: list[int],
    probes: int,
    rounds: int,
    scratch: Path,
) -> dict[str, Any]:
    """All figures as one JSON object."""
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(dir=scratch) as place:
        log_bytes = 0
        if "replay" in cases:
            log_bytes, problems = in_a_process_of_its_own(write_log, Path(place), commands)
            wrong += [f"log: {line}" for line in problems]
        work: dict[str, tuple[Callable[..., Found], tuple[Any, ...]]] = {
            "auction": (auction, (orders,)),
            "mass-cancel": (mass_cancel, (cancels,)),
            "replay": (replay_log, (Path(place), commands)),
            "bare-book": (bare_book, (max(sizes),)),
        }
        todo = {name: work[name] for name in cases if name in work}
        if "book-size" in cases:
            todo |= {f"book-size {size}": (book_size, (size, probes)) for size in sizes}
        answers: dict[str, list[dict[str, float]]] = {name: [] for name in todo}
        for _ in range(rounds):
            for name, (function, given) in todo.items():
                found, problems = in_a_process_of_its_own(function, *given)
                answers[name].append(found)
                wrong += problems
    said = {
        name: {key: figures.spread([answer[key] for answer in found], 2) for key in found[0]}
        for name, found in answers.items()
        if all(found)
    }
    return {
        "benchmark": "large",
        "environment": machine.environment(),
        "workload": {
            "about": f"itayose of {orders:,} orders; mass cancel of {cancels:,}; replay of {commands:,} commands"
            f"{f' ({log_bytes:,} bytes)' if log_bytes else ''}; {probes:,} commands at each book size",
            "orders": orders,
            "cancels": cancels,
            "commands": commands,
            "probes": probes,
            "log_bytes": log_bytes,
        },
        "figures": {name: value for name, value in said.items() if not name.startswith("book-size")},
        "book_size": {name.split()[1]: value for name, value in said.items() if name.startswith("book-size")},
        "checked": "auction by demand and supply, cancels by who stays, replay by digest, trades by a plain matcher",
        "wrong": wrong,
    }


def show(console: Console, result: dict[str, Any]) -> None:
    names = {
        "auction_ms": "itayose, ms",
        "indicative_ms": "indicative price before it, ms",
        "mass_cancel_ms": "mass cancel, ms",
        "replay_s": "replay, s",
        "replay_ns_per_command": "replay, ns per command",
        "replay_most_mib": "replay, most memory, MiB",
        "row_bytes": "bare book, bytes per resting order",
        "row_ns": "bare book, ns per order that comes to rest",
        "row_longest_us": "bare book, longest of them, µs",
        "row_idle_longest_us": "idle loop of that length, longest step, µs",
    }
    rows = [
        [names[key], *figures.cells(value)]
        for found in result["figures"].values()
        for key, value in found.items()
        if key in names
    ]
    if rows:
        console.print(figures.table("Large", ["", "median", "least", "most"], rows))
    columns = {
        "ns_per_command": "ns per command",
        "bytes_per_order": "bytes per order",
        "p99.9_us": "p99.9 µs",
        "longest_us": "longest µs",
        "collector_longest_us": "collector µs",
        "idle_longest_us": "idle µs",
    }
    rows = [
        [f"{int(size):,}", *(figures.cells(found[key])[0] for key in columns)]
        for size, found in result["book_size"].items()
    ]
    if rows:
        console.print(figures.table("Book size", ["orders rest", *columns.values()], rows))
        console.print("Medians over rounds; longest: one command; collector: its longest run; idle: see above")


def main(arguments: list[str] | None = None) -> int:
    parser = figures.parser("large", __doc__)
    parser.set_defaults(rounds=3)
    parser.add_argument("--only", default=",".join(CASES), help="some of " + ",".join(CASES))
    parser.add_argument("--orders", type=figures.positive, default=500_000, help="in the auction")
    parser.add_argument("--cancels", type=figures.positive, default=100_000, help="resting orders in the mass cancel")
    parser.add_argument("--commands", type=figures.positive, default=200_000, help="in the log; in full: 10000000")
    parser.add_argument("--sizes", type=figures.numbers, default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--probes", type=figures.positive, default=50_000, help="commands at each book size, twice")
    parser.add_argument("--directory", type=Path, default=machine.ROOT / "build", help="for the log")
    options = parser.parse_args(arguments)
    cases = options.only.split(",")
    if unknown := [name for name in cases if name not in CASES]:
        parser.error(f"expected some of {', '.join(CASES)}, got {', '.join(unknown)} - at --only")
    options.directory.mkdir(parents=True, exist_ok=True)
    result = measure(
        *(cases, options.orders, options.cancels, options.commands, options.sizes, options.probes, options.rounds),
        options.directory,
    )
    return figures.finish(result, show, as_json=options.json)


if __name__ == "__main__":
    raise SystemExit(main())
