"""The public state of one instrument as a subscriber keeps it: depth, phase, indicative price, tape.

A snapshot, then changes by number. A hole in the numbers, or a digest that does not agree, means that something was
lost: the book then says so (``is_whole``), asks for the snapshot again, and goes on from there. What is shown as whole
is whole.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Final

from engine.types import Side
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
from gateway.marketdata import digest

Change = Depth | Trades | Indicative | AuctionResult | PhaseMessage | TradeBust | QuoteMessage

#: Messages kept while a hole is open; beyond it the book waits for a snapshot.
AHEAD_MAX: Final = 256
#: Trades kept for the tape.
TAPE_MAX: Final = 1_000


class LiveBook:
    """Depth of one instrument, kept by the client. Read its attributes at any time; ``changes`` tells when they moved.

    ``bids`` and ``asks`` map price to total quantity; price 0 stands for market orders.
    """

    def __init__(self, instrument: str) -> None:
        self.instrument = instrument
        self.is_whole = False  #: False until the first snapshot and while something is missing
        self.n = 0  #: of the last message taken in
        self.time_ns = 0
        self.bids: dict[int, int] = {}
        self.asks: dict[int, int] = {}
        self.market = ""  #: whose instrument it is
        self.phase = ""
        self.suspended = False
        self.trading_date = 0
        self.price_decimals = 0
        self.lot = 1
        self.reference_price = 0
        self.lower_limit = 0
        self.upper_limit = 0
        self.last_price = 0
        self.last_quantity = 0
        self.volume = 0
        self.indicative_price = 0
        self.indicative_volume = 0
        self.indicative_surplus = 0
        self.quote = "none"  #: special, sequential: orders meet and do not trade, see ``QuoteMessage``
        self.quote_side = Side.BUY
        self.quote_price = 0
        self.quote_due_ns = 0
        self.supervision = False  #: this and the three below: as of the last snapshot, see ``Snapshot``
        self.termination = False
        self.in_window = False
        self.set_aside = False
        self.tape: deque[PublicTrade] = deque(maxlen=TAPE_MAX)
        self.auctions: list[AuctionResult] = []  #: those seen live
        self.busts: list[TradeBust] = []  #: those seen live; ``tape`` keeps the trades they void
        self.until_ns = 0  #: when the phase is due to end; 0: not said since the last snapshot
        self.gaps = 0  #: holes noticed
        self.drifts = 0  #: digests that did not agree: a fault, here or at the exchange
        self.proofs = 0  #: digests that agreed
        self._ahead: dict[int, Change] = {}
        self._waiters: set[asyncio.Event] = set()
        self._error: BaseException | None = None
        self._ended = False

    def ladder(self, depth: int = 0) -> tuple[list[Level], list[Level]]:
        """Bids and asks, market orders first, then best price first; at most ``depth`` levels a side, 0 for all."""
        bids = [Level(price, self.bids[price]) for price in sorted(self.bids, key=lambda p: (p != 0, -p))]
        asks = [Level(price, self.asks[price]) for price in sorted(self.asks)]
        return (bids[:depth], asks[:depth]) if depth else (bids, asks)

    async def whole(self) -> None:
        """Wait until nothing is missing."""
        async for _ in self.changes():
            if self.is_whole:
                return
        if self._error is not None:
            raise self._error

    async def changes(self) -> AsyncIterator[LiveBook]:
        """Yields the book as it is, then after each change; changes that came while the reader was busy are one."""
        news = asyncio.Event()
        news.set()
        self._waiters.add(news)
        try:
            while not self._ended:
                await news.wait()
                news.clear()
                if not self._ended:
                    yield self
            if self._error is not None:
                raise self._error
        finally:
            self._waiters.discard(news)

    # --- kept by the client ------------------------------------------------------------------------------------------

    def end(self, error: BaseException | None) -> None:
        self._ended = True
        self._error = error
        self._tell()

    def resubscribed(self) -> None:
        """After a reconnect anything may be missing: whole again with the next snapshot."""
        self.is_whole = False

    def take(self, message: MarketData, kept: bool = True) -> bool:
        """Take in one message; ``kept``: the broker had retained it, so it may be old.

        True: something is missing, please subscribe again to get the retained snapshot.
        """
        if isinstance(message, Snapshot):
            return self._take_snapshot(message, kept)
        if not self.is_whole or message.n > self.n + 1:
            if message.n > self.n:
                self._ahead[message.n] = message
                if len(self._ahead) > AHEAD_MAX:
                    del self._ahead[min(self._ahead)]
            hole = self.is_whole
            if hole:
                self.is_whole = False
                self.gaps += 1
                self._tell()
            return hole
        if message.n <= self.n:
            return False  # seen, or part of the snapshot
        intact = self._apply(message)
        self._tell()
        return not intact

    def _take_snapshot(self, message: Snapshot, kept: bool) -> bool:
        if message.n == self.n and self.is_whole:
            # Only what no numbered message tells can be new.
            if any(getattr(self, name) != getattr(message, name) for name in _FLAGS):
                self._copy(message, _FLAGS)
                self._tell()
            return False
        if message.n < self.n:
            if kept:
                return False  # older than what we have
            self._ahead.clear()  # said just now, with a lower number: another market begins on this broker
        if digest(message.bids, message.asks) != message.digest:
            self.drifts += 1
            return False
        self.n = message.n
        self.time_ns = message.time_ns
        self.bids = {level.price: level.quantity for level in message.bids}
        self.asks = {level.price: level.quantity for level in message.asks}
        self.until_ns = 0
        self._copy(message, _COPIED + _FLAGS)
        self.is_whole = True
        for n in sorted(self._ahead):
            later = self._ahead.pop(n)
            if n == self.n + 1:
                self._apply(later)
            elif n > self.n:  # still a hole behind the snapshot: a newer one will come
                self._ahead[n] = later
                self.is_whole = False
                break
        self._tell()
        return False

    def _copy(self, message: Snapshot, names: tuple[str, ...]) -> None:
        for name in names:
            setattr(self, name, getattr(message, name))

    def _apply(self, message: Change) -> bool:
        self.n = message.n
        self.time_ns = message.time_ns
        if isinstance(message, Depth):
            _change(self.bids, message.bids)
            _change(self.asks, message.asks)
            if message.digest is not None:
                if digest(*self.ladder()) != message.digest:
                    self.drifts += 1
                    self.is_whole = False
                    return False
                self.proofs += 1
        elif isinstance(message, Trades):
            for trade in message.trades:
                self.tape.append(trade)
                self.volume += trade.quantity
                self.last_price, self.last_quantity = trade.price, trade.quantity
        elif isinstance(message, Indicative):
            self.indicative_price = message.price
            self.indicative_volume = message.volume
            self.indicative_surplus = message.surplus
        elif isinstance(message, AuctionResult):
            self.auctions.append(message)
            self.indicative_price = self.indicative_volume = self.indicative_surplus = 0
        elif isinstance(message, QuoteMessage):
            self.quote = message.quote
            self.quote_side = message.side
            self.quote_price = message.price
            self.quote_due_ns = message.due_ns
        elif isinstance(message, TradeBust):
            self.busts.append(message)
            if message.trade_date == self.trading_date:
                self.volume -= message.quantity
        else:
            if message.trading_date != self.trading_date:
                self.volume = 0
            self.phase = message.phase
            self.suspended = message.suspended
            self.trading_date = message.trading_date
            self.until_ns = message.until_ns
        return True

    def _tell(self) -> None:
        for waiter in self._waiters:
            waiter.set()


_COPIED: Final = (
    "market",
    "phase",
    "suspended",
    "trading_date",
    "price_decimals",
    "lot",
    "reference_price",
    "lower_limit",
    "upper_limit",
    "last_price",
    "last_quantity",
    "volume",
    "indicative_price",
    "indicative_volume",
    "indicative_surplus",
    "quote",
    "quote_side",
    "quote_price",
    "quote_due_ns",
)
#: Told by snapshots alone.
_FLAGS: Final = ("supervision", "termination", "in_window", "set_aside")


def _change(side: dict[int, int], levels: list[Level]) -> None:
    for level in levels:
        if level.quantity:
            side[level.price] = level.quantity
        else:
            side.pop(level.price, None)
