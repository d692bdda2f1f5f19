"""Session times: which of the exchange's own commands are due, by calendar, configuration and what the log says.

It keeps no state of its own. It is a fold over events like everything else, so after a crash in the middle of a day
it knows which phases the books have been through; those that were missed come next, in their order, each auction
included: a book cannot reach Break but through OpeningAuction. A day that was not begun before its last session time
had passed is left out whole, with a word in the log of the process.

A random end of a call is drawn here, once for each call of each book, and travels in the command, so that the log says
how late it was; who restarts the exchange draws again. Quotes (market-rules 6) say themselves when they are due.

A call that a rule has opened (after a halt, or where the volatility band was left) says itself when it is due to end.
Until then the book's session times wait; behind its auction the book goes on where it would be by now.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Final, NamedTuple

from engine.calendar import Calendar, DateOutside
from engine.commands import ExchangeCommand, RenewQuote, SetPhase, StartDay
from engine.events import (
    DayStarted,
    Event,
    InstrumentListed,
    InstrumentSetAside,
    PhaseChanged,
    PhaseTimed,
    QuoteChanged,
    TradingStateChanged,
)
from engine.profiles import AUCTION, PROFILES, TRADE, PhaseRules
from engine.types import Phase
from gateway import config as settings
from gateway.clock import SECOND_NS, Draw, draw

logger = logging.getLogger("dojima.schedule")

_EPOCH: Final = date(1970, 1, 1)


class Step(NamedTuple):
    """A book enters ``phase`` at ``at`` seconds after local midnight."""

    at: int
    phase: Phase


class _Book:
    """Where one instrument stands in its day."""

    __slots__ = (
        "before", "call_given", "call_ns", "delays", "done", "given", "phase", "phases", "quote_ns", "steps",
        "suspended", "today",
    )  # fmt: skip

    def __init__(self, steps: Sequence[Step], phases: Mapping[Phase, PhaseRules]) -> None:
        self.steps = steps
        self.delays: dict[int, int] = {}  #: milliseconds of random end, by step of today, as far as drawn
        self.quote_ns = 0  #: when its quote is due to be renewed; 0: there is none, or it was asked for
        self.phases = phases
        self.suspended = False
        self.call_ns = 0  #: when a call that a rule has opened is due to end; 0: there is none
        self.call_given = False  #: its end was asked for
        self.before = Phase.CLOSED  #: where that call came from
        self.done = 0  #: how many of today's steps were taken
        self.given = 0  #: how many were asked for; more than ``done`` while under way, or when the engine refused one
        self.today = False  #: it takes part in the day that was started
        self.phase = Phase.CLOSED

    @property
    def open_steps(self) -> bool:
        return self.today and self.next < len(self.steps)

    @property
    def next(self) -> int:
        return max(self.done, self.given)

    @property
    def in_call(self) -> bool:
        """In a call that a rule has opened, its auction included."""
        return self.call_ns > 0

    def call_due(self, now_ns: int) -> Phase | None:
        """The phase that such a call has to go on to now. Behind its auction session times hold again."""
        if self.phase != Phase.CALL:
            self.call_ns = 0
            if self.phases[self.before].matching == TRADE:
                return self.before
            following = self.phases[self.phase].following
            while self.open_steps and self.steps[self.next].phase not in following:
                self.given = self.next + 1
        elif not self.suspended and not self.call_given and self.call_ns <= now_ns:
            self.call_given = True
            return Phase.CALL_AUCTION
        return None


class Schedule:
    """Asked "what is due?" whenever time has passed; told every event.

    ``calendar`` says on which dates the market opens; ``offset`` is the local time's distance from UTC in seconds.
    """

    def __init__(
        self,
        sessions: Mapping[str, Sequence[Step]],
        calendar: Calendar,
        *,
        day_start: int = 0,
        offset: int = 9 * 3600,
        open_days: int = 0,
        days: int = 0,
        random_end_ms: Mapping[str, int] | None = None,
        draw: Draw = draw,
    ) -> None:
        """``random_end_ms`` is the longest delay of an auction by profile; ``draw(n)`` gives one of 0 to n - 1."""
        self._sessions = sessions
        self._random_end_ms = random_end_ms or {}
        self._draw = draw
        self._calendar = calendar
        self._day_start = day_start
        self._offset = offset
        self._open_days = open_days
        self._days = days
        self._books: dict[str, _Book] = {}
        self._random: dict[str, int] = {}  # the longest random end of each book's calls
        self.trading_date = 0  #: YYYYMMDD of the day last started; 0: none yet
        self.days_started = 0
        self._skipped = 0  # the last date that was left out
        self._exhausted = False  # the calendar ends here; said once
        self._asked = 0  # the date last given to start; the engine may have refused it

    @staticmethod
    def from_config(section: settings.Schedule, calendar: Calendar, draw: Draw = draw) -> Schedule:
        return Schedule(
            {
                profile: [Step(settings.seconds_of_day(at), settings.phase_of(label)) for at, label in steps]
                for profile, steps in section.sessions.items()
            },
            calendar,
            day_start=settings.seconds_of_day(section.day_start),
            offset=settings.offset_seconds(section.utc_offset),
            open_days=section.open_days,
            days=section.days,
            random_end_ms=section.random_end_ms,
            draw=draw,
        )

    # --- what happened ---------------------------------------------------------------------------------------------

    def fold(self, events: Iterable[Event]) -> None:
        """Take in what one command led to. Every command's events, in order, replayed ones too."""
        for event in events:
            kind = type(event)
            if kind is PhaseChanged:
                assert isinstance(event, PhaseChanged)
                book = self._books[event.instrument]
                book.phase = event.phase
                if event.phase == Phase.CALL and event.before != Phase.CALL_AUCTION:
                    book.before = event.before
                elif event.phase not in (Phase.CALL, Phase.CALL_AUCTION):
                    book.call_ns = 0
                if event.before == Phase.CALL_AUCTION and event.phase == book.before:
                    continue  # back where the call came from: no step of the day
                for index in range(book.done, len(book.steps)):
                    if book.steps[index].phase == event.phase:
                        book.done = index + 1
                        break
            elif kind is InstrumentListed:
                assert isinstance(event, InstrumentListed)
                phases = PROFILES[event.profile].phases
                self._books[event.instrument] = _Book(self._sessions.get(event.profile, ()), phases)
                self._random[event.instrument] = self._random_end_ms.get(event.profile, 0)
            elif kind is PhaseTimed:
                assert isinstance(event, PhaseTimed)
                if event.phase == Phase.CALL:
                    self._call_timed(self._books[event.instrument], event.until_ns)
            elif kind is QuoteChanged:
                assert isinstance(event, QuoteChanged)
                self._books[event.instrument].quote_ns = event.due_ns
            elif kind is InstrumentSetAside:
                assert isinstance(event, InstrumentSetAside)
                # It takes no phase until an operator brings it back; the next day does not wait for it.
                self._books[event.instrument].call_ns = self._books[event.instrument].quote_ns = 0
            elif kind is TradingStateChanged:
                assert isinstance(event, TradingStateChanged)
                self._books[event.instrument].suspended = event.suspended
            elif kind is DayStarted:
                assert isinstance(event, DayStarted)
                self.trading_date = event.date
                self.days_started += 1
                for book in self._books.values():
                    book.done = book.given = 0
                    book.delays = {}
                    book.today = not self._open_days or self.days_started <= self._open_days

    # --- what comes next -------------------------------------------------------------------------------------------

    def due(self, now_ns: int) -> list[ExchangeCommand]:
        """The commands to give now, in order; ask again until there are none.

        Commands given are counted as taken, so one that the engine refuses is not given again.
        """
        quotes: list[ExchangeCommand] = []
        for code, book in self._books.items():
            if 0 < book.quote_ns <= now_ns:
                book.quote_ns = 0
                quotes.append(RenewQuote(code))
        if quotes:
            return quotes
        calls: list[ExchangeCommand] = []
        for code, book in self._books.items():
            phase = book.call_due(now_ns) if book.in_call else None
            if phase is not None:
                calls.append(SetPhase(code, phase))
        if calls:
            return calls
        commands: list[tuple[int, int, ExchangeCommand]] = []
        for code, book in self._books.items():
            if not book.open_steps or book.in_call:
                continue
            step = book.steps[book.next]
            # One step of each book at a time: all books' opening auctions come before any book's Break.
            at_ns = self._step_ns(code, book)
            if at_ns <= now_ns:
                delay_ms = book.delays.get(book.next, 0)
                commands.append((at_ns, book.next, SetPhase(code, step.phase, self._end_ns(book), delay_ms)))
        if commands:
            first = min(command[:2] for command in commands)
            chosen = [command for at, index, command in commands if (at, index) == first]
            for command in chosen:
                assert isinstance(command, SetPhase)
                book = self._books[command.instrument]
                book.given = book.next + 1
            return chosen
        if any(book.open_steps or book.in_call for book in self._books.values()):
            return []
        next_date = self._next_date(now_ns)
        if next_date and self._time_ns(next_date, self._day_start) <= now_ns:
            self._asked = next_date
            return [StartDay(next_date)]
        return []

    def next_ns(self, now_ns: int) -> int | None:
        """When something is due next, in market time; None when nothing ever will be."""
        times = [
            self._step_ns(code, book) for code, book in self._books.items() if book.open_steps and not book.in_call
        ]
        times += [book.quote_ns for book in self._books.values() if book.quote_ns]
        times += [
            book.call_ns for book in self._books.values() if book.in_call and not book.suspended and not book.call_given
        ]
        if times:
            return min(times)
        next_date = self._next_date(now_ns)
        return self._time_ns(next_date, self._day_start) if next_date else None

    def _step_ns(self, code: str, book: _Book) -> int:
        """When the next step of a book is due: at its time, an auction later by its random end."""
        step = book.steps[book.next]
        longest = self._random[code]
        if longest and book.next not in book.delays and book.phases[step.phase].matching == AUCTION:
            book.delays[book.next] = self._draw(longest + 1)
        return self._time_ns(self.trading_date, step.at) + book.delays.get(book.next, 0) * 1_000_000

    def _call_timed(self, book: _Book, until_ns: int) -> None:
        """A call says when it ends: by the day's next step, or by itself."""
        by_the_day = book.open_steps and until_ns == self._time_ns(self.trading_date, book.steps[book.next].at)
        book.call_ns = 0 if by_the_day else until_ns
        book.call_given = False

    def _end_ns(self, book: _Book) -> int:
        """When the phase that a book is about to enter is due to end, at the earliest; 0: not said, or an instant."""
        step = book.steps[book.next]
        if book.next + 1 == len(book.steps) or book.steps[book.next + 1].at <= step.at:
            return 0
        return self._time_ns(self.trading_date, book.steps[book.next + 1].at)

    @property
    def idle(self) -> bool:
        """Nothing can trade or be entered: every book is closed."""
        return all(book.phase == Phase.CLOSED for book in self._books.values())

    @property
    def ended(self) -> bool:
        """All the days that were asked for have passed."""
        return (
            self._days > 0
            and self.days_started >= self._days
            and not any(book.open_steps for book in self._books.values())
        )

    def _next_date(self, now_ns: int) -> int:
        """The next day to start: today if it is still worth it, else the business day after. 0: no more."""
        if self._days and self.days_started >= self._days:
            return 0
        moment = datetime.fromtimestamp(now_ns // SECOND_NS, UTC) + timedelta(seconds=self._offset)
        today = moment.year * 10_000 + moment.month * 100 + moment.day
        try:
            return self._date_after(today, now_ns)
        except DateOutside as error:
            if not self._exhausted:
                logger.error("no further trading day: %s; send a newer calendar", error)
            self._exhausted = True
            return 0

    def _date_after(self, today: int, now_ns: int) -> int:
        if today > max(self.trading_date, self._asked) and self._calendar.is_business_day(today):
            # With no session in the configuration (or no instrument) a day is only a date, and never too late.
            last = max((book.steps[-1].at for book in self._books.values() if book.steps), default=None)
            if last is None or now_ns < self._time_ns(today, last):
                return today
            if today > self._skipped:
                logger.warning("trading day %d was not begun in time and is left out", today)
                self._skipped = today
        return self._calendar.next_business_day(max(today, self.trading_date))

    def _time_ns(self, number: int, seconds: int) -> int:
        """Market time of local second ``seconds`` of the date YYYYMMDD."""
        days = (date(number // 10_000, number // 100 % 100, number % 100) - _EPOCH).days
        return (days * 86_400 + seconds - self._offset) * SECOND_NS
