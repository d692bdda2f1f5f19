"""The engine as a library: pleasant to use, the same everywhere, and able to vouch for itself."""

from __future__ import annotations

import doctest
import os
import random
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

import engine
from engine import Engine, NewOrder, Phase, Side, TimeInForce
from engine.faults import InvariantBroken
from engine.identities import BLOCK
from tests.market import CODE, START_DAY, Market, start, zaraba

ROOT = Path(__file__).resolve().parents[2]


def test_a_notebook_runs_an_auction_in_ten_lines() -> None:
    results = doctest.testmod(engine)

    assert results.attempted >= 9
    assert results.failed == 0
    lines = [line for line in str(engine.__doc__).splitlines() if line.startswith(">>> ")]
    assert len(lines) <= 10


def test_queries_answer_with_values_and_change_nothing() -> None:
    market = start(Phase.PRE_OPEN, reference_price=100, rules={"allocation": "SIMULTANEOUS_RR"})
    market.buy(10, 100, id="a-1", account="x")
    before = market.engine.digest()

    order = market.engine.open_orders("alpha")[0]
    view = market.engine.instrument(CODE)

    assert (order.client_order_id, order.side, order.price, order.open_quantity, order.account) == (
        "a-1", Side.BUY, 100, 10, "x",
    )  # fmt: skip
    assert market.engine.order(1) == order
    assert market.engine.order_id("alpha", "a-1") == 1
    assert market.engine.order_id("alpha", "a-2") == market.engine.order_id("nobody", "a-1") == 0
    assert market.engine.open_orders("nobody") == []
    assert (view.phase, view.profile, view.reference_price) == (Phase.PRE_OPEN, "START", 100)
    assert view.rules["allocation"] == "SIMULTANEOUS_RR"
    assert market.engine.instruments() == [CODE]
    assert market.engine.participants() == ["alpha"]
    assert market.engine.digest() == before


def test_a_query_for_what_does_not_exist_raises_and_names_it() -> None:
    with pytest.raises(KeyError, match="NONE"):
        Engine().instrument("NONE")
    with pytest.raises(KeyError, match="NONE"):
        Engine().depth("NONE")
    with pytest.raises(KeyError, match="from 1 to 0, got 1"):
        Engine().order(1)


def test_an_order_that_ended_long_ago_is_still_known() -> None:
    market = start(Phase.PRE_OPEN)
    market.buy(10, 100)
    market.phase(*START_DAY[1:])

    order = market.engine.order(1)

    assert (order.quantity, order.open_quantity) == (10, 0)


# --- the same everywhere ---------------------------------------------------------------------------------------------


def a_week(seed: int) -> tuple[bytes, bytes]:
    """A few thousand commands: all event bytes, and the digest of the state they leave."""
    random_ = random.Random(seed)
    market = Market()
    engine_ = market.engine
    market.must(
        engine.ListInstrument("CALLS", reference_price=100),
        engine.ListInstrument("ZARABA", "CONTINUOUS", reference_price=100),
    )
    said = bytearray()
    for day in range(20261124, 20261128):
        market.must(engine.StartDay(day), engine.SetPhase("ZARABA", Phase.CONTINUOUS))
        for phase in START_DAY:
            market.must(engine.SetPhase("CALLS", phase))
            for _ in range(40):
                command = NewOrder(
                    market.id(),
                    random_.choice(["CALLS", "ZARABA"]),
                    random_.choice(list(Side)),
                    random_.randrange(1, 50),
                    random_.randrange(90, 110),
                    time_in_force=random_.choice([TimeInForce.DAY, TimeInForce.GTC, TimeInForce.ON_CLOSE]),
                )
                said += msgspec.msgpack.encode(engine_.apply(command, random_.choice(["a", "b", "c"])))
                if random_.random() < 0.2:
                    cancel = engine.CancelOrder(market.id(), f"id-{random_.randrange(1, market.count)}")
                    said += msgspec.msgpack.encode(engine_.apply(cancel, random_.choice(["a", "b", "c"])))
        market.must(engine.SetPhase("ZARABA", Phase.CLOSED))
    engine_.check()
    assert engine_.trades > 100
    return bytes(said), engine_.digest()


def test_events_and_state_do_not_depend_on_the_hash_seed() -> None:
    said, digest = a_week(7)
    program = (
        "from tests.engine.test_core_library import a_week; said, digest = a_week(7); print(said.hex(), digest.hex())"
    )

    for seed in ("0", "4711"):
        run = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            timeout=60,
        )
        assert run.stdout.split() == [said.hex(), digest.hex()]


def test_the_digest_tells_states_apart_that_differ_in_one_thing() -> None:
    def market(*orders: tuple[int, int, str]) -> bytes:
        made = zaraba()
        for quantity, price, name in orders:
            made.buy(quantity, price, id=name)
        return made.engine.digest()

    digests = {
        market((10, 100, "a")),
        market((11, 100, "a")),
        market((10, 101, "a")),
        market((10, 100, "b")),
        market((10, 100, "a"), (5, 100, "b")),
        market((5, 100, "b"), (10, 100, "a")),
    }

    assert len(digests) == 6
    assert market((10, 100, "a")) in digests


def test_the_digest_sees_a_changed_phase_halt_reference_and_table() -> None:
    digests = set()
    for command in (
        engine.SetPhase(CODE, Phase.PRE_OPEN_NCP),
        engine.SuspendInstrument(CODE),
        engine.SetReferencePrice(CODE, 5),
        engine.SetReferencePrice(CODE, 6),
        engine.SetTickTable("one", 0, [engine.TickRow(0, 1)]),
        engine.SetLimitTable("one", 0, [engine.LimitRow(0, 1)]),
        engine.SetCalendar(20260101, 20261231, []),
        engine.SetCalendar(20260101, 20261231, [20260504]),
        engine.ListInstrument("NEW"),
    ):
        market = start(Phase.PRE_OPEN)
        market.must(command)
        digests.add(market.engine.digest())

    assert len(digests) == 9


def test_the_digest_does_not_depend_on_when_it_was_asked_for() -> None:
    """What can no longer change is hashed as it comes; the answer must be that of an engine never asked before."""
    freely: dict[str, int | str] = {"self_trade": "none"}
    asked, fresh = zaraba(rules=freely), zaraba(rules=freely)
    for i in range(10_000):
        for market in (asked, fresh):
            side = Side.BUY if i % 2 else Side.SELL
            market.engine.apply(NewOrder(f"o-{i}", CODE, side, 1 + i % 3, 100), "alpha")
            market.engine.apply(engine.CancelOrder(f"c-{i}", f"o-{i // 2}"), "alpha")
        if i % 1_000 == 0:
            asked.engine.digest()
            asked.engine.mark_digest()

    assert asked.engine.digest() == fresh.engine.digest()
    assert asked.engine.mark_digest() == fresh.engine.mark_digest()


def test_the_digest_sees_what_becomes_of_the_open_orders_of_a_block_that_was_hashed_before() -> None:
    def market(asked: bool, commands: list[engine.MemberCommand]) -> bytes:
        made = zaraba(rules={"self_trade": "none"})
        for i in range(BLOCK):
            made.engine.apply(NewOrder(f"o-{i}", CODE, Side.BUY, 10, 100), "alpha")
        if asked:
            made.engine.digest()
        for command in commands:
            made.engine.apply(command, "alpha")
        return made.engine.digest()

    sell = NewOrder("s-1", CODE, Side.SELL, 4, 100)
    ways: list[list[engine.MemberCommand]] = [
        [engine.AmendOrder("r-1", "o-1", 9), sell],
        [engine.AmendOrder("r-1", "o-1", 8), sell],
        [engine.AmendOrder("r-1", "o-1", 10, 99), sell],
        [engine.CancelOrder("r-1", "o-1"), sell],
        [engine.CancelOrder("r-2", "o-1"), sell],
        [engine.CancelOrder("r-1", "o-2"), sell],
        [engine.CancelOrder("r-1", "nothing"), sell],
        [engine.CancelOrder("r-1", "nobody"), sell],
        [sell, engine.CancelOrder("r-1", "o-1")],
    ]
    found = [market(True, way) for way in ways]

    assert len(set(found)) == len(ways)
    assert found == [market(False, way) for way in ways]


# --- vouching for itself ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "order", "value"),
    [
        ("open", 1, 0),
        ("open", 2, 99),
        ("price", 1, 7),
        ("next", 1, 0),
        ("previous", 2, 0),
        ("state", 1, 2),
        ("terms", 2, 1),
    ],
)
def test_check_notices_a_row_that_contradicts_its_book(column: str, order: int, value: int) -> None:
    market = zaraba()
    market.buy(10, 100)
    market.buy(10, 100)
    market.engine.check()

    getattr(market.engine._orders, column)[order] = value

    with pytest.raises(InvariantBroken):
        market.engine.check()


def test_check_notices_an_order_that_is_open_and_nowhere() -> None:
    market = zaraba()
    market.buy(10, 100)
    market.engine._instruments[0].book.remove(1)

    with pytest.raises(InvariantBroken, match="Order 1 is open in the table or in a book"):
        market.engine.check()


def test_check_notices_a_crossed_book_in_zaraba() -> None:
    market = zaraba()
    market.buy(10, 100)
    market.sell(10, 101)
    book = market.engine._instruments[0].book
    book.remove(1)
    market.engine._orders.price[1] = 102
    book.add(1)

    with pytest.raises(InvariantBroken, match="crossed"):
        market.engine.check()


def test_the_loaded_backend_is_named() -> None:
    assert engine.BACKEND in ("interpreted", "compiled")
