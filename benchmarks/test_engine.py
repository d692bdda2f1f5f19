"""What does one command cost the engine, by kind?

Each round starts from a market made anew and applies 1,000 commands of one kind, so a millisecond in the table is a
microsecond per command. The market is CONTINUOUS with 2,000 resting orders, an auction has 10,000. Not included:
decoding, the log, MQTT. Every benchmark checks what its commands did.

    python -m pytest benchmarks/test_engine.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pytest_benchmark.fixture import BenchmarkFixture

from engine import (
    Accepted,
    Amended,
    AmendOrder,
    AuctionUncrossed,
    Cancelled,
    CancelOrder,
    Command,
    Engine,
    Event,
    ListInstrument,
    MassCancel,
    MassCancelled,
    NewOrder,
    Phase,
    SetCalendar,
    SetPhase,
    Side,
    StartDay,
    Traded,
)

CODE = "BENCH"
COMMANDS = 1_000
ROUNDS = 20
MIDDLE = 100_000


def resting(count: int) -> list[NewOrder]:
    """Orders on both sides of ``MIDDLE`` that do not meet, over 50 prices a side."""
    return [
        NewOrder(f"r{n}", CODE, Side(n % 2), 100, MIDDLE + (1 if n % 2 else -1) * (1 + n // 2 % 50))
        for n in range(count)
    ]


def market(profile: str, orders: list[NewOrder]) -> Engine:
    engine = Engine()
    opening: list[Command] = [
        SetCalendar(20261101, 20261231, []),
        ListInstrument(CODE, profile=profile, reference_price=MIDDLE),
        StartDay(20261124),
        SetPhase(CODE, Phase.PRE_OPEN if profile == "START" else Phase.CONTINUOUS),
    ]
    for command in opening:
        engine.apply(command)
    for order in orders:
        [accepted] = engine.apply(order, "maker")
        assert isinstance(accepted, Accepted), accepted
    return engine


def run(engine: Engine, commands: list[Command]) -> list[list[Event]]:
    apply = engine.apply
    return [apply(command, "taker") for command in commands]


def measure(benchmark: BenchmarkFixture, setup: Callable[[], tuple[Engine, list[Command]]]) -> list[list[Event]]:
    """1,000 commands per round, a fresh market for each; what the last round said."""
    answers: list[list[Event]] = benchmark.pedantic(run, setup=lambda: (setup(), {}), rounds=ROUNDS, warmup_rounds=2)
    assert len(answers) == COMMANDS
    return answers


def test_new_order_that_rests(benchmark: BenchmarkFixture) -> None:
    def setup() -> tuple[Engine, list[Command]]:
        return market("CONTINUOUS", resting(2_000)), [
            NewOrder(f"n{n}", CODE, Side.BUY, 100, MIDDLE - 1 - n % 50) for n in range(COMMANDS)
        ]

    for answer in measure(benchmark, setup):
        assert [type(event) for event in answer] == [Accepted]


def test_new_order_that_trades_once(benchmark: BenchmarkFixture) -> None:
    def setup() -> tuple[Engine, list[Command]]:
        return market("CONTINUOUS", resting(2_000)), [
            NewOrder(f"n{n}", CODE, Side.BUY, 100, MIDDLE + 50) for n in range(COMMANDS)
        ]

    for answer in measure(benchmark, setup):
        assert [type(event) for event in answer] == [Accepted, Traded]


def test_cancel(benchmark: BenchmarkFixture) -> None:
    def setup() -> tuple[Engine, list[Command]]:
        engine = market("CONTINUOUS", resting(2_000))
        for n in range(COMMANDS):
            engine.apply(NewOrder(f"n{n}", CODE, Side.SELL, 100, MIDDLE + 1 + n % 50), "taker")
        return engine, [CancelOrder(f"c{n}", f"n{n * 7 % COMMANDS}") for n in range(COMMANDS)]

    for answer in measure(benchmark, setup):
        assert [type(event) for event in answer] == [Cancelled]


def test_amend_to_a_smaller_quantity(benchmark: BenchmarkFixture) -> None:
    def setup() -> tuple[Engine, list[Command]]:
        engine = market("CONTINUOUS", resting(2_000))
        for n in range(COMMANDS):
            engine.apply(NewOrder(f"n{n}", CODE, Side.SELL, 100, MIDDLE + 1 + n % 50), "taker")
        return engine, [AmendOrder(f"a{n}", f"n{n * 7 % COMMANDS}", quantity=60) for n in range(COMMANDS)]

    for answer in measure(benchmark, setup):
        [amended] = answer
        assert isinstance(amended, Amended)
        assert amended.kept_priority


def test_the_same_order_again(benchmark: BenchmarkFixture) -> None:
    order = NewOrder("once", CODE, Side.BUY, 100, MIDDLE - 10)

    def setup() -> tuple[Engine, list[Command]]:
        engine = market("CONTINUOUS", resting(2_000))
        engine.apply(order, "taker")
        return engine, [order] * COMMANDS

    for answer in measure(benchmark, setup):
        [accepted] = answer
        assert isinstance(accepted, Accepted)
        assert accepted.repeat


def call(count: int) -> list[NewOrder]:
    """Orders that overlap around ``MIDDLE``, so that an auction trades about half of them."""
    return [
        NewOrder(f"r{n}", CODE, Side(n % 2), 1 + n % 97, MIDDLE + n * 7919 % 101 - 50 + (-10 if n % 2 else 10))
        for n in range(count)
    ]


def test_auction_of_10_000_orders(benchmark: BenchmarkFixture) -> None:
    """One command, not 1,000: a millisecond is a millisecond."""

    def setup() -> tuple[tuple[Engine], dict[str, Any]]:
        engine = market("START", call(10_000))
        engine.apply(SetPhase(CODE, Phase.PRE_OPEN_NCP))
        return (engine,), {}

    def uncross(engine: Engine) -> list[Event]:
        return engine.apply(SetPhase(CODE, Phase.OPENING_AUCTION))

    events = benchmark.pedantic(uncross, setup=setup, rounds=5)

    [result] = [event for event in events if isinstance(event, AuctionUncrossed)]
    trades = [event for event in events if isinstance(event, Traded)]
    assert result.volume == sum(trade.quantity for trade in trades) > 100_000
    assert {trade.price for trade in trades} == {result.price}


def test_mass_cancel_of_10_000_orders(benchmark: BenchmarkFixture) -> None:
    """One command, not 1,000: a millisecond is a millisecond."""

    def setup() -> tuple[tuple[Engine], dict[str, Any]]:
        return (market("CONTINUOUS", resting(10_000)),), {}

    def cancel(engine: Engine) -> list[Event]:
        return engine.apply(MassCancel("all"), "maker")

    events = benchmark.pedantic(cancel, setup=setup, rounds=5)

    assert isinstance(events[-1], MassCancelled)
    assert events[-1].count == 10_000 == len(events) - 1
