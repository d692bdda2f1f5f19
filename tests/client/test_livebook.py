"""The subscriber's book: what is shown as whole is whole."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import pytest
from rich.console import Console

from engine.types import Side
from gateway.bus.messages import AuctionResult, Depth, Indicative, Level, PhaseMessage, PublicTrade, Snapshot, Trades
from gateway.cli.book import as_json, picture
from gateway.client import BadCommand, Client, NotAnswering
from gateway.livebook import LiveBook
from gateway.marketdata import digest
from tests.client.fake import FakeExchange

CODE = "KDX-2107"


def snapshot(n: int, bids: dict[int, int], asks: dict[int, int], **fields: Any) -> Snapshot:
    best_first = sorted(bids, key=lambda price: (price != 0, -price))
    levels = [Level(price, bids[price]) for price in best_first], [Level(p, asks[p]) for p in sorted(asks)]
    plain: dict[str, Any] = {
        "n": n,
        "time_ns": n,
        "instrument": CODE,
        "phase": "PreOpen",
        "suspended": False,
        "trading_date": 20261124,
        "price_decimals": 0,
        "lot": 1,
        "reference_price": 100,
        "lower_limit": 0,
        "upper_limit": 0,
        "last_price": 0,
        "last_quantity": 0,
        "volume": 0,
        "indicative_price": 0,
        "indicative_volume": 0,
        "indicative_surplus": 0,
        "bids": levels[0],
        "asks": levels[1],
        "digest": digest(*levels),
    }
    return Snapshot(**(plain | fields))


def depth(n: int, bids: dict[int, int], asks: dict[int, int], check: int | None = None) -> Depth:
    return Depth(n, n, [Level(*row) for row in bids.items()], [Level(*row) for row in asks.items()], check)


def test_a_book_is_a_snapshot_and_the_changes_behind_it() -> None:
    book = LiveBook(CODE)
    assert not book.take(snapshot(7, {100: 5, 0: 2}, {101: 3}))
    assert not book.take(depth(8, {100: 0, 99: 4}, {}))
    assert not book.take(Indicative(9, 9, 101, 2, -1))
    assert not book.take(Trades(10, 10, [PublicTrade(1, 101, 2, -1, 10)]))
    assert not book.take(AuctionResult(11, 11, 3, 101, 2, 0, 1))
    assert not book.take(PhaseMessage(12, 12, "Break", False, 20261124))

    assert book.is_whole
    assert book.ladder() == ([Level(0, 2), Level(99, 4)], [Level(101, 3)])
    assert (book.phase, book.last_price, book.volume, book.indicative_price) == ("Break", 101, 2, 0)
    assert [trade.trade_id for trade in book.tape] == [1]


def test_market_orders_stand_before_the_best_price() -> None:
    book = LiveBook(CODE)
    book.take(snapshot(1, {100: 1, 102: 1, 0: 1}, {0: 4, 103: 1}))
    bids, asks = book.ladder(2)
    assert [level.price for level in bids] == [0, 102]
    assert [level.price for level in asks] == [0, 103]


def test_changes_that_overtake_the_snapshot_are_kept_for_it() -> None:
    book = LiveBook(CODE)
    book.take(depth(9, {99: 1}, {}))
    book.take(depth(8, {100: 0}, {}))
    assert not book.is_whole
    book.take(snapshot(7, {100: 5}, {}))
    assert (book.is_whole, book.n, book.bids) == (True, 9, {99: 1})


def test_what_the_snapshot_already_holds_is_not_applied_again() -> None:
    book = LiveBook(CODE)
    book.take(snapshot(7, {100: 5}, {}))
    book.take(depth(6, {100: 9}, {}))
    book.take(snapshot(3, {100: 1}, {}))
    assert (book.n, book.bids) == (7, {100: 5})


def test_a_hole_asks_for_the_snapshot_and_is_closed_by_it() -> None:
    book = LiveBook(CODE)
    book.take(snapshot(1, {100: 5}, {}))
    assert book.take(depth(3, {99: 1}, {}))  # true: please subscribe again
    assert not book.take(depth(4, {98: 1}, {}))  # asked already
    assert not book.is_whole
    book.take(snapshot(1, {100: 5}, {}))  # the retained one is as old as what we have: the hole stays
    assert not book.is_whole
    book.take(snapshot(3, {100: 6, 99: 1}, {}))
    assert (book.is_whole, book.n, book.bids, book.gaps) == (True, 4, {100: 6, 99: 1, 98: 1}, 1)


def test_a_digest_that_does_not_agree_is_a_drift_and_is_made_good() -> None:
    book = LiveBook(CODE)
    book.take(snapshot(1, {100: 5}, {}))
    right = digest([Level(100, 5), Level(99, 1)], [])
    assert not book.take(depth(2, {99: 1}, {}, right))
    assert book.take(depth(3, {98: 1}, {}, right))
    assert (book.is_whole, book.drifts, book.proofs) == (False, 1, 1)
    book.take(snapshot(4, {100: 5, 99: 1, 97: 1}, {}))
    assert book.is_whole


def test_a_snapshot_that_contradicts_its_own_digest_is_not_believed() -> None:
    book = LiveBook(CODE)
    book.take(snapshot(1, {100: 5}, {}, digest=1))
    assert (book.is_whole, book.drifts) == (False, 1)


def test_numbers_that_jump_at_a_restart_are_taken_from_the_snapshot() -> None:
    book = LiveBook(CODE)
    book.take(snapshot(5, {100: 5}, {}))
    book.take(snapshot(9_000, {100: 6}, {}))
    book.take(depth(9_001, {100: 7}, {}))
    assert (book.is_whole, book.bids, book.gaps) == (True, {100: 7}, 0)


def test_a_snapshot_of_now_with_a_lower_number_begins_another_market() -> None:
    book = LiveBook(CODE)
    book.take(snapshot(9_000, {100: 5}, {}, phase="Closed"))
    book.take(depth(3, {98: 1}, {}), kept=False)
    book.take(snapshot(4, {99: 1}, {}), kept=False)
    book.take(depth(5, {99: 2}, {}), kept=False)
    assert (book.is_whole, book.n, book.bids, book.phase) == (True, 5, {99: 2}, "PreOpen")


async def test_the_client_keeps_a_book_through_a_lost_message(exchange: FakeExchange) -> None:
    exchange.market(CODE, snapshot(1, {100: 5}, {}))
    async with asyncio.timeout(20), Client("mqtt://fake", "alpha", link=exchange.connect) as client:
        book = await client.book(CODE)
        assert book.bids == {100: 5}
        exchange.snapshots[CODE] = snapshot(3, {100: 5, 99: 2}, {})
        exchange.market(CODE, depth(4, {98: 1}, {}))  # 2 and 3 never came
        async for _ in book.changes():
            if book.n == 4:
                break
        assert book.is_whole
        assert book.bids == {100: 5, 99: 2, 98: 1}
        assert await client.book(CODE) is book


async def test_a_book_is_whole_again_after_a_reconnect(exchange: FakeExchange) -> None:
    exchange.market(CODE, snapshot(1, {100: 5}, {}))
    async with asyncio.timeout(20), Client("mqtt://fake", "alpha", link=exchange.connect) as client:
        book = await client.book(CODE)
        exchange.snapshots[CODE] = snapshot(8, {100: 9}, {})
        exchange.cut()
        async for _ in book.changes():
            if book.is_whole and book.n == 8:
                break
        assert book.bids == {100: 9}


async def test_an_instrument_nobody_listed_is_an_answer(exchange: FakeExchange) -> None:
    async with Client("mqtt://fake", "alpha", link=exchange.connect, timeout=0.1) as client:
        with pytest.raises(NotAnswering, match="No snapshot of NO-SUCH"):
            await client.book("NO-SUCH")
        with pytest.raises(BadCommand, match="Expected an instrument code"):
            await client.book("dojima/v1")


async def test_market_data_needs_no_membership(exchange: FakeExchange) -> None:
    exchange.market(CODE, snapshot(1, {100: 5}, {}))
    exchange.receive = lambda message: None  # type: ignore[method-assign]
    async with Client("mqtt://fake", "viewer", link=exchange.connect, market_data_only=True, timeout=5) as client:
        assert (await client.book(CODE)).bids == {100: 5}
        with pytest.raises(BadCommand, match="opened for market data only"):
            await client.buy(CODE, 1, 100)


@pytest.fixture
def exchange() -> FakeExchange:
    return FakeExchange()


def test_flags_come_with_a_snapshot_that_has_nothing_else_that_is_new() -> None:
    book = LiveBook(CODE)
    book.take(snapshot(7, {100: 5}, {101: 3}))
    book.take(depth(8, {100: 4}, {}))
    book.take(snapshot(8, {100: 4}, {101: 3}, in_window=True), kept=False)
    assert (book.in_window, book.set_aside, book.bids) == (True, False, {100: 4})


def test_a_quote_and_what_keeps_a_book_from_trading_are_shown() -> None:
    book = LiveBook(CODE)
    fields = {"quote": "special", "quote_side": Side.SELL, "quote_price": 970, "quote_due_ns": 0, "set_aside": True}
    book.take(snapshot(7, {1000: 5}, {900: 3}, **fields))
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(picture(book, 5))
    text = console.export_text()
    assert "special ask quote at 970, at the day's limit" in text
    assert "set aside" in text
    assert as_json(book, 5, 5) | {"quote": "special", "quote_side": "sell", "quote_price": 970} == as_json(book, 5, 5)
