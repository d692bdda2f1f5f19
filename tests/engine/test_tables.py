"""What a tick table and a limit table answer, at the seams above all: that is where such tables go wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.reference_data import DatedTables
from engine.tables import LIMIT_TABLES, SPECIAL_QUOTE_TABLES, TICK_TABLES, LimitTable, TickTable

ONE = TickTable(TICK_TABLES["one"])
TSE = TickTable(TICK_TABLES["tse"])
TOPIX500 = TickTable(TICK_TABLES["tse_topix500"])
LIMITS = LimitTable(LIMIT_TABLES["tse"])
QUOTES = LimitTable(SPECIAL_QUOTE_TABLES["tse"])


@st.composite
def tick_tables(draw: st.DrawFn) -> TickTable:
    """Tables of up to four bands whose ticks rise or fall; each start is a multiple of both ticks beside it."""
    rows = [(0, draw(st.sampled_from([1, 2, 5, 10])))]
    for _ in range(draw(st.integers(0, 3))):
        start, tick = rows[-1]
        new = draw(st.sampled_from([1, 2, 5, 10, 20, 50]))
        rows.append(((start // (tick * new) + draw(st.integers(1, 3))) * tick * new, new))
    return TickTable(rows)


@pytest.mark.parametrize(
    ("price", "up", "down"),
    [
        (3000, 3005, 2999),
        (2999, 3000, 2998),
        (3005, 3010, 3000),
        (5000, 5010, 4995),
        (30_000, 30_050, 29_990),
        (50_000_000, 50_100_000, 49_950_000),
        (100_000_000, 100_100_000, 99_900_000),
        (1, 2, 0),
    ],
)
def test_at_a_band_s_edge_up_takes_the_new_tick_and_down_the_old_one(price: int, up: int, down: int) -> None:
    assert (TSE.up(price), TSE.down(price)) == (up, down)


@pytest.mark.parametrize(
    ("last", "other", "topix500"),
    [
        (1_000, 1, 1),
        (3_000, 1, 5),
        (5_000, 5, 10),
        (10_000, 10, 10),
        (30_000, 10, 50),
        (50_000, 50, 100),
        (100_000, 100, 100),
        (300_000, 100, 500),
        (500_000, 500, 1_000),
        (1_000_000, 1_000, 1_000),
        (3_000_000, 1_000, 5_000),
        (5_000_000, 5_000, 10_000),
        (10_000_000, 10_000, 10_000),
        (30_000_000, 10_000, 50_000),
        (50_000_000, 50_000, 100_000),
        (70_000_000, 100_000, 100_000),
    ],
)
def test_tse_ticks_hold_up_to_and_including_the_published_price(last: int, other: int, topix500: int) -> None:
    """The rows of market-rules 5.1; TOPIX500 in tenths of a yen."""
    assert last - TSE.down(last) == other
    assert 10 * last - TOPIX500.down(10 * last) == topix500


def test_one_unit_at_every_price() -> None:
    assert [ONE.up(p) for p in (0, 1, 99_999, 100_000, 2**48)] == [1, 2, 100_000, 100_001, 2**48 + 1]
    assert [ONE.down(p) for p in (0, 1, 2, 2**48)] == [0, 0, 1, 2**48 - 1]
    assert ONE.is_valid(1)


def test_no_price_is_not_a_valid_price() -> None:
    for table in (ONE, TSE, TOPIX500):
        assert not table.is_valid(0)
        assert not table.is_valid(-5)
        assert table.floor(0) == 0
        assert table.nearest(0) == 0


def test_a_price_off_the_grid_rounds_to_its_neighbours_and_half_goes_up() -> None:
    assert (TSE.floor(3_002), TSE.ceil(3_002), TSE.nearest(3_002)) == (3_000, 3_005, 3_000)
    assert TSE.nearest(3_003) == 3_005
    assert TSE.nearest(5_005) == 5_010  # exactly between 5,000 and 5,010
    assert (TSE.up(3_002), TSE.down(3_002)) == (3_005, 3_000)
    assert not TSE.is_valid(3_002)


def test_a_price_below_the_first_tick_rounds_to_a_price_and_not_to_none() -> None:
    assert TickTable([(0, 10)]).nearest(3) == 10
    assert TickTable([(0, 10)]).floor(3) == 0


@given(table=tick_tables(), price=st.integers(0, 5_000))
def test_rounding_agrees_with_a_list_of_every_valid_price(table: TickTable, price: int) -> None:
    grid = [p for p in range(1, 6_000) if p % [tick for start, tick in table.rows if start <= p][-1] == 0]
    above = [p for p in grid if p > price]
    below = [p for p in grid if p < price] or [0]
    assert table.up(price) == above[0]
    assert table.down(price) == below[-1]
    assert table.is_valid(price) == (price in grid)
    assert table.floor(price) == (price if price in grid else below[-1])
    assert table.ceil(price) == (price if price in grid else above[0])
    if price:
        assert table.nearest(price) == min(grid, key=lambda p: (abs(p - price), -p))


@given(table=tick_tables(), price=st.integers(0, 5_000))
def test_up_is_the_price_plus_the_tick_of_the_band_that_starts_at_or_below_it(table: TickTable, price: int) -> None:
    """Market-rules 3.2 word for word, on valid prices."""
    price = table.ceil(price)
    assert table.up(price) == price + [tick for start, tick in table.rows if start <= price][-1]
    assert table.down(price) == price - [tick for start, tick in table.rows if start < price][-1]


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([], "at least one row"),
        ([(1, 1)], "start at 0, got 1"),
        ([(0, 0)], "tick above 0, got 0 - at `$.rows[0].tick`"),
        ([(0, 1), (3000, -5)], "tick above 0, got -5 - at `$.rows[1].tick`"),
        ([(0, 1), (3000, 5), (3000, 10)], "start above 3000, got 3000 - at `$.rows[2].start`"),
        ([(0, 1), (3001, 5)], "multiple of the ticks 1 below and 5 above it, got 3001 - at `$.rows[1].start`"),
        ([(0, 10), (3005, 5)], "multiple of the ticks 10 below and 5 above it, got 3005"),
    ],
)
def test_a_tick_table_that_leaves_a_hole_is_refused_and_says_where(rows: list[tuple[int, int]], text: str) -> None:
    with pytest.raises(ValueError, match="Expected") as error:
        TickTable(rows)
    assert text in str(error.value)


def test_limits_read_below_so_a_price_at_the_bound_takes_the_next_width() -> None:
    assert (LIMITS.width(999), LIMITS.width(1_000), LIMITS.width(1_499), LIMITS.width(1_500)) == (150, 300, 300, 400)
    assert (QUOTES.width(999), QUOTES.width(1_000)) == (15, 30)
    assert LIMITS.width(1) == 30
    assert (LIMITS.width(49_999_999), LIMITS.width(50_000_000), LIMITS.width(2**48)) == (
        7_000_000,
        10_000_000,
        10_000_000,
    )


def test_a_special_quote_width_is_a_tenth_of_the_daily_limit_from_500_yen_on() -> None:
    """A check sum on the table as typed in: true of every row of market-rules 5.2 above the first three."""
    assert len(LIMITS.rows) == len(QUOTES.rows) == 34
    for (below, limit), (same, width) in zip(LIMITS.rows, QUOTES.rows, strict=True):
        assert below == same
        assert limit == 10 * width or 0 < below <= 200
    assert [width for _, width in LIMIT_TABLES["tse_topix500"]] == [10 * width for _, width in LIMITS.rows]
    assert len(SPECIAL_QUOTE_TABLES["tse_topix500"]) == 34


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([], "at least one row"),
        ([(100, 30), (200, 50)], "last row to be below 0 (any), got 200 - at `$.rows[1].below`"),
        ([(100, 30), (100, 50), (0, 80)], "bound above 100, got 100 - at `$.rows[1].below`"),
        ([(0, 30), (0, 80)], "bound above 0, got 0 - at `$.rows[0].below`"),
        ([(100, 0), (0, 80)], "width above 0, got 0 - at `$.rows[0].width`"),
    ],
)
def test_a_limit_table_that_is_not_closed_or_not_ascending_is_refused(rows: list[tuple[int, int]], text: str) -> None:
    with pytest.raises(ValueError, match="Expected") as error:
        LimitTable(rows)
    assert text in str(error.value)


# --- versions by date ------------------------------------------------------------------------------------------------


def dated(*versions: tuple[int, int]) -> DatedTables:
    """Versions of one table as (effective, tick), in the order of arrival."""
    tables = DatedTables({})
    for effective, tick in versions:
        tables.add("table", effective, [(0, tick)])
    return tables


@pytest.mark.parametrize("since", [20261124, 0])
def test_a_table_that_arrives_late_for_an_earlier_day_does_not_replace_the_one_that_holds(since: int) -> None:
    tables = dated((20261101, 1), (since, 2))
    tables.start(20261124)
    tables.add("table", 20261120, [(0, 3)])

    assert tables.rows("table", 20261125) == [(0, 2)]
    tables.start(20261125)
    assert tables.rows("table", 20261126) == [(0, 2)]


@pytest.mark.parametrize("since", [20261124, 20261125, 0])
def test_a_table_that_arrives_late_for_the_same_day_or_a_later_one_replaces_it(since: int) -> None:
    tables = dated((20261101, 1), (20261124, 2))
    tables.start(20261124)
    tables.add("table", since, [(0, 3)])

    assert tables.rows("table", 20261125) == [(0, 3)]


def test_a_day_forgets_what_can_never_hold_again_and_keeps_what_is_to_come() -> None:
    tables = dated((20261101, 1), (20261124, 2), (20261201, 3))
    tables.start(20261124)

    assert tables.key() == [["table", [(20261124, [(0, 2)]), (20261201, [(0, 3)])]]]


def test_a_shipped_table_gives_way_to_one_of_any_date() -> None:
    tables = DatedTables({"table": [(0, 1)]})
    tables.start(20261124)
    tables.add("table", 20261101, [(0, 2)])

    assert tables.rows("table", 20261125) == [(0, 2)]
