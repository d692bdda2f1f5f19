"""The calendar against the exchange's own closing days, written down by hand and not taken from the data file."""

from __future__ import annotations

import datetime
import itertools

import pytest

from engine.calendar import Calendar, DateOutside
from gateway.holidays import business_calendar, load_calendar

#: Weekdays on which the Tokyo Stock Exchange is closed: month and day.
CLOSED_WEEKDAYS = {
    2024: "0101 0102 0103 0108 0212 0223 0320 0429 0503 0506 0715 0812 0916 0923 1014 1104 1231",
    2025: "0101 0102 0103 0113 0211 0224 0320 0429 0505 0506 0721 0811 0915 0923 1013 1103 1124 1231",
    2026: "0101 0102 0112 0211 0223 0320 0429 0504 0505 0506 0720 0811 0921 0922 0923 1012 1103 1123 1231",
    2027: "0101 0111 0211 0223 0322 0429 0503 0504 0505 0719 0811 0920 0923 1011 1103 1123 1231",
}
CLOSED = {year * 10000 + int(day) for year, days in CLOSED_WEEKDAYS.items() for day in days.split()}


@pytest.fixture(scope="module")
def calendar() -> Calendar:
    return business_calendar(load_calendar())


def days(first: datetime.date, last: datetime.date) -> list[tuple[datetime.date, int]]:
    count = (last - first).days + 1
    all_days = [first + datetime.timedelta(days=n) for n in range(count)]
    return [(day, int(day.strftime("%Y%m%d"))) for day in all_days]


FOUR_YEARS = days(datetime.date(2024, 1, 1), datetime.date(2027, 12, 31))


@pytest.mark.parametrize(
    ("trade_date", "settlement_date"),
    [
        (20251229, 20260105),
        (20251230, 20260106),
        (20260501, 20260508),
        (20260917, 20260924),
        (20260918, 20260925),
    ],
)
def test_t_plus_2_skips_year_end_and_holidays(calendar: Calendar, trade_date: int, settlement_date: int) -> None:
    assert calendar.add_business_days(trade_date, 2) == settlement_date


def test_business_days_are_those_of_the_tokyo_stock_exchange_on_all_days_of_2024_to_2027(calendar: Calendar) -> None:
    assert len(FOUR_YEARS) == 1461
    for day, date in FOUR_YEARS:
        assert calendar.is_business_day(date) == (day.weekday() < 5 and date not in CLOSED), date
    open_days = [
        sum(calendar.is_business_day(date) for day, date in FOUR_YEARS if day.year == year)
        for year in range(2024, 2028)
    ]
    assert open_days == [245, 243, 242, 244]


@pytest.mark.parametrize("n", [0, 1, 2, 3, 10])
def test_t_plus_n_is_the_nth_business_day_after_the_trade_date(calendar: Calendar, n: int) -> None:
    open_days = [
        date
        for _, date in days(datetime.date(2024, 1, 1), datetime.date(2028, 3, 31))
        if calendar.is_business_day(date)
    ]
    for _, date in FOUR_YEARS:
        first = next(i for i, day in enumerate(open_days) if day >= date)
        open_days = open_days[first:]
        assert calendar.add_business_days(date, n) == open_days[n]


def test_next_and_previous_are_neighbours_and_undo_each_other(calendar: Calendar) -> None:
    open_days = [date for _, date in FOUR_YEARS if calendar.is_business_day(date)]
    for before, after in itertools.pairwise(open_days):
        assert calendar.next_business_day(before) == after
        assert calendar.previous_business_day(after) == before
    assert calendar.next_business_day(20251231) == 20260105
    assert calendar.previous_business_day(20260104) == 20251230


def test_year_end_is_closed_without_being_listed_as_a_holiday() -> None:
    bare = Calendar(20250101, 20261231, [])
    assert [bare.is_business_day(date) for date in (20251230, 20251231, 20260101, 20260102, 20260105)] == [
        True,
        False,
        False,
        False,
        True,
    ]


@pytest.mark.parametrize("date", [20231231, 20280101, 20260230, 20261301, 20260100, 0, -20260105, 7, 10**12, 99991231])
def test_a_date_outside_the_range_or_the_year_is_refused(date: int) -> None:
    calendar = Calendar(20240101, 20271231, [])
    for question in (calendar.is_business_day, calendar.next_business_day, calendar.previous_business_day):
        with pytest.raises(DateOutside, match=str(date)):
            question(date)
    with pytest.raises(DateOutside, match=str(date)):
        calendar.add_business_days(date, 2)


def test_an_answer_outside_the_range_is_refused_and_not_guessed() -> None:
    calendar = Calendar(20240101, 20271230, [])
    assert calendar.add_business_days(20271228, 2) == 20271230
    with pytest.raises(DateOutside):
        calendar.add_business_days(20271229, 2)
    with pytest.raises(DateOutside):
        calendar.next_business_day(20271230)
    with pytest.raises(DateOutside):
        calendar.previous_business_day(20240104)


def test_the_ends_of_time_are_refused_like_any_other_date() -> None:
    calendar = Calendar(10101, 99991231, [])
    with pytest.raises(DateOutside):
        calendar.next_business_day(99991231)
    with pytest.raises(DateOutside):
        calendar.previous_business_day(10101)


def test_a_calendar_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="first date not after the last"):
        Calendar(20270101, 20260101, [])
    with pytest.raises(DateOutside, match="20260230"):
        Calendar(20260101, 20261231, [20260230])
    with pytest.raises(DateOutside, match="20270101"):
        Calendar(20260101, 20261231, [20270101])
    with pytest.raises(ValueError, match="below 0"):
        Calendar(20260101, 20261231, []).add_business_days(20260601, -1)


def test_the_data_file_states_range_and_every_holiday_once() -> None:
    command = load_calendar()
    assert (command.first, command.last) == (20200101, 20301231)
    assert command.holidays == sorted(set(command.holidays))
    # The moves of the Olympic years were laws of their own; a rule without them gets these days wrong.
    assert {20200723, 20200724, 20200810, 20210722, 20210723, 20210808, 20210809} <= set(command.holidays)
    assert not {20200720, 20200811, 20201012, 20210719, 20210811, 20211011} & set(command.holidays)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("date,name\n2026-01-01,x\n", "range"),
        ("# range: 2026-01-01 to 2026-12-31\ndate,name\n2026-02-30,x\n", "holidays.csv:3"),
        ("# range: 2026-01-01 to 2026-12-31\n2026-01-01,x\n", "holidays.csv:2"),
        ("# range: 2026-01-01\ndate,name\n", "holidays.csv:1"),
        ("# range: 2026-01-01 to 2026-12-31\ndate,name\n2027-01-01,x\n", "20270101"),
    ],
)
def test_a_damaged_holiday_file_is_refused_with_the_place(tmp_path, text: str, complaint: str) -> None:
    path = tmp_path / "holidays.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=complaint):
        load_calendar(path)
