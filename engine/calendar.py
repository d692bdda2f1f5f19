"""Business days, so that a settlement date replays.

A settlement date depends on the holidays known on the day of the trade, and laws change them. So the calendar is
reference data that arrives as a command, covers a stated range of dates, and refuses every date outside of it: a date
guessed today may differ from the one computed after the next holiday law.

The rule: a business day is a weekday that is not a national holiday and not 31 December to 3 January. It agrees with
the Tokyo Stock Exchange's calendar on all days of 2024 to 2027. Dates are integers YYYYMMDD throughout, for instance
20261124; no clock is read.
"""

from __future__ import annotations

import datetime


class DateOutside(ValueError):
    """A date that does not exist, or that the calendar does not cover."""


def _day(date: int) -> datetime.date:
    """The date behind YYYYMMDD. Raises DateOutside where there is none."""
    if date < 10101 or date > 99991231:
        raise DateOutside(f"Expected a date as YYYYMMDD, got {date}")
    try:
        return datetime.date(date // 10000, date // 100 % 100, date % 100)
    except ValueError:
        raise DateOutside(f"Expected a date as YYYYMMDD, got {date}") from None


def _number(day: datetime.date) -> int:
    return day.year * 10000 + day.month * 100 + day.day


class Calendar:
    """Business days from ``first`` to ``last``, both included.

    ``holidays`` are the national holidays in that range, in any order; repeats and holidays on weekends do no harm. The
    year-end days need not be listed. Raises DateOutside for a date that does not exist or a holiday outside the range,
    ValueError where ``first`` comes after ``last``.
    """

    def __init__(self, first: int, last: int, holidays: list[int]) -> None:
        if _day(first) > _day(last):
            raise ValueError(f"Expected a first date not after the last, got {first} to {last}")
        self.first: int = first
        self.last: int = last
        for holiday in holidays:
            self._covered(holiday)
        self.holidays: frozenset[int] = frozenset(holidays)

    def is_business_day(self, date: int) -> bool:
        """Whether the market is open on ``date``. Raises DateOutside."""
        return self._is_open(self._covered(date))

    def add_business_days(self, date: int, n: int) -> int:
        """The settlement date T+``n`` of a trade on ``date``: the n-th business day after it.

        A ``date`` that is no business day (a market round the clock) counts as the next one first, so T+0 is always a
        business day. Raises DateOutside when the answer, or a day on the way to it, is not covered, and ValueError for
        a negative ``n``.
        """
        if n < 0:
            raise ValueError(f"Expected a number of business days not below 0, got {n}")
        day = self._covered(date)
        while not self._is_open(day):
            day = self._step(day, 1)
        for _ in range(n):
            day = self._step(day, 1)
            while not self._is_open(day):
                day = self._step(day, 1)
        return _number(day)

    def next_business_day(self, date: int) -> int:
        """The first business day after ``date``. Raises DateOutside."""
        return self._neighbour(date, 1)

    def previous_business_day(self, date: int) -> int:
        """The last business day before ``date``. Raises DateOutside."""
        return self._neighbour(date, -1)

    def _neighbour(self, date: int, direction: int) -> int:
        day = self._step(self._covered(date), direction)
        while not self._is_open(day):
            day = self._step(day, direction)
        return _number(day)

    def _covered(self, date: int) -> datetime.date:
        day = _day(date)
        if date < self.first or date > self.last:
            raise DateOutside(f"Expected a date from {self.first} to {self.last}, got {date}")
        return day

    def _step(self, day: datetime.date, days: int) -> datetime.date:
        # Compared as numbers before stepping: beyond 9999-12-31 and before 0001-01-01 there is no date to step to.
        if _number(day) == (self.last if days > 0 else self.first):
            raise DateOutside(f"Expected a date from {self.first} to {self.last}, got one beyond {_number(day)}")
        return day + datetime.timedelta(days=days)

    def _is_open(self, day: datetime.date) -> bool:
        if day.weekday() >= 5:
            return False
        if (day.month == 12 and day.day == 31) or (day.month == 1 and day.day <= 3):
            return False
        return _number(day) not in self.holidays
