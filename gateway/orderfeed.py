"""Market data order by order: every order that comes, trades, changes and goes, without a name.

A fold over events, like the other market data, and a row of its own: changes numbered per instrument, and a retained
snapshot with the number to go on from. What is told is what the book shows once a command is done, so that nothing in
between leaks: an order that trades on entry is told with what is left of it, and an iceberg, which the engine shows
whole for a moment when it is cancelled, amended or takes part in an auction, never with more than its peak.

The feed keeps the book that its readers have (``OrderBook``), and asks the engine for the truth where the events alone
do not tell an order's place: after an auction with icebergs, and after what is rarer still. Snapshots come from the
engine, so a reader that follows the changes and compares digests has proved both.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from typing import Final

import msgspec

from engine.core import Engine
from engine.events import (
    Accepted,
    Activated,
    Amended,
    AuctionUncrossed,
    Cancelled,
    DisplayChanged,
    Event,
    InstrumentListed,
    InstrumentRebuilt,
    InstrumentSetAside,
    Traded,
)
from engine.types import SIDES, Side
from engine.wire import WrittenEvent, plain
from gateway.bus.messages import (
    BookOrder,
    OrderAdded,
    OrderChange,
    OrderChanges,
    OrderDeleted,
    OrderExecuted,
    OrderReplaced,
    OrderReplenished,
    OrderResized,
    OrdersSnapshot,
)
from gateway.bus.topics import BY_ORDER
from gateway.clock import Clock
from gateway.marketdata import LONG_AGO, Message
from gateway.orderbook import BookDrifted, OrderBook, digest_of

logger = logging.getLogger("dojima")

#: Most orders in one part of a snapshot: some 20 bytes each.
PART_MAX: Final = 5_000
#: Most changes in one message.
CHANGES_MAX: Final = 5_000

_encode: Final = msgspec.msgpack.Encoder().encode
_SIDES: Final = (Side.BUY, Side.SELL)


class _Fresh:
    """An order on its way into the book: it may trade before it rests, and only what rests is told."""

    __slots__ = ("feed", "price", "quantity", "side")

    def __init__(self, feed: _Instrument, side: Side, price: int, quantity: int) -> None:
        self.feed = feed
        self.side = side
        self.price = price
        self.quantity = quantity


class _Instrument:
    """One instrument's row."""

    __slots__ = ("book", "changes", "code", "digest_at", "dirty", "n", "parts", "snapshot_at", "time_ns")

    def __init__(self, code: str, n: int) -> None:
        self.code = code
        self.n = n  #: number of the last message
        self.book = OrderBook()
        self.changes: list[OrderChange] = []  #: since the last flush
        self.digest_at = 0  #: changes until the next digest
        self.dirty = True  #: the snapshot is older than the book
        self.snapshot_at = LONG_AGO  #: machine time of the last one
        self.parts = 0  #: of the last one
        self.time_ns = 0

    def say(self, change: OrderChange) -> None:
        self.book.apply(change)
        self.changes.append(change)


class OrderFeed:
    """The rows of all instruments whose profile has one. Tell it every event, flush after each batch."""

    def __init__(
        self,
        engine: Engine,
        clock: Clock,
        profiles: Collection[str],
        *,
        snapshot_ms: int = 1_000,
        digest_every: int = 64,
    ) -> None:
        self._engine: Final = engine
        self._clock: Final = clock
        self._profiles: Final = frozenset(profiles)
        self._snapshot_ns: Final = snapshot_ms * 1_000_000
        self._digest_every: Final = digest_every
        self._n = 0  # where the row of an instrument begins
        self.books: Final[dict[str, _Instrument]] = {}  #: by code; empty: there is nothing to fold
        self.touched: Final[dict[str, _Instrument]] = {}  #: what ``flush`` has to say

    def start(self, n: int) -> None:
        """After a replay: the books as they are, numbered on from ``n``. Until here nothing need be folded."""
        self._n = n
        for code in self._engine.instruments():
            self.listed(code, self._engine.instrument(code).profile)

    def listed(self, code: str, profile: str) -> None:
        """An instrument came to the market."""
        if profile in self._profiles:
            feed = self.books[code] = _Instrument(code, self._n)
            self._correct(feed)
            feed.changes.clear()

    # --- in --------------------------------------------------------------------------------------------------------

    def fold(self, time_ns: int, events: Sequence[Event | WrittenEvent]) -> None:
        """Take in what one command led to, right after the engine applied it."""
        if len(events) == 1:  # what most commands lead to
            event = events[0]
            if type(event) is WrittenEvent and event.change >= 0:
                if event.change:
                    self._join(time_ns, event.instrument, event.order_id, event.side, event.price, event.change)
                return
            if (type(event) is Accepted or type(event) is Cancelled) and (event.waiting or event.repeat):
                return
            if type(event) is Accepted:
                self._join(time_ns, event.instrument, event.order_id, event.side, event.price, event.quantity)
                return
        seen: dict[str, _Instrument] = {}
        said = plain(events)
        try:
            self._fold(said, seen)
        except BookDrifted as error:  # a fault here must not stop a market that is in order
            logger.error("order by order, after %s: %s; corrected from the engine's book", said[:3], error)
            for feed in seen.values():
                self._correct(feed)
        for feed in seen.values():
            if feed.changes:
                feed.time_ns = time_ns
                self.touched[feed.code] = feed

    def _join(self, time_ns: int, code: str, order_id: int, side: int, price: int, quantity: int) -> None:
        """An order comes to rest, and nothing else happens."""
        resting = self.books.get(code)
        if resting is not None and order_id not in resting.book:
            resting.say(OrderAdded(order_id, SIDES[side], price, quantity))
            resting.time_ns = time_ns
            self.touched[code] = resting

    def _fold(self, events: list[Event], seen: dict[str, _Instrument]) -> None:
        """``seen`` collects the instruments that the events are about."""
        fresh: dict[int, _Fresh] = {}  # in the order in which they join their queues
        shown: dict[int, int] = {}  # what an order in the book shows, where that is not what readers have
        doubtful: dict[str, _Instrument] = {}
        for event in events:  # by the type itself: isinstance takes long to say no to a Struct
            if type(event) is InstrumentListed:
                self.listed(event.instrument, event.profile)
                continue
            feed = self.books.get(getattr(event, "instrument", ""))
            if feed is None:
                continue
            book = feed.book
            seen[feed.code] = feed
            if type(event) is Accepted:
                if not event.waiting and not event.repeat:
                    fresh[event.order_id] = _Fresh(feed, event.side, event.price, event.quantity)
            elif type(event) is Activated:
                fresh[event.order_id] = _Fresh(feed, event.side, event.price, event.open_quantity)
            elif type(event) is Traded:
                self._traded(feed, event, fresh, shown)
            elif type(event) is Cancelled:
                if not event.waiting and not event.repeat:
                    fresh.pop(event.order_id, None)
                    if event.order_id in book:
                        feed.say(OrderDeleted(event.order_id))
            elif type(event) is Amended:
                if not event.waiting and not event.repeat:
                    if event.order_id in fresh:
                        fresh[event.order_id].price = event.price
                        fresh[event.order_id].quantity = event.open_quantity
                    elif not event.kept_priority:
                        shown.pop(event.order_id, None)
                        fresh[event.order_id] = _Fresh(feed, event.side, event.price, event.open_quantity)
                    elif event.price == event.price_before:
                        shown[event.order_id] = event.open_quantity
                    else:  # an auction gave a market-to-limit order its limit
                        doubtful[feed.code] = feed
            elif type(event) is DisplayChanged:
                order = event.order_id
                if event.displayed_before == 0:
                    self._replenished(feed, event, fresh, shown)
                elif order in fresh:
                    fresh[order].quantity = event.displayed
                else:
                    shown[order] = event.displayed
            elif type(event) is AuctionUncrossed:
                if shown:  # icebergs take part: what is left of each may have another place
                    doubtful[feed.code] = feed
            elif type(event) is InstrumentSetAside or type(event) is InstrumentRebuilt:
                doubtful[feed.code] = feed
        for order, entry in fresh.items():
            self._rest(order, entry)
        for order, quantity in shown.items():
            for feed in seen.values():
                if order in feed.book and feed.code not in doubtful and feed.book.shown(order) != quantity:
                    feed.say(OrderResized(order, quantity))
        for feed in doubtful.values():
            self._correct(feed)

    def _traded(self, feed: _Instrument, event: Traded, fresh: dict[int, _Fresh], shown: dict[int, int]) -> None:
        for order in (event.buy_order_id, event.sell_order_id):
            if order in fresh:
                fresh[order].quantity -= event.quantity
            else:
                if order in shown:
                    shown[order] -= event.quantity
                if order in feed.book:  # an iceberg in an auction may have left it with all that showed
                    feed.say(OrderExecuted(order, event.quantity, event.price, event.trade_id))

    def _replenished(
        self, feed: _Instrument, event: DisplayChanged, fresh: dict[int, _Fresh], shown: dict[int, int]
    ) -> None:
        order = event.order_id
        if order in fresh:
            entry = fresh.pop(order)
            entry.quantity = event.displayed
            if fresh and next(reversed(fresh)) != order:  # behind those that rest; before the one that is trading
                last, trading = fresh.popitem()
                fresh[order] = entry
                fresh[last] = trading
            else:
                fresh[order] = entry
            return
        # Whatever came to rest before is before it; the last one is on its way still.
        while len(fresh) > 1:
            first = next(iter(fresh))
            self._rest(first, fresh.pop(first))
        shown.pop(order, None)
        feed.say(OrderReplenished(order, event.side, event.price, event.displayed))

    def _rest(self, order: int, entry: _Fresh) -> None:
        """What is left of an order that has come in (again)."""
        feed = entry.feed
        if order in feed.book:
            feed.say(OrderReplaced(order, entry.price, entry.quantity) if entry.quantity else OrderDeleted(order))
        elif entry.quantity:
            feed.say(OrderAdded(order, entry.side, entry.price, entry.quantity))

    def _correct(self, feed: _Instrument) -> None:
        """Make the readers' book the engine's, whatever it is."""
        book = feed.book
        truth = {side: self._engine.shown(feed.code, side) for side in _SIDES}
        places = {order: (side, price) for side in _SIDES for order, price, _ in truth[side]}
        for gone in [each.order_id for side in _SIDES for each in book.queue(side) if each.order_id not in places]:
            feed.say(OrderDeleted(gone))
        for side in _SIDES:
            levels: dict[int, list[tuple[int, int]]] = {}
            for order, price, quantity in truth[side]:
                levels.setdefault(price, []).append((order, quantity))
            for price, expected in levels.items():
                there = [order for order in book.levels[side].get(price, ()) if places[order] == (side, price)]
                in_place = True
                for index, (order, quantity) in enumerate(expected):
                    in_place = in_place and index < len(there) and there[index] == order
                    if not in_place:
                        if order in book:
                            feed.say(OrderReplaced(order, price, quantity))
                        else:
                            feed.say(OrderAdded(order, side, price, quantity))
                    elif book.shown(order) != quantity:
                        feed.say(OrderResized(order, quantity))

    # --- out -------------------------------------------------------------------------------------------------------

    def flush(self) -> Iterator[Message]:
        """The messages about everything since the last flush."""
        now = self._clock.monotonic_ns()
        for feed in self.touched.values():
            yield from self._changes(feed)
            feed.dirty = True
            if self._is_due(feed, now):
                yield from self._snapshot(feed, now)
        self.touched.clear()

    def _changes(self, feed: _Instrument) -> Iterator[Message]:
        for start in range(0, len(feed.changes), CHANGES_MAX):
            changes = feed.changes[start : start + CHANGES_MAX]
            feed.n += 1
            feed.digest_at -= len(changes)
            digest = None
            if feed.digest_at <= 0 and start + CHANGES_MAX >= len(feed.changes):
                # It walks over the whole book, so in a large one it comes further apart.
                feed.digest_at = max(self._digest_every, len(feed.book))
                digest = feed.book.digest()
            yield Message(feed.code, f"{BY_ORDER}changes", _encode(OrderChanges(feed.n, feed.time_ns, changes, digest)))
        feed.changes.clear()

    def _is_due(self, feed: _Instrument, now: int) -> bool:
        # A snapshot walks over the whole book too.
        return feed.dirty and now - feed.snapshot_at >= self._snapshot_ns * max(feed.parts, 1)

    def overdue(self) -> Iterator[Message]:
        """Snapshots that were held back and whose time has come."""
        now = self._clock.monotonic_ns()
        for feed in self.books.values():
            if not feed.changes and self._is_due(feed, now):
                yield from self._snapshot(feed, now)

    def snapshots(self) -> Iterator[Message]:
        """All of them: for a broker that may have lost what it had."""
        now = self._clock.monotonic_ns()
        for feed in self.books.values():
            yield from self._snapshot(feed, now)

    def _snapshot(self, feed: _Instrument, now: int) -> Iterator[Message]:
        feed.dirty = False
        feed.snapshot_at = now
        truth = [self._engine.shown(feed.code, side) for side in _SIDES]
        digest = digest_of(truth)
        if digest != feed.book.digest():
            logger.error("order by order, %s: the book told is not the engine's; corrected", feed.code)
            self._correct(feed)
            yield from self._changes(feed)
        orders = [
            BookOrder(order, side, price, shown)
            for side, rows in zip(_SIDES, truth, strict=True)
            for order, price, shown in rows
        ]
        parts = max(1, -(-len(orders) // PART_MAX))
        feed.parts = parts
        for part in range(parts):
            message = OrdersSnapshot(
                feed.n, feed.time_ns, feed.code, part, parts, orders[part * PART_MAX : (part + 1) * PART_MAX], digest
            )
            yield Message(feed.code, f"{BY_ORDER}orders/{part}", _encode(message), retain=True)
