"""Books with nothing around them: no identities, phases or events. For measuring, and for research on books alone.

Matching is that of the engine: order table, book, and the rules of ``continuous.py``. Orders are limit orders, prices
above 0; orders are named by the numbers that ``new`` returns, symbols by their index.
"""

from __future__ import annotations

from typing import Final, final

from librt.vecs import vec
from mypy_extensions import i64

from engine.matching.book import Book, OrderTable, pack_terms
from engine.matching.continuous import place, withdraw


@final
class BareMarket:
    """One table, one book per symbol.

    ``fills`` has three integers per trade: resting order, price, quantity; ``takers`` has two per order that traded on
    entry: its number, and where in ``fills`` its trades begin.
    """

    def __init__(self, table: OrderTable, books: list[Book]) -> None:
        self.table: Final = table
        self.books: Final = books
        self.fills: Final[list[int]] = []
        self.takers: Final[list[int]] = []
        self._terms: Final = vec[i64]([pack_terms(side, 0, 0, i, 0) for i in range(len(books)) for side in (0, 1)])

    def new(self, symbol: i64, side: i64, price: i64, quantity: i64, immediate: i64) -> i64:
        """An order trades; what is left rests unless it is ``immediate``. Returns its number."""
        table = self.table
        order = table.append_row(self._terms[symbol << 1 | side], price, quantity, 0)
        fills = self.fills
        before = len(fills)
        place(table, self.books[symbol], order, immediate == 0, fills)
        if len(fills) > before:
            self.takers.append(order)
            self.takers.append(before)
        return order

    def cancel(self, order: i64) -> None:
        """Take an order off its book; one that is filled or gone, or 0, stays as it is."""
        table = self.table
        if table.is_open(order):
            withdraw(table, self.books[table.instrument(order)], order)

    def run(self, records: bytes, orders: vec[i64]) -> None:
        """Carry out many commands in one call.

        A record is 24 bytes, little-endian: operation u8 (0 new, 1 cancel), side u8, flags u16 (bit 0: immediate),
        symbol u32, price i32, quantity u32, id u64. ``orders`` is indexed by id: it takes the number of each new order
        and tells it to the cancels.
        """
        words = vec[i64](memoryview(records).cast("q"))
        at: i64 = 0
        end: i64 = len(words)
        while at < end:
            first = words[at]
            number = words[at + 2]
            if first & 255:
                self.cancel(orders[number])
            else:
                second = words[at + 1]
                price = second & 0xFFFFFFFF
                quantity = second >> 32 & 0xFFFFFFFF
                orders[number] = self.new(first >> 32 & 0xFFFFFFFF, first >> 8 & 255, price, quantity, first >> 16 & 1)
            at += 3
