"""A reader of the market order by order is whole, says when it is not, and becomes so again."""

from __future__ import annotations

import asyncio
import random

import msgspec
import pytest

from engine.commands import CancelOrder
from engine.log import MemoryStorage
from engine.types import Side
from gateway.bus.messages import OrderChanges, OrderData, OrdersSnapshot
from gateway.client import BadCommand, Client
from gateway.liveorders import LiveOrders
from tests.gateway.market import ManualClock, Market, buy, market, sell
from tests.gateway.road import Road

_decode = msgspec.msgpack.Decoder(OrderData).decode
BY_ORDER = '[market_data]\norder_by_order = ["CONTINUOUS"]\ndigest_every = 2\n'


def agree(m: Market, live: LiveOrders) -> bool:
    engine = m.exchange.engine
    return all(
        [(o.order_id, o.price, o.quantity) for o in live.book.queue(side)] == engine.shown(live.instrument, side)
        for side in Side
    )


async def some_orders(m: Market, first: int = 0, count: int = 20) -> None:
    """One message per batch."""
    for number in range(first, first + count):
        reports = len(m.reports("alfa"))
        m.send("alfa", buy(f"b-{number}", 90 + number % 7, 5) if number % 2 else sell(f"s-{number}", 96, 4))
        await m.until(lambda before=reports: len(m.reports("alfa")) > before)
        if number % 5 == 4:
            reports = len(m.reports("alfa"))
            m.send("alfa", CancelOrder(f"c-{number}", f"b-{number - 1}" if number % 2 == 0 else f"b-{number}"))
            await m.until(lambda before=reports: len(m.reports("alfa")) > before)


async def test_the_exchange_publishes_the_profiles_that_are_named_and_no_other():
    async with market(text=BY_ORDER) as m:
        m.send("alfa", buy("b-1", 100, 5), buy("b-2", 100, 5, "CALL"))
        await m.until(lambda: any(isinstance(each, OrderChanges) for each in m.bus.by_order.get("CONT", [])))
        assert list(m.bus.by_order) == ["CONT"]
    async with market() as m:
        m.send("alfa", buy("b-1", 100, 5), buy("b-2", 100, 5, "CALL"))
        await m.until(lambda: any(isinstance(each, OrderChanges) for each in m.bus.by_order.get("CALL", [])))
        assert list(m.bus.by_order) == ["CALL"]


async def test_a_reader_follows_across_a_restart_of_the_exchange():
    storage = MemoryStorage()
    live = LiveOrders("CONT")
    for turn in range(2):
        async with market(storage, BY_ORDER) as m:
            await some_orders(m, 20 * turn)
            said = m.bus.by_order["CONT"]
            assert isinstance(said[0], OrdersSnapshot)
            for message in said:
                live.take(message, kept=False)
            assert live.is_whole
            assert agree(m, live)
            assert len(live.book) > 3
    assert live.proofs > 5
    assert (live.gaps, live.drifts) == (0, 0)


@pytest.mark.parametrize("seed", range(5))
async def test_what_is_lost_is_noticed_and_a_snapshot_makes_it_whole_again(seed: int):
    draw = random.Random(seed)
    clock = ManualClock()
    async with market(text=BY_ORDER, clock=clock) as m:
        live = LiveOrders("CONT")
        for turn in range(6):
            before = len(m.bus.by_order["CONT"])
            await some_orders(m, 20 * turn)
            wanted = False
            for message in m.bus.by_order["CONT"][before:]:
                if draw.random() > 0.1:
                    wanted = live.take(message) or wanted
            clock.machine_ns += 10**10
            count = len(m.bus.by_order["CONT"])
            await some_orders(m, 1_000 + turn, 1)
            for message in m.bus.by_order["CONT"][count:]:
                live.take(message)
            assert live.is_whole
            assert agree(m, live)
        assert live.gaps
        assert live.drifts == 0


async def test_a_digest_or_a_change_that_does_not_fit_is_a_drift_and_wants_a_snapshot():
    live = LiveOrders("CONT")
    raw = msgspec.msgpack.encode
    empty = LiveOrders("CONT").book.digest()
    snapshot = {"kind": "orders", "n": 1, "time_ns": 1, "instrument": "CONT", "part": 0, "parts": 1}
    assert not live.take(_decode(raw({**snapshot, "orders": [], "digest": empty + 1})))
    assert (live.is_whole, live.drifts) == (False, 1)
    assert not live.take(_decode(raw({**snapshot, "orders": [], "digest": empty})))
    assert live.is_whole
    for number, changes in enumerate(([["deleted", 5]], [["added", 1, 0, 9, 9], ["added", 1, 0, 9, 9]]), start=2):
        live.is_whole, live.n = True, number - 1
        assert live.take(_decode(raw({"kind": "changes", "n": number, "time_ns": 1, "changes": changes})))
        assert not live.is_whole
    assert live.drifts == 3


async def test_parts_of_two_snapshots_are_not_mixed():
    live = LiveOrders("CONT")
    book = LiveOrders("CONT").book

    def part(n: int, number: int) -> OrdersSnapshot:
        return OrdersSnapshot(n, 1, "CONT", number, 2, [], book.digest())

    live.take(part(5, 0))
    live.take(part(6, 1))
    assert not live.is_whole
    live.take(part(6, 0))
    assert (live.is_whole, live.n) == (True, 6)
    live.take(part(5, 0))
    live.take(part(5, 1))
    assert live.n == 6


async def test_the_client_keeps_an_order_book_across_a_lost_connection():
    async with market(text=BY_ORDER) as m:
        await some_orders(m)
        road = Road(m)
        async with Client("", "bravo", link=road.connect, timeout=10, resend_after=0.05) as client:  # type: ignore[arg-type]
            live = await client.order_book("CONT")
            assert agree(m, live)
            await some_orders(m, 20)
            road.cut()
            await some_orders(m, 40)
            await client.order_book("CONT")
            async with asyncio.timeout(10):
                while not agree(m, live):  # noqa: ASYNC110 (a book sets no event)
                    await asyncio.sleep(0.01)
            with pytest.raises(BadCommand, match="cont"):
                await client.order_book("cont")
