"""A subscriber that knows nothing but the messages has the same book as the engine, and can prove it."""

from __future__ import annotations

import asyncio
import zlib
from typing import Any

import msgpack
import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.commands import (
    AmendOrder,
    CancelOrder,
    MassCancel,
    MemberCommand,
    NewOrder,
    SetPhase,
    SetTokenStatus,
    SetWindow,
    StartDay,
)
from engine.log import MemoryStorage
from engine.types import OrderType, Phase, Side, TimeInForce, WindowKind
from gateway.bus.messages import AuctionResult, Depth, Indicative, PhaseMessage, QuoteMessage, Snapshot, Trades
from gateway.marketdata import digest
from tests.gateway.market import DAY, Market, buy, market, sell


class Subscriber:
    """Builds the book from the stream, as ``docs`` tell a member to."""

    def __init__(self) -> None:
        self.n = 0
        self.bids: dict[int, int] = {}
        self.asks: dict[int, int] = {}
        self.holes = 0
        self.checked = 0

    def take(self, message: Any) -> None:
        if isinstance(message, Snapshot):
            if message.n > self.n:
                self.bids = {level.price: level.quantity for level in message.bids}
                self.asks = {level.price: level.quantity for level in message.asks}
                self.n = message.n
            elif message.n == self.n:
                assert message.digest == digest(*self.levels())
            return
        if message.n != self.n + 1:
            self.holes += 1
            return  # wait for a snapshot
        self.n = message.n
        if isinstance(message, Depth):
            for levels, changes in ((self.bids, message.bids), (self.asks, message.asks)):
                for level in changes:
                    if level.quantity:
                        levels[level.price] = level.quantity
                    else:
                        del levels[level.price]
            if message.digest is not None:
                assert message.digest == digest(*self.levels())
                self.checked += 1

    def levels(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        bids = sorted(self.bids.items(), key=lambda level: (level[0] != 0, -level[0]))
        return bids, sorted(self.asks.items())


def follow(m: Market, code: str) -> Subscriber:
    found = Subscriber()
    for message in m.bus.market[code]:
        found.take(message)
    return found


orders = st.builds(
    lambda number, instrument, side, quantity, price, validity: (number, instrument, side, quantity, price, validity),
    st.integers(0, 30),
    st.sampled_from(["CALL", "CONT"]),
    st.sampled_from(list(Side)),
    st.integers(1, 9),
    st.integers(0, 6),
    st.sampled_from([TimeInForce.DAY, TimeInForce.IOC, TimeInForce.FOK, TimeInForce.ON_CLOSE, TimeInForce.ON_OPEN]),
)


def command(kind: int, order: tuple[int, str, Side, int, int, TimeInForce], request: int) -> MemberCommand:
    number, instrument, side, quantity, price, validity = order
    if kind <= 5:
        order_type = OrderType.LIMIT if price else OrderType.MARKET
        return NewOrder(f"o-{number}", instrument, side, quantity, price and 100 + price, order_type, validity)
    if kind == 6:
        return CancelOrder(f"r-{request}", f"o-{number}")
    if kind == 7:
        return MassCancel(f"r-{request}", instrument)
    return AmendOrder(f"r-{request}", f"o-{number}", quantity, price and 100 + price)


STEPS = [
    Phase.PRE_OPEN_NCP, Phase.OPENING_AUCTION, Phase.BREAK, Phase.PRE_CLOSE, Phase.PRE_CLOSE_NCP,
    Phase.CLOSING_AUCTION, Phase.CLOSED,
]  # fmt: skip


@settings(max_examples=40)
@given(
    st.lists(
        st.one_of(st.tuples(st.integers(0, 8), orders), st.none()),
        max_size=60,
    ),
    st.integers(1, 7),
)
def test_the_book_from_the_messages_is_the_engines_after_every_batch(
    steps: list[tuple[int, tuple[int, str, Side, int, int, TimeInForce]] | None], batch: int
):
    async def run() -> None:
        async with market(text="[market_data]\ndigest_every = 3\n") as m:
            phases = iter(STEPS)
            for request, step in enumerate(steps):
                if step is None:
                    phase = next(phases, None)
                    if phase is not None:
                        await m.exchange.submit(SetPhase("CALL", phase))
                else:
                    kind, order = step
                    m.send("alfa" if order[0] % 2 else "bravo", command(kind, order, request))
                    if request % batch == 0:
                        sequence = m.exchange.engine.sequence
                        await m.until(lambda sequence=sequence: m.exchange.engine.sequence > sequence)
                for code in ("CALL", "CONT"):
                    assert follow(m, code).levels() == m.exchange.engine.depth(code)
            await m.exchange.submit(SetPhase("CONT", Phase.CLOSED))
            for code in ("CALL", "CONT"):
                subscriber = follow(m, code)
                assert subscriber.levels() == m.exchange.engine.depth(code)
                assert subscriber.holes == 0
                indicative = [x for x in m.bus.market[code] if isinstance(x, Indicative)]
                found = m.exchange.engine.indicative(code)
                last = indicative[-1] if indicative else Indicative(0, 0, 0, 0, 0)
                assert (last.price, last.volume, last.surplus) == (found.price, found.volume, found.surplus)

    asyncio.run(run())


async def test_a_call_shows_its_price_and_the_auction_its_result():
    async with market() as m:
        m.send("alfa", buy("a-1", 101, 10, "CALL"))
        m.send("bravo", sell("b-1", 100, 4, "CALL"))
        await m.until_reports("bravo", 1)
        await m.exchange.submit(SetPhase("CALL", Phase.PRE_OPEN_NCP))
        await m.exchange.submit(SetPhase("CALL", Phase.OPENING_AUCTION))
        messages = m.bus.market["CALL"]
        shown = [x for x in messages if isinstance(x, Indicative)]
        assert [(x.price, x.volume, x.surplus) for x in shown][-2:] == [(101, 4, 6), (0, 0, 0)]
        (result,) = [x for x in messages if isinstance(x, AuctionResult)]
        assert (result.price, result.volume, result.surplus, result.trades) == (101, 4, 6, 1)
        (trades,) = [x for x in messages if isinstance(x, Trades)]
        assert [(x.price, x.quantity, x.maker) for x in trades.trades] == [(101, 4, -1)]
        assert [x.phase for x in messages if isinstance(x, PhaseMessage)][-2:] == ["PreOpenNCP", "OpeningAuction"]
        snapshot = m.bus.retained["CALL"]
        assert isinstance(snapshot, Snapshot)
        assert (snapshot.phase, snapshot.last_price, snapshot.volume) == ("OpeningAuction", 101, 4)
        numbered = [x.n for x in messages if not isinstance(x, Snapshot)]
        assert numbered == list(range(1, len(numbered) + 1))


async def test_public_messages_name_no_member():
    async with market() as m:
        heard: list[bytes] = []
        m.bus.on_message = lambda topic, payload: heard.append(payload) if topic.startswith("md/") else None
        m.send("alfa", buy("alfa-order", 100, 10, account="client-7"))
        m.send("bravo", sell("bravo-order", 100, 4))
        await m.until_reports("bravo", 2)
        assert heard
        for payload in heard:
            assert not any(word in payload for word in (b"alfa", b"bravo", b"client"))


async def test_numbers_after_a_restart_are_above_all_before_and_the_snapshot_says_so_first():
    storage = MemoryStorage()
    async with market(storage) as m:
        for index in range(50):
            m.send("alfa", buy(f"a-{index}", 100 + index % 7, 1))
            await m.until_reports("alfa", index + 1)
        before = follow(m, "CONT")
    async with market(storage) as m:
        first, *_ = m.bus.market["CONT"]
        assert isinstance(first, Snapshot)
        assert first.n > before.n
        m.send("alfa", buy("a-new", 99, 1))
        await m.until_reports("alfa", 1)
        for message in m.bus.market["CONT"]:
            before.take(message)  # the subscriber that was there all along
        assert before.levels() == m.exchange.engine.depth("CONT")
        assert before.holes == 0


async def test_what_comes_and_goes_within_a_batch_is_not_shown():
    async with market() as m:
        m.send("alfa", buy("a-1", 100, 10), CancelOrder("r-1", "a-1"), buy("a-2", 99, 1))
        await m.until_reports("alfa", 3)
        depths = [x for x in m.bus.market["CONT"] if isinstance(x, Depth)]
        assert [[(level.price, level.quantity) for level in x.bids] for x in depths] == [[(99, 1)]]


async def test_snapshots_are_held_back_for_their_interval_and_then_published():
    async with market(text="[market_data]\nsnapshot_ms = 250\n") as m:
        m.clock.machine_ns += 10**9
        m.send("alfa", buy("a-1", 100, 10))
        await m.until_reports("alfa", 1)
        count = len(m.answers("alfa", object))
        shown = [x for x in m.bus.market["CONT"] if isinstance(x, Snapshot)]
        for index in range(20):
            m.send("alfa", buy(f"b-{index}", 100, 1))
            await m.until_reports("alfa", count + index + 1)
        assert len([x for x in m.bus.market["CONT"] if isinstance(x, Snapshot)]) == len(shown)
        m.clock.machine_ns += 250 * 1_000_000
        await m.until(lambda: m.bus.retained["CONT"].bids[0].quantity == 30)
        assert len([x for x in m.bus.market["CONT"] if isinstance(x, Snapshot)]) == len(shown) + 1


async def test_a_new_day_clears_the_volume():
    async with market() as m:
        m.send("alfa", buy("a-1", 100, 10), sell("a-2", 100, 4))
        await m.until_reports("alfa", 4)
        await m.exchange.submit(SetPhase("CONT", Phase.CLOSED))
        assert m.bus.retained["CONT"].volume == 4
        for phase in STEPS:
            await m.exchange.submit(SetPhase("CALL", phase))
        await m.exchange.submit(StartDay(DAY + 1))
        assert (m.bus.retained["CONT"].volume, m.bus.retained["CONT"].trading_date) == (0, DAY + 1)


def test_the_digest_is_what_any_language_computes_from_the_levels():
    bids, asks = [(0, 5), (101, 7), (100, 1)], [(102, 3)]
    assert digest(bids, asks) == zlib.crc32(msgpack.packb([bids, asks]))
    assert digest(bids, asks) != digest(asks, bids)


async def test_a_snapshot_shows_the_flags_of_a_token():
    async with market() as m:
        await m.exchange.submit(SetTokenStatus("CONT", supervision=True, termination=True))
        await m.exchange.submit(SetWindow("CONT", WindowKind.RECORD_DATE, DAY, DAY))
        m.clock.machine_ns += 10**9
        await m.until(lambda: m.bus.retained["CONT"].in_window)
        shown = m.bus.retained["CONT"]

        assert (shown.supervision, shown.termination, shown.set_aside) == (True, True, False)


async def test_a_quote_that_a_members_order_brings_is_public_and_the_clock_knows_when_it_is_due() -> None:
    text = """
        [[instrument]]
        instrument = "HYB"
        profile = "TSE_HYBRID"
        reference_price = 500
        limit_table = "tse"
    """
    async with market(text=text) as m:
        phases = (Phase.PRE_OPEN, Phase.OPENING_AUCTION, Phase.CONTINUOUS)
        await m.exchange.submit(*(SetPhase("HYB", phase) for phase in phases))
        m.send("alfa", buy("a-1", 0, 5, "HYB", order_type=OrderType.MARKET))
        await m.until_reports("alfa", 1)

        [quote] = [message for message in m.bus.market["HYB"] if isinstance(message, QuoteMessage)]
        due = m.exchange.engine.time_ns + 180 * 1_000_000_000
        assert (quote.quote, quote.side, quote.price, quote.due_ns) == ("special", Side.BUY, 510, due)
        assert m.exchange.schedule.next_ns(m.clock.time_ns) == due
        m.clock.time_ns = due
        [renewal] = m.exchange.schedule.due(due)
        await m.exchange.submit(renewal)

        quotes = [message for message in m.bus.market["HYB"] if isinstance(message, QuoteMessage)]
        assert [message.price for message in quotes] == [510, 520]
        snapshot = msgspec.msgpack.decode(m.exchange.market_data.snapshot("HYB").payload, type=Snapshot)
        assert (snapshot.quote, snapshot.quote_price) == ("special", 520)
