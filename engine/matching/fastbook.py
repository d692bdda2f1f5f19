"""The book for the hot path: numbers in rows instead of objects.

What costs time in a book is memory that has to be fetched, and objects that the collector has to visit. So there is no
object per order (see ``OrderTable``) and none per price:

* A *page* is 32 neighbouring steps of price on one side: head, tail and quantity of each level, a word of live bits. It
  is found by a hash of its place, linked to its neighbours, and held in order by ``sortedcontainers``, which is asked
  only when a page is born or dies. There is no window that a price could fall out of, and what a command costs does
  not depend on how many orders rest.
* Prices become *places* that grow from best to worse on either side, so one code serves both, and the best level is the
  lowest bit of the first page.
* Pages that have run empty stay linked for a while: in a market that moves, they are soon needed again.

A level's number is ``page * 32 + bit``; an order's row knows it, so a cancel searches nothing. Page 0 has no place: its
first two levels are the queues of orders without a limit. Always true: a bit is set exactly where a queue is not empty,
and a page with a bit set is linked.

Where prices lie far apart, each costs a page, 1 KB; ``set_step`` tells the book how far apart they are.
"""

from __future__ import annotations

from math import gcd
from typing import Final, final

from librt.vecs import extend, vec
from mypy_extensions import i64
from sortedcontainers import SortedList

from engine.faults import InvariantBroken
from engine.matching.book import (
    BUY,
    FILL,
    IN_BOOK,
    LEVEL,
    NEXT,
    OPEN,
    PREVIOUS,
    PRICE,
    ROW_OFFSET,
    ROW_SHIFT,
    SELL,
    STATE,
    TERMS,
    Book,
    Fills,
    OrderTable,
)
from engine.memory import spread, zeros

#: Places of the buy side count down from here: above every price (2**48) and a multiple of 32.
_TOP: Final = 1 << 49
#: Integers per level: head, tail, quantity, and one that is the page's (a power of two, so that its cell is found
#: without a product).
_LEVEL_SHIFT: Final = 2
_PAGE_SHIFT: Final = 7
_PAGE: Final = 32 << _LEVEL_SHIFT
# The page's own, in its first levels: live bits; key (place // 32 * 2 + side); next worse and next better page (0:
# none); 1 if it ran empty lately. So whatever is known of a page lies in one vector.
_BITS: Final = 3
_KEY: Final = 7
_WORSE: Final = 11
_BETTER: Final = 15
_IS_PARKED: Final = 19
_OWN: Final = 3  #: in every level, the place of what is the page's
#: Bit n of a page is ``_BIT_32 >> (32 - n)``. Not ``1 << n``: mypyc leaves that 1 a C int, whose bit 31 is its sign.
_BIT_32: Final = 1 << 32
#: The lowest bit of a word times this has its number in the top five of 32 bits.
_BRUIJN: Final = 0x077CB531
_32_BITS: Final = 0xFFFFFFFF
#: Empty pages that are kept linked, both sides together; a power of two.
_PARKED: Final = 16
#: Pages that address space is reserved for: growth beyond copies.
_PAGES_RESERVED: Final = 1 << 13


@final
class FastBook(Book):
    """The queues of one instrument, in integers.

    What ``add``, ``remove``, ``fill``, ``consume``, ``worse``, ``levels``, ``available``, ``set_step`` and ``check`` do
    is told by ``Book``.
    """

    def __init__(self, table: OrderTable) -> None:
        # What every command reads comes first: attributes lie in memory in this order.
        self._table: Final = table
        self._best_buy: i64 = 0  # best price; 0: none
        self._best_sell: i64 = 0
        self._top_buy: i64 = 0  # its level
        self._top_sell: i64 = 0
        self._step: i64 = 1
        self._levels = zeros(_PAGE, _PAGE * _PAGES_RESERVED)
        # The hash: key + 1 (0: nothing), page. Probed one after the other, at most half full.
        self._hash = vec[i64]([0] * 128)
        self._mask: i64 = 63
        self._first_buy: i64 = 0
        self._first_sell: i64 = 0
        self._live: i64 = 0
        self._spare: i64 = 0  # first of the pages to use again, linked by ``_WORSE``
        # The pages that ran empty lately.
        self._parked: Final = vec[i64]([0] * _PARKED)
        self._parked_next: i64 = 0
        self._order_buy: Final[SortedList[int]] = SortedList()
        self._order_sell: Final[SortedList[int]] = SortedList()
        low_bit = [0] * 32
        for bit in range(32):
            low_bit[((1 << bit) * _BRUIJN & _32_BITS) >> 27] = bit
        self._low_bit: Final = vec[i64](low_bit)
        self._empty_page: Final = vec[i64]([0] * _PAGE)

    # --- pages --------------------------------------------------------------------------------------------------------

    def _find(self, key: i64) -> i64:
        """The page of a key; 0: there is none."""
        table = self._hash
        mask = self._mask
        at = spread(key) & mask
        while True:
            found = table[at << 1]
            if found == key + 1:
                return table[(at << 1) + 1]
            if found == 0:
                return 0
            at = (at + 1) & mask

    def _enter(self, key: i64, page: i64) -> None:
        table = self._hash
        mask = self._mask
        at = spread(key) & mask
        while table[at << 1]:
            at = (at + 1) & mask
        table[at << 1] = key + 1
        table[(at << 1) + 1] = page

    def _leave(self, key: i64) -> None:
        """Forget a key; those that stand behind it by collision move up, so that no search ends early."""
        table = self._hash
        mask = self._mask
        at = spread(key) & mask
        while table[at << 1] != key + 1:
            at = (at + 1) & mask
        gap = at
        while True:
            at = (at + 1) & mask
            found = table[at << 1]
            if found == 0:
                break
            home = spread(found - 1) & mask
            if ((at - home) & mask) >= ((at - gap) & mask):
                table[gap << 1] = found
                table[(gap << 1) + 1] = table[(at << 1) + 1]
                gap = at
        table[gap << 1] = 0

    def _new_page(self) -> i64:
        page = self._spare
        if page:
            self._spare = self._levels[(page << _PAGE_SHIFT) + _WORSE]
            return page
        page = len(self._levels) >> _PAGE_SHIFT
        self._levels = extend(self._levels, self._empty_page)
        return page

    def _birth(self, key: i64) -> i64:
        """A page for ``key``, linked between its neighbours."""
        page = self._new_page()
        levels = self._levels
        levels[(page << _PAGE_SHIFT) + _KEY] = key
        self._live += 1
        if self._live * 2 > self._mask:
            self._grow_hash()
        ordered = self._order_sell if key & 1 else self._order_buy
        position = ordered.bisect_left(int(key))
        before: i64 = 0
        if position:
            before = self._find(ordered[position - 1])
            behind = levels[(before << _PAGE_SHIFT) + _WORSE]
            levels[(before << _PAGE_SHIFT) + _WORSE] = page
        elif key & 1:
            behind = self._first_sell
            self._first_sell = page
        else:
            behind = self._first_buy
            self._first_buy = page
        levels[(page << _PAGE_SHIFT) + _BETTER] = before
        levels[(page << _PAGE_SHIFT) + _WORSE] = behind
        if behind:
            levels[(behind << _PAGE_SHIFT) + _BETTER] = page
        self._enter(key, page)
        ordered.add(int(key))
        return page

    def _grow_hash(self) -> None:
        self._mask = self._mask * 2 + 1
        self._hash = zeros(2 * (self._mask + 1), 2 * (self._mask + 1))
        for first in (self._first_buy, self._first_sell):
            at: i64 = first << _PAGE_SHIFT
            while at:
                self._enter(self._levels[at + _KEY], at >> _PAGE_SHIFT)
                at = self._levels[at + _WORSE] << _PAGE_SHIFT

    def _death(self, page: i64) -> None:
        levels = self._levels
        at = page << _PAGE_SHIFT
        key = levels[at + _KEY]
        before = levels[at + _BETTER]
        behind = levels[at + _WORSE]
        if behind:
            levels[(behind << _PAGE_SHIFT) + _BETTER] = before
        if before:
            levels[(before << _PAGE_SHIFT) + _WORSE] = behind
        elif key & 1:
            self._first_sell = behind
        else:
            self._first_buy = behind
        self._leave(key)
        self._live -= 1
        if key & 1:
            self._order_sell.remove(int(key))
        else:
            self._order_buy.remove(int(key))
        levels[at + _WORSE] = self._spare
        self._spare = page

    def _emptied(self, level: i64, side: i64) -> None:
        """The queue of a level has run empty."""
        page = level >> 5
        if page == 0:
            return
        at = (page << _PAGE_SHIFT) + _BITS
        bits = self._levels[at] & ~(_BIT_32 >> (32 - (level & 31)))
        self._levels[at] = bits
        if level == (self._top_sell if side else self._top_buy):
            self._find_best(side)
        if bits == 0 and self._levels[(page << _PAGE_SHIFT) + _IS_PARKED] == 0:
            self._park(page)

    def _park(self, page: i64) -> None:
        """Keep an empty page linked for a while; the one that has waited longest makes room for it."""
        oldest = self._parked[self._parked_next]
        self._parked[self._parked_next] = page
        self._parked_next = (self._parked_next + 1) & (_PARKED - 1)
        self._levels[(page << _PAGE_SHIFT) + _IS_PARKED] = 1
        if oldest:
            at = oldest << _PAGE_SHIFT
            self._levels[at + _IS_PARKED] = 0
            if self._levels[at + _BITS] == 0:
                self._death(oldest)

    def _find_best(self, side: i64) -> None:
        """The best level is the lowest bit of the first page that has one."""
        levels = self._levels
        at = (self._first_sell if side else self._first_buy) << _PAGE_SHIFT
        bits = levels[at + _BITS]
        while bits == 0 and at:
            at = levels[at + _WORSE] << _PAGE_SHIFT
            bits = levels[at + _BITS]
        if at == 0:
            if side:
                self._top_sell = 0
                self._best_sell = 0
            else:
                self._top_buy = 0
                self._best_buy = 0
            return
        bit = self._low_bit[((bits & -bits) * _BRUIJN & _32_BITS) >> 27]
        level = (at >> _LEVEL_SHIFT) + bit
        place = (levels[at + _KEY] >> 1 << 5) + bit
        if side:
            self._top_sell = level
            self._best_sell = place * self._step
        else:
            self._top_buy = level
            self._best_buy = (_TOP - place) * self._step

    # --- the book -----------------------------------------------------------------------------------------------------

    def _place(self, price: i64) -> i64:
        """How many steps a price is from 0; the book is made anew where it is no whole number of them."""
        place = price // self._step
        if place * self._step != price:
            self._rebuild(gcd(int(self._step), int(price)))
            place = price // self._step
        return place

    def _make_level(self, side: i64, price: i64) -> i64:
        """The level of a price above 0, on a page that is made if need be."""
        place = price if self._step == 1 else self._place(price)
        if side == 0:
            place = _TOP - place
        key = place >> 5 << 1 | side
        # What ``_find`` looks at first, here for speed: almost always that is it.
        at = (spread(key) & self._mask) << 1
        if self._hash[at] == key + 1:
            page = self._hash[at + 1]
        else:
            page = self._find(key)
            if page == 0:
                page = self._birth(key)
        return (page << 5) + (place & 31)

    def add(self, order: i64) -> None:
        rows = self._table.rows
        row = (order << ROW_SHIFT) + ROW_OFFSET
        side = rows[row + TERMS] & 1
        price = rows[row + PRICE]
        level = self._make_level(side, price) if price else side
        at = level << _LEVEL_SHIFT
        levels = self._levels
        tail = levels[at + 1]
        rows[row + LEVEL] = at | IN_BOOK
        rows[row + NEXT] = 0
        rows[row + PREVIOUS] = tail
        levels[at + 1] = order
        levels[at + 2] += rows[row + OPEN]
        if tail:
            rows[(tail << ROW_SHIFT) + (ROW_OFFSET + NEXT)] = order
            return
        levels[at] = order
        if price:
            levels[(level >> 5 << _PAGE_SHIFT) + _BITS] |= _BIT_32 >> (32 - (level & 31))
            if side:
                if price < self._best_sell or self._best_sell == 0:
                    self._best_sell = price
                    self._top_sell = level
            elif price > self._best_buy:
                self._best_buy = price
                self._top_buy = level

    def remove(self, order: i64) -> None:
        rows = self._table.rows
        row = (order << ROW_SHIFT) + ROW_OFFSET
        self._unlink(rows, row, rows[row + OPEN])

    def fill(self, order: i64, quantity: i64) -> None:
        rows = self._table.rows
        row = (order << ROW_SHIFT) + ROW_OFFSET
        left = rows[row + OPEN] - quantity
        rows[row + OPEN] = left
        if left:
            self._levels[(rows[row + LEVEL] & ~STATE) + 2] -= quantity
        else:
            self._unlink(rows, row, quantity)

    def _unlink(self, rows: vec[i64], row: i64, quantity: i64) -> None:
        """Take a row out of its queue, which then holds ``quantity`` less."""
        behind = rows[row + NEXT]
        before = rows[row + PREVIOUS]
        levels = self._levels
        at = rows[row + LEVEL] & ~STATE
        levels[at + 2] -= quantity
        if behind:
            rows[(behind << ROW_SHIFT) + (ROW_OFFSET + PREVIOUS)] = before
        else:
            levels[at + 1] = before
        if before:
            rows[(before << ROW_SHIFT) + (ROW_OFFSET + NEXT)] = behind
            return
        levels[at] = behind
        if behind == 0:
            self._emptied(at >> _LEVEL_SHIFT, rows[row + TERMS] & 1)

    def consume(self, side: i64, fills: Fills, start: i64) -> None:
        rows = self._table.rows
        levels = self._levels
        cells = fills.cells
        end = fills.count
        level = self._top_sell if side else self._top_buy
        at = level << _LEVEL_SHIFT
        head: i64 = 0
        taken: i64 = 0
        while start < end:
            row = (cells[start] << ROW_SHIFT) + ROW_OFFSET
            quantity = cells[start + 3]
            left = rows[row + OPEN] - quantity
            rows[row + OPEN] = left
            taken += quantity
            start += FILL
            if left == 0:
                head = rows[row + NEXT]
                if head == 0:
                    levels[at] = 0
                    levels[at + 1] = 0
                    levels[at + 2] -= taken
                    taken = 0
                    self._emptied(level, side)
                    level = self._top_sell if side else self._top_buy
                    at = level << _LEVEL_SHIFT
        levels[at + 2] -= taken
        if head:
            levels[at] = head
            rows[(head << ROW_SHIFT) + (ROW_OFFSET + PREVIOUS)] = 0

    def first(self, side: i64) -> i64:
        top = self._top_sell if side else self._top_buy
        # In two lines, here and below: a literal in a conditional expression makes the compiled code box its value.
        if top == 0:
            return 0
        return self._levels[top << _LEVEL_SHIFT]

    def best(self, side: i64) -> i64:
        return self._best_sell if side else self._best_buy

    def worse(self, side: i64, price: i64) -> i64:
        level = self._level(side, price)
        levels = self._levels
        at = level >> 5 << _PAGE_SHIFT
        # The bits above its own; twice a bit is never more than 2**32.
        bits = levels[at + _BITS] & ~((_BIT_32 >> (31 - (level & 31))) - 1)
        while bits == 0:
            at = levels[at + _WORSE] << _PAGE_SHIFT
            if at == 0:
                return 0
            bits = levels[at + _BITS]
        return self._price((at >> _LEVEL_SHIFT) + self._low_bit[((bits & -bits) * _BRUIJN & _32_BITS) >> 27])

    def _level(self, side: i64, price: i64) -> i64:
        """The level of a price, -1 where the side has no page for it."""
        if price == 0:
            return side
        place = price
        if self._step != 1:
            place = price // self._step
            if place * self._step != price:
                return -1
        if side == 0:
            place = _TOP - place
        page = self._find(place >> 5 << 1 | side)
        if page == 0:
            return -1
        return (page << 5) + (place & 31)

    def head(self, side: i64, price: i64) -> i64:
        level = self._level(side, price)
        if level < 0:
            return 0
        return self._levels[level << _LEVEL_SHIFT]

    def level_quantity(self, side: i64, price: i64) -> i64:
        level = self._level(side, price)
        if level < 0:
            return 0
        return self._levels[(level << _LEVEL_SHIFT) + 2]

    def _price(self, level: i64) -> i64:
        key = self._levels[(level >> 5 << _PAGE_SHIFT) + _KEY]
        place = (key >> 1 << 5) + (level & 31)
        return (place if key & 1 else _TOP - place) * self._step

    def _ladder(self, side: i64) -> list[int]:
        """The levels of a side, best first."""
        result: list[int] = []
        page = self._first_sell if side else self._first_buy
        while page:
            bits = self._levels[(page << _PAGE_SHIFT) + _BITS]
            bit: i64 = 0
            while bits:
                if bits & 1:
                    result.append((page << 5) + bit)
                bits = bits >> 1
                bit += 1
            page = self._levels[(page << _PAGE_SHIFT) + _WORSE]
        return result

    def levels(self, side: i64, prices: list[int], quantities: list[int]) -> None:
        for number in self._ladder(side):
            level: i64 = number
            prices.append(self._price(level))
            quantities.append(self._levels[(level << _LEVEL_SHIFT) + 2])

    def available(self, side: i64, limit: i64, wanted: i64) -> i64:
        total: i64 = 0
        page = self._first_sell if side else self._first_buy
        while page:
            bits = self._levels[(page << _PAGE_SHIFT) + _BITS]
            while bits:
                level = (page << 5) + self._low_bit[((bits & -bits) * _BRUIJN & _32_BITS) >> 27]
                bits = bits & (bits - 1)
                if total >= wanted:
                    return total
                if limit:
                    price = self._price(level)
                    if price > limit if side else price < limit:
                        return total
                total += self._levels[(level << _LEVEL_SHIFT) + 2]
            page = self._levels[(page << _PAGE_SHIFT) + _WORSE]
        return total

    def set_step(self, step: i64) -> None:
        prices: list[int] = []
        for side in (BUY, SELL):
            self.levels(side, prices, [])
        self._rebuild(gcd(int(step), *prices))

    def _rebuild(self, step: i64) -> None:
        """Make pages of ``step``, of which every price is a multiple. Costs O(orders)."""
        if step == self._step:
            return
        queues: list[tuple[int, int, int, int, int]] = []
        cells = self._levels
        for side in (BUY, SELL):
            for number in self._ladder(side):
                level: i64 = number
                at = level << _LEVEL_SHIFT
                queues.append((side, self._price(level), cells[at], cells[at + 1], cells[at + 2]))
        for key in self._order_buy[:] + self._order_sell[:]:
            page = self._find(key)
            cells[(page << _PAGE_SHIFT) + _BITS] = 0
            cells[(page << _PAGE_SHIFT) + _IS_PARKED] = 0
            self._death(page)
        for i in range(_PARKED):
            self._parked[i] = 0
        for i in range(_PAGE, len(cells)):  # the levels that have gone leave nothing behind
            if i & _OWN != _OWN:
                cells[i] = 0
        self._step = step
        rows = self._table.rows
        for queue_side, queue_price, head, tail, quantity in queues:
            level = self._make_level(queue_side, queue_price)
            at = level << _LEVEL_SHIFT
            self._levels[at] = head
            self._levels[at + 1] = tail
            self._levels[at + 2] = quantity
            self._levels[(level >> 5 << _PAGE_SHIFT) + _BITS] |= _BIT_32 >> (32 - (level & 31))
            order: i64 = head
            while order:
                row = (order << ROW_SHIFT) + ROW_OFFSET
                rows[row + LEVEL] = at | rows[row + LEVEL] & STATE
                order = rows[row + NEXT]
        self._find_best(BUY)
        self._find_best(SELL)

    def check(self) -> None:
        for side in (BUY, SELL):
            ladder = self._ladder(side)
            prices: list[int] = [self._price(level) for level in ladder]
            if prices != sorted(set(prices), reverse=side == BUY):
                raise InvariantBroken(f"Side {side}: the ladder is out of order: {prices}")
            if self.best(side) != (prices[0] if prices else 0):
                raise InvariantBroken(f"Side {side}: the best price at hand is not the first of the ladder")
            if self.first(side) != (self.head(side, prices[0]) if prices else 0):
                raise InvariantBroken(f"Side {side}: the first order at hand is not the first of the best level")
            for level in [side, *ladder]:
                self._check_level(side, level)
        for page in range(1, len(self._levels) >> _PAGE_SHIFT):
            bits = self._levels[(page << _PAGE_SHIFT) + _BITS]
            for level in range(page << 5, (page << 5) + 32):
                if self._levels[level << _LEVEL_SHIFT] and bits & (_BIT_32 >> (32 - (level & 31))) == 0:
                    raise InvariantBroken(f"Level {level} has orders, its page does not say so")

    def _check_level(self, side: i64, level: i64) -> None:
        cells = self._levels
        at = level << _LEVEL_SHIFT
        price = self._price(level) if level >= 32 else 0
        where = f"side {side}, price {price}"
        if price and cells[at] == 0:
            raise InvariantBroken(f"An empty level stands in the book: {where}")
        if self._level(side, price) != level:
            raise InvariantBroken(f"A level stands under a price that is not its own: {where}")
        rows = self._table.rows
        total: i64 = 0
        before: i64 = 0
        order = cells[at]
        while order:
            row = (order << ROW_SHIFT) + ROW_OFFSET
            if rows[row + PREVIOUS] != before:
                raise InvariantBroken(f"Order {order} does not name {before} as the one before it: {where}")
            if rows[row + PRICE] != price or rows[row + TERMS] & 1 != side or rows[row + LEVEL] & ~STATE != at:
                raise InvariantBroken(f"Order {order} queues at a side or price that is not its own: {where}")
            if rows[row + OPEN] <= 0 or rows[row + LEVEL] & STATE != IN_BOOK:
                raise InvariantBroken(f"Order {order} is queued but not open in the book: {where}")
            total += rows[row + OPEN]
            before = order
            order = rows[row + NEXT]
        if cells[at + 1] != before:
            raise InvariantBroken(f"The queue ends at order {before}, its level says {cells[at + 1]}: {where}")
        if cells[at + 2] != total:
            raise InvariantBroken(f"The queue holds {total}, its level says {cells[at + 2]}: {where}")
