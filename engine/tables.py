"""Tick tables and limit tables: what a price may be, and how far it may move in a day.

Tables are data with a date, never code: START changed both of its tables on 2024-10-07. They arrive in a logged
command or are one of those shipped here, and are checked once, on construction. Afterwards every question is integer
arithmetic, because the matching path asks for each order whether its price is valid.

Two boundaries are easy to get wrong, and the two kinds of table read them differently (market-rules 5):

* A *tick* table is published as "up to and including": 3,000 yen still belongs to the band below. It is kept here as
  rows of (start, tick), as START's own feed sends it. A price exactly at a start belongs to both neighbours: one step
  up from it is the new band's tick, one step down the old band's: ``up(3000) == 3005``, ``down(3000) == 2999``. So
  ``up`` asks for the band whose start is at or below the price, ``down`` for the one whose start is strictly below it.
* A *limit* table reads "below": a base price of exactly 1,000 yen takes the next row's width.

Every start is a multiple of the tick on both of its sides. Hence the grid is simply "multiples of the tick of the
band", no price is skipped at a seam, and no offset has to be carried along.

Prices are whole price units of the instrument. 0 is no price: it is never valid.
"""

from __future__ import annotations

from bisect import bisect_right
from math import gcd
from typing import Final


class TickTable:
    """The valid prices of an instrument.

    ``rows`` are (start, tick) in price units: ``tick`` holds from ``start`` on, up to the start of the next row.
    Starts ascend from 0, ticks are above 0, and each start is a multiple of its own tick and of the tick before it.
    Raises ``ValueError`` naming the row when they are not.
    """

    def __init__(self, rows: list[tuple[int, int]]) -> None:
        if not rows:
            raise ValueError("Expected at least one row (start, tick), got none - at `$.rows`")
        before = 0
        for i, (start, tick) in enumerate(rows):
            if tick <= 0:
                raise ValueError(f"Expected a tick above 0, got {tick} - at `$.rows[{i}].tick`")
            if i == 0:
                if start != 0:
                    raise ValueError(f"Expected the first row to start at 0, got {start} - at `$.rows[0].start`")
            else:
                if start <= rows[i - 1][0]:
                    raise ValueError(f"Expected a start above {rows[i - 1][0]}, got {start} - at `$.rows[{i}].start`")
                if start % before or start % tick:
                    raise ValueError(
                        f"Expected a start that is a multiple of the ticks {before} below and {tick} above it, "
                        f"got {start} - at `$.rows[{i}].start`"
                    )
            before = tick
        self.rows: Final[list[tuple[int, int]]] = [(start, tick) for start, tick in rows]
        self._starts: Final[list[int]] = [start for start, _ in rows]
        self._ticks: Final[list[int]] = [tick for _, tick in rows]
        #: The tick of a table with a single band, else 0: most tables have one, and then nothing is searched.
        self._single: Final[int] = rows[0][1] if len(rows) == 1 else 0

    def tick_at(self, price: int) -> int:
        """The step from ``price`` to the next higher valid price."""
        if self._single:
            return self._single
        i = bisect_right(self._starts, price)
        return self._ticks[i - 1] if i else self._ticks[0]

    def step(self, lower: int, upper: int) -> int:
        """What all valid prices from ``lower`` to ``upper`` (0: no limit) are multiples of; the largest such."""
        step = 0
        for i, tick in enumerate(self._ticks):
            begins_above = upper and self._starts[i] > upper
            ends_below = i + 1 < len(self._starts) and self._starts[i + 1] < lower
            if not begins_above and not ends_below:
                step = gcd(step, tick)
        return step or self._ticks[-1]

    def up(self, price: int) -> int:
        """The lowest valid price above ``price``; for a valid price, ``price`` plus the tick of the band above it."""
        tick = self.tick_at(price)
        return (price // tick + 1) * tick if price >= 0 else self._ticks[0]

    def down(self, price: int) -> int:
        """The highest valid price below ``price``, 0 when there is none."""
        if price <= 1:
            return 0
        tick = self.tick_at(price - 1)
        return (price - 1) // tick * tick

    def is_valid(self, price: int) -> bool:
        """Whether ``price`` is on the grid; 0 and below never is."""
        return price > 0 and price % self.tick_at(price) == 0

    def floor(self, price: int) -> int:
        """The highest valid price at or below ``price``, 0 when there is none."""
        if price <= 0:
            return 0
        tick = self.tick_at(price)
        return price // tick * tick

    def ceil(self, price: int) -> int:
        """The lowest valid price at or above ``price``."""
        return price if self.is_valid(price) else self.up(price)

    def nearest(self, price: int) -> int:
        """The valid price nearest to ``price``, half up (market-rules 2: a base price off the new grid); 0 stays 0."""
        if price <= 0:
            return 0
        low = self.floor(price)
        if low == price:
            return price
        high = self.up(price)
        return high if not low or 2 * price >= low + high else low


class LimitTable:
    """Widths by price: daily limits, special-quote widths.

    ``rows`` are (below, width) in price units: ``width`` holds for base prices below ``below`` and not below the row
    before. The last row's ``below`` is 0 and closes the table: any base price. Raises ``ValueError`` naming the row.
    """

    def __init__(self, rows: list[tuple[int, int]]) -> None:
        if not rows:
            raise ValueError("Expected at least one row (below, width), got none - at `$.rows`")
        last = len(rows) - 1
        for i, (below, width) in enumerate(rows):
            if width <= 0:
                raise ValueError(f"Expected a width above 0, got {width} - at `$.rows[{i}].width`")
            if i == last:
                if below != 0:
                    raise ValueError(f"Expected the last row to be below 0 (any), got {below} - at `$.rows[{i}].below`")
            elif below <= (rows[i - 1][0] if i else 0):
                raise ValueError(
                    f"Expected a bound above {rows[i - 1][0] if i else 0}, got {below} - at `$.rows[{i}].below`"
                )
        self.rows: Final[list[tuple[int, int]]] = [(below, width) for below, width in rows]
        self._bounds: Final[list[int]] = [below for below, _ in rows[:last]]
        self._widths: Final[list[int]] = [width for _, width in rows]

    def width(self, base: int) -> int:
        """The width for ``base``: that of the first row whose bound is above it."""
        return self._widths[bisect_right(self._bounds, base)]


# --- tables shipped as data ------------------------------------------------------------------------------------------
#
# TSE values as of market-rules 5.1 to 5.3: defaults until START's own numbers are configured. TOPIX500 shares are
# priced in tenths of a yen, so everything for them is given in tenths.

#: Last price of a band, "up to and including"; the last band has no end.
_TSE_BANDS: Final = [
    1_000, 3_000, 5_000, 10_000, 30_000, 50_000, 100_000, 300_000, 500_000, 1_000_000, 3_000_000, 5_000_000,
    10_000_000, 30_000_000, 50_000_000,
]  # fmt: skip
_TSE_TICKS: Final = [1, 1, 5, 10, 10, 50, 100, 100, 500, 1_000, 1_000, 5_000, 10_000, 10_000, 50_000, 100_000]
#: In tenths of a yen: 0.1 yen is 1.
_TOPIX500_TICKS: Final = [
    1, 5, 10, 10, 50, 100, 100, 500, 1_000, 1_000, 5_000, 10_000, 10_000, 50_000, 100_000, 100_000,
]  # fmt: skip

#: base price below, daily limit, special-quote width, in yen.
_TSE_WIDTHS: Final = [
    (100, 30, 5), (200, 50, 5), (500, 80, 8), (700, 100, 10), (1_000, 150, 15),
    (1_500, 300, 30), (2_000, 400, 40), (3_000, 500, 50), (5_000, 700, 70), (7_000, 1_000, 100),
    (10_000, 1_500, 150), (15_000, 3_000, 300), (20_000, 4_000, 400), (30_000, 5_000, 500), (50_000, 7_000, 700),
    (70_000, 10_000, 1_000), (100_000, 15_000, 1_500), (150_000, 30_000, 3_000), (200_000, 40_000, 4_000),
    (300_000, 50_000, 5_000), (500_000, 70_000, 7_000), (700_000, 100_000, 10_000), (1_000_000, 150_000, 15_000),
    (1_500_000, 300_000, 30_000), (2_000_000, 400_000, 40_000), (3_000_000, 500_000, 50_000),
    (5_000_000, 700_000, 70_000), (7_000_000, 1_000_000, 100_000), (10_000_000, 1_500_000, 150_000),
    (15_000_000, 3_000_000, 300_000), (20_000_000, 4_000_000, 400_000), (30_000_000, 5_000_000, 500_000),
    (50_000_000, 7_000_000, 700_000), (0, 10_000_000, 1_000_000),
]  # fmt: skip


def _tick_rows(ticks: list[int], units_per_yen: int) -> list[tuple[int, int]]:
    """Rows by start. Neighbours with one tick are one band: fewer bands, less to search."""
    rows: list[tuple[int, int]] = []
    for start, tick in zip([0, *_TSE_BANDS], ticks, strict=True):
        if not rows or rows[-1][1] != tick:
            rows.append((start * units_per_yen, tick))
    return rows


#: Tick tables by name, as ``ListInstrument.tick_table`` names them.
TICK_TABLES: Final[dict[str, list[tuple[int, int]]]] = {
    "one": [(0, 1)],
    "tse": _tick_rows(_TSE_TICKS, 1),
    "tse_topix500": _tick_rows(_TOPIX500_TICKS, 10),
}

#: Daily limit widths by base price, by table name. A name that is not here, like "none", is no limit.
LIMIT_TABLES: Final[dict[str, list[tuple[int, int]]]] = {
    "tse": [(below, limit) for below, limit, _ in _TSE_WIDTHS],
    "tse_topix500": [(below * 10, limit * 10) for below, limit, _ in _TSE_WIDTHS],
}

#: Special-quote widths by last price, by table name.
SPECIAL_QUOTE_TABLES: Final[dict[str, list[tuple[int, int]]]] = {
    "tse": [(below, width) for below, _, width in _TSE_WIDTHS],
    "tse_topix500": [(below * 10, width * 10) for below, _, width in _TSE_WIDTHS],
}
