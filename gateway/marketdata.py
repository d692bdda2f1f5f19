"""Public market data: what everybody may see, folded from events.

Per instrument: phases, auction results, trades, the change of every price level, and during a call what the auction
would give now. Depth and indicative price are conflated to one message per committed batch. Messages are numbered per
instrument; a snapshot, retained by the broker, carries all a newcomer needs and the number to go on from.

Numbers are never used twice for different things. While the exchange runs they are dense. When it starts it continues
from the size of its log in bytes, which is more than it can have numbered before: a command takes more bytes there than
it can cause messages of one instrument. So a subscriber sees a jump, and the snapshot that comes with it.

``digest`` lets a subscriber prove that its book is ours.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple, get_args

import msgspec

from engine.core import Engine
from engine.events import (
    Accepted,
    Activated,
    Amended,
    AuctionUncrossed,
    Cancelled,
    DayLimitsSet,
    DayStarted,
    DisplayChanged,
    Event,
    InstrumentListed,
    InstrumentRebuilt,
    InstrumentSetAside,
    PhaseChanged,
    PhaseTimed,
    QuoteChanged,
    ReferencePriceSet,
    Rejected,
    TokenStatusSet,
    TradeBusted,
    Traded,
    TradingStateChanged,
    WindowBegan,
    WindowSet,
)
from engine.faults import InvariantBroken
from engine.types import Phase, Side
from engine.wire import WrittenEvent
from gateway.bus.messages import (
    AuctionResult,
    Depth,
    Indicative,
    Level,
    MarketData,
    PhaseMessage,
    PublicTrade,
    QuoteMessage,
    Snapshot,
    TradeBust,
    Trades,
)
from gateway.clock import Clock

# Numbers here: asking the enum for a member each time takes longer than what is done with it.
_BUY: Final = 0
_SELL: Final = 1
assert (_BUY, _SELL) == (Side.BUY, Side.SELL)
#: Each kind of message by its type.
_KINDS: Final = {kind: str(kind.__struct_config__.tag) for kind in get_args(MarketData)}
#: A machine time before all others.
LONG_AGO: Final = -(2**62)

_encode = msgspec.msgpack.Encoder().encode


def digest(bids: Iterable[tuple[int, int] | Level], asks: Iterable[tuple[int, int] | Level]) -> int:
    """CRC-32 of the MessagePack encoding of ``[bids, asks]``, each an array of ``[price, quantity]``, best first.

    Orders without a limit are a level of price 0 before all others. Any two books with the same levels agree on it.
    """
    return zlib.crc32(_encode((list(bids), list(asks))))


class Message(NamedTuple):
    """One message to publish."""

    instrument: str
    kind: str
    payload: bytes
    retain: bool = False


class _Book:
    """The public side of one instrument."""

    __slots__ = (
        "asked_again", "before", "code", "depths", "dirty", "indicative", "levels", "messages", "n", "snapshot_at",
        "time_ns", "trades", "volume",
    )  # fmt: skip

    def __init__(self, code: str) -> None:
        self.code = code
        self.n = 0  #: number of the last message
        self.levels: tuple[dict[int, int], dict[int, int]] = ({}, {})  #: bids, asks: price to total quantity
        self.before: tuple[dict[int, int], dict[int, int]] = ({}, {})  #: what changed since the last flush, as it was
        self.messages: list[MarketData] = []  #: phases, auctions, trades since the last flush, unnumbered
        self.trades: list[PublicTrade] = []
        self.volume = 0  #: traded today
        self.indicative = (0, 0, 0)  #: price, volume, surplus as last published
        self.asked_again = False  #: the indicative price may have changed
        self.depths = 0  #: depth messages since the last digest
        self.time_ns = 0
        self.dirty = False  #: the snapshot is older than the book
        self.snapshot_at = LONG_AGO  #: machine time of the last one

    def add(self, side: int, price: int, quantity: int) -> None:
        """Change a level by ``quantity``."""
        levels = self.levels[side]
        old = levels.get(price, 0)
        new = old + quantity
        if new < 0:
            raise InvariantBroken(f"{self.code}: events took {-new} more out of level {price} than they put there")
        self.before[side].setdefault(price, old)
        if new:
            levels[price] = new
        else:
            levels.pop(price, None)

    def close_trades(self) -> None:
        """What follows must not overtake the trades before it."""
        if self.trades:
            self.messages.append(Trades(0, self.trades[-1].time_ns, self.trades))
            self.trades = []

    def sorted_levels(self, side: int) -> list[Level]:
        """Best first; market orders, at price 0, before all."""
        levels = self.levels[side]
        prices = sorted(levels, reverse=side == _BUY)
        if 0 in levels and side == _BUY:
            prices.insert(0, prices.pop())
        return [Level(price, levels[price]) for price in prices]


class MarketDataBook:
    """All instruments' public data. Tell it every event, flush after each batch."""

    def __init__(
        self, engine: Engine, clock: Clock, *, snapshot_ms: int = 250, digest_every: int = 64, market: str = ""
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._snapshot_ns = snapshot_ms * 1_000_000
        self._digest_every = digest_every
        self._market = market
        self._books: dict[str, _Book] = {}
        self._touched: dict[str, _Book] = {}
        #: What of a member's command also moves the exchange's clock; whoever has passed it on clears it.
        self.moved: list[Event] = []

    def fold(self, sequence: int, time_ns: int, participant: str, events: Iterable[Event | WrittenEvent]) -> None:
        """Take in what one command led to, right after the engine applied it."""
        for event in events:
            # By the type itself: to be told "no" by isinstance takes a Struct class longer than all else here.
            if type(event) is WrittenEvent:
                change = event.change
                if change:
                    self._touch(event.instrument, time_ns).add(event.side, event.price, change)
            elif type(event) is Accepted:
                if not event.waiting and not event.repeat:
                    self._touch(event.instrument, time_ns).add(event.side, event.price, event.quantity)
            elif type(event) is Traded:
                book = self._touch(event.instrument, time_ns)
                book.add(_BUY, event.buy_limit, -event.quantity)
                book.add(_SELL, event.sell_limit, -event.quantity)
                book.volume += event.quantity
                book.trades.append(PublicTrade(event.trade_id, event.price, event.quantity, event.maker, time_ns))
            elif type(event) is Cancelled:
                if not event.waiting and not event.repeat:
                    self._touch(event.instrument, time_ns).add(event.side, event.price, -event.quantity)
            elif type(event) is Rejected:
                pass
            elif isinstance(event, Amended):
                if not event.waiting and not event.repeat:
                    book = self._touch(event.instrument, time_ns)
                    book.add(event.side, event.price_before, -event.open_before)
                    book.add(event.side, event.price, event.open_quantity)
            elif isinstance(event, DisplayChanged):
                book = self._touch(event.instrument, time_ns)
                book.add(event.side, event.price, event.displayed - event.displayed_before)
            elif isinstance(event, Activated):
                self._touch(event.instrument, time_ns).add(event.side, event.price, event.open_quantity)
            else:
                self._rare(event, time_ns)
                if participant and isinstance(
                    event, PhaseChanged | PhaseTimed | TradingStateChanged | QuoteChanged | InstrumentSetAside
                ):
                    self.moved.append(event)

    def _rare(self, event: Event, time_ns: int) -> None:
        """Events that come a few times a day."""
        if isinstance(event, PhaseChanged):
            book = self._touch(event.instrument, time_ns)
            self._phase(book, event.phase, self._engine.instrument(event.instrument).suspended)
        elif isinstance(event, TradingStateChanged):
            book = self._touch(event.instrument, time_ns)
            self._phase(book, self._engine.instrument(event.instrument).phase, event.suspended)
        elif isinstance(event, PhaseTimed):
            book = self._touch(event.instrument, time_ns)
            last = book.messages[-1] if book.messages else None
            if not isinstance(last, PhaseMessage) or last.until_ns != event.until_ns:
                self._phase(book, event.phase, self._engine.instrument(event.instrument).suspended)
        elif isinstance(event, QuoteChanged):
            book = self._touch(event.instrument, time_ns)
            book.close_trades()
            kind = event.kind.name.lower()
            book.messages.append(QuoteMessage(0, time_ns, kind, event.side, event.price, event.due_ns))
        elif isinstance(event, TradeBusted):
            book = self._touch(event.instrument, time_ns)
            book.close_trades()
            if event.trade_date == self._engine.date:
                book.volume -= event.quantity
            book.messages.append(TradeBust(0, time_ns, event.trade_id, event.price, event.quantity, event.trade_date))
        elif isinstance(event, AuctionUncrossed):
            book = self._touch(event.instrument, time_ns)
            book.close_trades()
            book.messages.append(
                AuctionResult(0, time_ns, event.phase, event.price, event.volume, event.surplus, event.trades)
            )
        elif isinstance(event, InstrumentListed):
            self._books[event.instrument] = _Book(event.instrument)
            self._touch(event.instrument, time_ns).dirty = True
        elif isinstance(event, DayStarted):
            for code, book in self._books.items():
                book.volume = 0
                self._touch(code, time_ns)
                view = self._engine.instrument(code)
                self._phase(book, view.phase, view.suspended)
        elif isinstance(
            event,
            DayLimitsSet
            | ReferencePriceSet
            | TokenStatusSet
            | WindowSet
            | WindowBegan
            | InstrumentSetAside
            | InstrumentRebuilt,
        ):
            self._touch(event.instrument, time_ns).dirty = True

    def _touch(self, code: str, time_ns: int) -> _Book:
        book = self._touched.get(code)
        if book is None:
            book = self._touched[code] = self._books[code]
        book.time_ns = time_ns
        return book

    def _phase(self, book: _Book, phase: Phase, suspended: bool) -> None:
        book.close_trades()
        until_ns = self._engine.instrument(book.code).until_ns
        book.messages.append(PhaseMessage(0, book.time_ns, Phase(phase).label, suspended, self._engine.date, until_ns))
        book.asked_again = True
        book.snapshot_at = LONG_AGO  # a new phase is worth a snapshot at once

    # --- out -------------------------------------------------------------------------------------------------------

    def start(self, n: int) -> None:
        """After a replay: nothing of it is to be said again; number on from ``n``."""
        for book in self._books.values():
            book.n = n
            book.messages, book.trades = [], []
            book.before = ({}, {})
            book.indicative = self._indicative(book.code)
            book.asked_again = False
            book.dirty = True
        self._touched = {}

    def flush(self) -> Iterator[Message]:
        """The messages about everything since the last flush."""
        touched, self._touched = self._touched, {}
        now = self._clock.monotonic_ns()
        for code, book in touched.items():
            book.close_trades()
            for message in book.messages:
                yield self._numbered(book, message)
            book.messages = []
            if book.before[0] or book.before[1]:
                depth = self._depth(book)
                if depth is not None:
                    yield self._numbered(book, depth)
            if book.asked_again:
                book.asked_again = False
                found = self._indicative(code)
                if found != book.indicative:
                    book.indicative = found
                    yield self._numbered(book, Indicative(0, book.time_ns, *found))
            if book.dirty and now - book.snapshot_at >= self._snapshot_ns:
                yield self.snapshot(code)

    def _numbered(self, book: _Book, message: MarketData) -> Message:
        book.n += 1
        message.n = book.n
        book.dirty = True
        return Message(book.code, _KINDS[type(message)], _encode(message))

    def _depth(self, book: _Book) -> Depth | None:
        # What came and went within the batch was never seen.
        bids, asks = (
            [Level(price, levels.get(price, 0)) for price, old in before.items() if levels.get(price, 0) != old]
            for levels, before in zip(book.levels, book.before, strict=True)
        )
        book.before[0].clear()
        book.before[1].clear()
        if not bids and not asks:
            return None
        book.asked_again = True
        book.depths += 1
        checked = None
        if book.depths >= self._digest_every:
            book.depths = 0
            checked = digest(book.sorted_levels(_BUY), book.sorted_levels(_SELL))
        return Depth(0, book.time_ns, bids, asks, checked)

    def _indicative(self, code: str) -> tuple[int, int, int]:
        found = self._engine.indicative(code)
        return found.price, found.volume, found.surplus

    def overdue(self) -> Iterator[Message]:
        """Snapshots that were held back and whose time has come."""
        now = self._clock.monotonic_ns()
        for code, book in self._books.items():
            if book.dirty and now - book.snapshot_at >= self._snapshot_ns:
                yield self.snapshot(code)

    def snapshots(self) -> Iterator[Message]:
        """All of them: for a broker that may have lost what it had."""
        for code in self._books:
            yield self.snapshot(code)

    def snapshot(self, code: str) -> Message:
        book = self._books[code]
        book.dirty = False
        book.snapshot_at = self._clock.monotonic_ns()
        view = self._engine.instrument(code)
        bids, asks = book.sorted_levels(Side.BUY), book.sorted_levels(Side.SELL)
        message = Snapshot(
            n=book.n,
            time_ns=book.time_ns,
            instrument=code,
            phase=view.phase.label,
            suspended=view.suspended,
            trading_date=self._engine.date,
            price_decimals=view.price_decimals,
            lot=view.lot,
            reference_price=view.reference_price,
            lower_limit=view.lower_limit,
            upper_limit=view.upper_limit,
            last_price=view.last_price,
            last_quantity=view.last_quantity,
            volume=book.volume,
            indicative_price=book.indicative[0],
            indicative_volume=book.indicative[1],
            indicative_surplus=book.indicative[2],
            quote=view.quote.name.lower(),
            quote_side=view.quote_side,
            quote_price=view.quote_price,
            quote_due_ns=view.quote_due_ns,
            supervision=view.supervision,
            termination=view.termination,
            in_window=view.in_window,
            set_aside=view.set_aside,
            bids=bids,
            asks=asks,
            digest=digest(bids, asks),
            market=self._market,
        )
        return Message(code, "snapshot", _encode(message), retain=True)
