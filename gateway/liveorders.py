"""One instrument order by order, as a subscriber keeps it live: snapshot, changes by number, digests compared.

As in ``livebook``: a hole in the numbers, or a digest that does not agree, means that something was lost. The book then
says so (``is_whole``), wants the snapshot again, and goes on from there. Changes that come before a snapshot that knows
them are kept, since snapshots of a large book come seconds apart.
"""

from __future__ import annotations

import asyncio
from typing import Final

from gateway.bus.messages import OrderChanges, OrderData, OrdersSnapshot
from gateway.orderbook import BookDrifted, OrderBook

#: Messages kept while a snapshot is awaited; of more the oldest go.
AHEAD_MAX: Final = 10_000


class LiveOrders:
    """``book`` is whole when ``is_whole`` says so; ``n`` is the number of the last message in it."""

    def __init__(self, instrument: str) -> None:
        self.instrument = instrument
        self.book = OrderBook()
        self.is_whole = False
        self.n = 0
        self.time_ns = 0
        self.gaps = 0  #: holes noticed
        self.drifts = 0  #: what did not fit, or digests that did not agree: a fault, here or at the exchange
        self.proofs = 0  #: digests that agreed
        self._ahead: dict[int, OrderChanges] = {}
        self._parts: dict[int, OrdersSnapshot] = {}
        self._news = asyncio.Event()
        self._ended = False
        self._error: BaseException | None = None

    def resubscribed(self) -> None:
        """After a reconnect anything may be missing: whole again with the next snapshot."""
        self.is_whole = False

    async def whole(self) -> None:
        """Wait until nothing is missing. Raises what has ended the client."""
        while not self.is_whole and not self._ended:
            self._news.clear()
            await self._news.wait()
        if self._error is not None:
            raise self._error

    def end(self, error: BaseException | None) -> None:
        """No more comes."""
        self._ended, self._error = True, error
        self._news.set()

    def take(self, message: OrderData, kept: bool = True) -> bool:
        """Take in one message; ``kept``: the broker had retained it, so it may be old.

        True: something is missing, please subscribe again to get the retained snapshot.
        """
        self._news.set()
        if isinstance(message, OrdersSnapshot):
            return self._take_part(message, kept)
        if not self.is_whole or message.n > self.n + 1:
            if message.n > self.n:
                self._ahead[message.n] = message
                if len(self._ahead) > AHEAD_MAX:
                    del self._ahead[min(self._ahead)]
            hole = self.is_whole
            self.is_whole = False
            self.gaps += hole
            return hole
        if message.n <= self.n:
            return False  # seen, or part of the snapshot
        return not self._apply(message)

    def _take_part(self, message: OrdersSnapshot, kept: bool) -> bool:
        if self.is_whole and (message.n == self.n or (kept and message.n < self.n)):
            return False
        if message.n < self.n and not kept:
            self._ahead.clear()  # said just now, with a lower number: another market begins on this broker
        if self._parts and next(iter(self._parts.values())).n != message.n:
            self._parts.clear()  # parts of another snapshot
        self._parts[message.part] = message
        if len(self._parts) < message.parts:
            return False
        parts = [self._parts[part] for part in sorted(self._parts)]
        self._parts.clear()
        later = sorted(n for n in self._ahead if n > message.n)
        if later and later[0] > message.n + 1:
            return False  # older than what is still known: a newer one will come
        book = OrderBook(order for part in parts for order in part.orders)
        if book.digest() != message.digest:
            self.drifts += 1
            return False
        self.book, self.n, self.time_ns = book, message.n, message.time_ns
        self.is_whole = True
        ahead, self._ahead = self._ahead, {}
        missing = [self.take(ahead[n]) for n in later]  # all of them
        return any(missing)

    def _apply(self, message: OrderChanges) -> bool:
        self.n, self.time_ns = message.n, message.time_ns
        try:
            for change in message.changes:
                self.book.apply(change)
        except BookDrifted:
            self.drifts += 1
            self.is_whole = False
            return False
        if message.digest is not None:
            if message.digest != self.book.digest():
                self.drifts += 1
                self.is_whole = False
                return False
            self.proofs += 1
        return True
