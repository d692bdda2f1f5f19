"""One instrument order by order, as everybody may see it: kept by the exchange's feed and by whoever reads it.

Both sides of the wire keep the same book by the same changes, so what a reader has can be proved: ``digest`` is over
every order in its place. Orders are known by the engine's number alone; of an iceberg only what it shows is here.

A level is a dictionary in order of time: a change in place keeps its place, what is put in anew comes last. That is
all that priority is.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from engine.types import Side
from gateway.bus.messages import (
    BookOrder,
    OrderAdded,
    OrderChange,
    OrderDeleted,
    OrderExecuted,
    OrderReplaced,
    OrderReplenished,
    OrderResized,
)

_encode: Final = msgspec.msgpack.Encoder().encode


def digest_of(sides: Iterable[Sequence[tuple[int, int, int]]]) -> int:
    """CRC-32 of the MessagePack encoding of ``[bids, asks]``, each an array of ``[order_id, price, quantity]`` in
    matching priority."""
    return zlib.crc32(_encode(list(sides)))


class BookDrifted(Exception):
    """A change does not fit the book: something was lost, or one side is at fault. Says what was expected."""


class OrderBook:
    """Every order that a book shows. ``levels`` by side and price: order number to what it shows, first come first."""

    def __init__(self, orders: Iterable[BookOrder] = ()) -> None:
        """``orders`` in matching priority within each price."""
        self.levels: Final[tuple[dict[int, dict[int, int]], dict[int, dict[int, int]]]] = ({}, {})
        self._places: Final[dict[int, tuple[Side, int]]] = {}
        for order in orders:
            self._add(order.order_id, order.side, order.price, order.quantity)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, order_id: int) -> bool:
        return order_id in self._places

    def place(self, order_id: int) -> tuple[Side, int]:
        """Side and price of an order. Raises ``KeyError``."""
        return self._places[order_id]

    def shown(self, order_id: int) -> int:
        """What an order shows. Raises ``KeyError``."""
        side, price = self._places[order_id]
        return self.levels[side][price][order_id]

    def queue(self, side: Side) -> list[BookOrder]:
        """One side in matching priority: orders without a limit (price 0) first, then by price, then by time."""
        levels = self.levels[side]
        prices = sorted(levels, key=lambda price: (price != 0, price if side == Side.SELL else -price))
        return [BookOrder(order, side, price, shown) for price in prices for order, shown in levels[price].items()]

    def digest(self) -> int:
        """See ``digest_of``."""
        return digest_of(
            [(order.order_id, order.price, order.quantity) for order in self.queue(side)]
            for side in (Side.BUY, Side.SELL)
        )

    def apply(self, change: OrderChange) -> None:
        """Carry out one change. Raises ``BookDrifted`` if it does not fit; the book is then as it was."""
        if type(change) is OrderAdded or type(change) is OrderReplenished:  # see OrderFeed: isinstance is slow here
            if change.order_id in self._places:
                raise BookDrifted(f"Expected an order that is not in the book, got {change}")
            self._add(change.order_id, change.side, change.price, change.quantity)
            return
        place = self._places.get(change.order_id)
        if place is None:
            raise BookDrifted(f"Expected an order that is in the book, got {change}")
        side, price = place
        level = self.levels[side][price]
        if type(change) is OrderExecuted:
            left = level[change.order_id] - change.quantity
            if left > 0:
                level[change.order_id] = left
            else:  # an iceberg takes part in an auction with more than it shows
                self._remove(change.order_id, side, price, level)
        elif type(change) is OrderResized:
            level[change.order_id] = change.quantity
        else:
            self._remove(change.order_id, side, price, level)
            if type(change) is OrderReplaced:
                self._add(change.order_id, side, change.price, change.quantity)
            else:
                assert type(change) is OrderDeleted

    def _add(self, order_id: int, side: Side, price: int, shown: int) -> None:
        self.levels[side].setdefault(price, {})[order_id] = shown
        self._places[order_id] = side, price

    def _remove(self, order_id: int, side: Side, price: int, level: dict[int, int]) -> None:
        del level[order_id]
        if not level:
            del self.levels[side][price]
        del self._places[order_id]
