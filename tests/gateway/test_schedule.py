"""Phases come at their times, in their order, whatever happened to the process in between."""

from __future__ import annotations

import asyncio
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.commands import (
    Command,
    ExchangeCommand,
    ListInstrument,
    NewOrder,
    RenewQuote,
    ResumeInstrument,
    SetPhase,
    StartDay,
    SuspendInstrument,
)
from engine.core import Engine
from engine.events import AuctionUncrossed, Event, InstrumentListed
from engine.log import MemoryStorage
from engine.types import OrderType, Phase, Side
from gateway import config as settings
from gateway.bus.memory import MemoryBus
from gateway.clock import AcceleratedClock, SystemClock
from gateway.exchange import Exchange, open_log
from gateway.holidays import business_calendar, load_calendar
from gateway.schedule import Schedule, Step

CALENDAR = load_calendar()


def ns(text: str) -> int:
    return int(datetime.fromisoformat(f"{text}+09:00").timestamp()) * 1_000_000_000


class Day:
    """A schedule driving an engine directly."""

    def __init__(self, *instruments: ListInstrument, text: str = "", engine: Engine | None = None) -> None:
        config = settings.parse(text)
        self.schedule = Schedule.from_config(config.schedule, business_calendar(CALENDAR))
        self.engine = engine or Engine()
        self.auctions: list[tuple[str, Phase]] = []
        self.give(CALENDAR, *instruments)

    def give(self, *commands: ExchangeCommand) -> None:
        for command in commands:
            events = self.engine.apply(command, "", self.engine.time_ns + 1)
            self.schedule.fold(events)
            self.auctions += [(e.instrument, e.phase) for e in events if isinstance(e, AuctionUncrossed)]

    def at(self, text: str) -> list[ExchangeCommand]:
        """Everything given when the clock shows ``text``, but for when phases are due to end."""
        given: list[ExchangeCommand] = []
        while due := self.schedule.due(ns(text)):
            given += [msgspec.structs.replace(c, until_ns=0) if isinstance(c, SetPhase) else c for c in due]
            self.give(*due)
            assert len(given) < 100
        return given

    def phase(self, code: str = "A") -> Phase:
        return self.engine.instrument(code).phase


A = ListInstrument("A", reference_price=100)
B = ListInstrument("B", reference_price=100)
C = ListInstrument("C", profile="CONTINUOUS")


def test_a_start_day_runs_by_the_clock():
    day = Day(A)
    assert day.at("2026-11-24T08:59:59") == [StartDay(20261124)]
    assert day.at("2026-11-24T09:00:00") == [SetPhase("A", Phase.PRE_OPEN)]
    assert day.at("2026-11-24T11:28:59") == []
    assert day.at("2026-11-24T11:29:00") == [SetPhase("A", Phase.PRE_OPEN_NCP)]
    assert day.at("2026-11-24T11:30:00") == [SetPhase("A", Phase.OPENING_AUCTION), SetPhase("A", Phase.BREAK)]
    assert day.at("2026-11-24T12:30:00") == [SetPhase("A", Phase.PRE_CLOSE)]
    assert day.at("2026-11-24T14:59:00") == [SetPhase("A", Phase.PRE_CLOSE_NCP)]
    assert day.at("2026-11-24T15:00:00") == [SetPhase("A", Phase.CLOSING_AUCTION), SetPhase("A", Phase.CLOSED)]
    assert day.at("2026-11-24T23:59:59") == []
    assert day.at("2026-11-25T00:00:00") == [StartDay(20261125)]


def test_next_is_the_time_of_what_comes_next():
    day = Day(A)
    day.at("2026-11-24T08:00:00")
    assert day.schedule.next_ns(ns("2026-11-24T08:00:00")) == ns("2026-11-24T09:00:00")
    day.at("2026-11-24T15:00:00")
    assert day.schedule.next_ns(ns("2026-11-24T15:00:00")) == ns("2026-11-25T00:00:00")


def test_all_books_hold_the_opening_auction_before_any_goes_on():
    day = Day(A, B)
    day.at("2026-11-24T11:29:30")
    assert day.at("2026-11-24T11:30:00") == [
        SetPhase("A", Phase.OPENING_AUCTION),
        SetPhase("B", Phase.OPENING_AUCTION),
        SetPhase("A", Phase.BREAK),
        SetPhase("B", Phase.BREAK),
    ]


@pytest.mark.parametrize(
    ("crash", "resume", "auctions", "phase"),
    [
        ("10:00:00", "10:01:00", [], Phase.PRE_OPEN),
        ("10:00:00", "12:00:00", [Phase.OPENING_AUCTION], Phase.BREAK),
        ("11:29:30", "14:59:30", [Phase.OPENING_AUCTION], Phase.PRE_CLOSE_NCP),
        ("08:00:00", "23:00:00", [Phase.OPENING_AUCTION, Phase.CLOSING_AUCTION], Phase.CLOSED),
        ("12:00:00", "16:00:00", [Phase.OPENING_AUCTION, Phase.CLOSING_AUCTION], Phase.CLOSED),
    ],
)
def test_after_a_crash_missed_phases_come_in_order_and_no_auction_is_skipped(
    crash: str, resume: str, auctions: list[Phase], phase: Phase
):
    day = Day(A)
    log: list[ExchangeCommand] = day.at(f"2026-11-24T{crash}")
    again = Day(A)
    again.give(*log)  # the replay
    again.at(f"2026-11-24T{resume}")
    assert [which for _, which in again.auctions] == auctions
    assert again.phase() == phase


def test_a_day_left_open_over_night_is_finished_before_the_next_begins():
    day = Day(A)
    day.at("2026-11-24T12:00:00")
    given = day.at("2026-11-25T09:30:00")
    assert [c.phase for c in given if isinstance(c, SetPhase)] == [
        Phase.PRE_CLOSE, Phase.PRE_CLOSE_NCP, Phase.CLOSING_AUCTION, Phase.CLOSED, Phase.PRE_OPEN,
    ]  # fmt: skip
    assert given[4] == StartDay(20261125)


def test_a_day_whose_sessions_are_over_is_not_begun(caplog: pytest.LogCaptureFixture):
    day = Day(A)
    assert day.at("2026-11-24T18:00:00") == []
    assert "20261124 was not begun in time" in caplog.text
    assert day.schedule.next_ns(ns("2026-11-24T18:00:00")) == ns("2026-11-25T00:00:00")


# --- calls that a rule has opened ------------------------------------------------------------------------------------

REOPENS = {"reopen_call_seconds": 300}


class Halted(Day):
    """A day whose engine's stamps follow the clock, so that calls end by it."""

    def give_at(self, text: str, *commands: Command, member: str = "") -> list[Event]:
        events: list[Event] = []
        for command in commands:
            events += self.engine.apply(command, member, max(ns(text), self.engine.time_ns + 1))
        self.schedule.fold(events)
        return events


def test_a_phase_is_announced_with_the_time_of_the_next():
    day = Day(A)
    day.at("2026-11-24T09:00:00")
    assert day.schedule.due(ns("2026-11-24T11:29:00")) == [
        SetPhase("A", Phase.PRE_OPEN_NCP, ns("2026-11-24T11:30:00")),
    ]


def test_a_call_that_is_set_aside_is_asked_for_once_and_the_next_day_starts_without_it():
    day = Halted(A, ListInstrument("C", "CONTINUOUS", rules=REOPENS))
    day.at("2026-11-24T09:00:00")
    order = NewOrder("o", "C", Side.BUY, 10, 100)
    day.give_at("2026-11-24T09:20:00", order, member="alfa")
    day.give_at("2026-11-24T09:30:00", SuspendInstrument("C"), ResumeInstrument("C"))
    day.engine._orders.open[1] -= 1  # the row no longer says what its level says

    assert day.at("2026-11-24T09:36:00") == [SetPhase("C", Phase.CALL_AUCTION)]
    assert day.engine.instrument("C").set_aside
    assert StartDay(20261125) in day.at("2026-11-25T00:00:00")
    assert day.engine.date == 20261125
    assert day.phase("A") == Phase.CLOSED


def test_a_halt_of_zaraba_ends_in_a_call_and_the_clock_ends_the_call():
    day = Halted(ListInstrument("C", "CONTINUOUS", rules=REOPENS))
    day.at("2026-11-24T09:00:00")
    assert day.phase("C") == Phase.CONTINUOUS
    day.give_at("2026-11-24T09:30:00", SuspendInstrument("C"), ResumeInstrument("C"))

    assert day.schedule.next_ns(ns("2026-11-24T09:30:01")) // 10**9 == ns("2026-11-24T09:35:00") // 10**9
    assert day.at("2026-11-24T09:34:59") == []
    assert day.at("2026-11-24T09:35:01") == [SetPhase("C", Phase.CALL_AUCTION), SetPhase("C", Phase.CONTINUOUS)]
    assert day.at("2026-11-24T09:40:00") == []


def test_a_call_of_a_volatile_book_is_ended_by_the_clock_also_after_a_crash():
    rules: dict[str, int | str] = {"volatility_band": 100, "volatility_call_seconds": 60, "self_trade": "none"}
    listed = ListInstrument("C", "CONTINUOUS", reference_price=100, rules=rules)
    day = Halted(listed)
    day.at("2026-11-24T09:00:00")
    day.give_at("2026-11-24T09:30:00", NewOrder("s", "C", Side.SELL, 1, 110), member="alpha")
    day.give_at("2026-11-24T09:30:00", NewOrder("b", "C", Side.BUY, 1, 110), member="beta")
    assert day.phase("C") == Phase.CALL

    assert day.at("2026-11-24T09:30:59") == []
    assert day.at("2026-11-24T09:31:01") == [SetPhase("C", Phase.CALL_AUCTION), SetPhase("C", Phase.CONTINUOUS)]
    assert day.auctions == [("C", Phase.CALL_AUCTION)]


def test_a_halt_before_the_auction_makes_the_book_late_and_it_catches_up():
    day = Halted(msgspec.structs.replace(A, rules=REOPENS))
    day.at("2026-11-24T11:29:00")
    day.give_at("2026-11-24T11:29:30", SuspendInstrument("A"), ResumeInstrument("A"))
    assert day.phase() == Phase.CALL

    assert day.at("2026-11-24T11:30:00") == []
    assert day.at("2026-11-24T11:34:31") == [SetPhase("A", Phase.CALL_AUCTION), SetPhase("A", Phase.BREAK)]
    assert day.at("2026-11-24T12:30:00") == [SetPhase("A", Phase.PRE_CLOSE)]
    day.at("2026-11-24T14:59:00")
    day.give_at("2026-11-24T14:59:30", SuspendInstrument("A"), ResumeInstrument("A"))
    assert day.at("2026-11-24T15:10:00") == [SetPhase("A", Phase.CALL_AUCTION), SetPhase("A", Phase.CLOSED)]
    assert day.at("2026-11-25T09:00:00") == [StartDay(20261125), SetPhase("A", Phase.PRE_OPEN)]


def test_a_call_of_the_day_ends_by_the_day_and_goes_on_if_a_halt_held_it_up():
    text = '[schedule.sessions]\nN_CALLS = [["09:00:00", "Call"], ["09:10:00", "CallAuction"], ["09:11:00", "Call"],'
    text += ' ["10:00:00", "CallAuction"], ["10:00:00", "Closed"]]'
    day = Halted(ListInstrument("N", "N_CALLS", rules=REOPENS), text=text)
    day.at("2026-11-24T09:01:00")
    assert day.phase("N") == Phase.CALL
    day.give_at("2026-11-24T09:02:00", SuspendInstrument("N"), ResumeInstrument("N"))
    assert day.at("2026-11-24T09:09:59") == []  # not cut short
    assert day.at("2026-11-24T09:10:00") == [SetPhase("N", Phase.CALL_AUCTION)]
    day.at("2026-11-24T09:11:00")
    day.give_at("2026-11-24T09:58:00", SuspendInstrument("N"), ResumeInstrument("N"))
    assert day.at("2026-11-24T10:00:01") == []
    assert day.at("2026-11-24T10:03:01") == [SetPhase("N", Phase.CALL_AUCTION), SetPhase("N", Phase.CLOSED)]


def test_a_call_waits_for_a_halt_to_end():
    day = Halted(ListInstrument("C", "CONTINUOUS", rules=REOPENS))
    day.at("2026-11-24T09:00:00")
    day.give_at("2026-11-24T09:30:00", SuspendInstrument("C"), ResumeInstrument("C"), SuspendInstrument("C"))
    assert day.at("2026-11-24T09:40:00") == []

    day.give_at("2026-11-24T09:50:00", ResumeInstrument("C"))
    assert day.at("2026-11-24T09:54:00") == []
    assert day.at("2026-11-24T09:56:00")[0] == SetPhase("C", Phase.CALL_AUCTION)


def test_weekends_and_holidays_have_no_day():
    day = Day(A)
    assert day.at("2026-11-22T10:00:00") == []  # Sunday
    assert day.at("2026-11-23T10:00:00") == []  # Labour Thanksgiving Day
    assert day.at("2026-11-24T00:00:00") == [StartDay(20261124)]
    day.at("2026-11-27T18:00:00")
    assert day.schedule.next_ns(ns("2026-11-27T18:00:00")) == ns("2026-11-30T00:00:00")


def test_a_refused_phase_is_not_asked_for_again():
    day = Day(A)
    day.at("2026-11-24T08:00:00")
    # An operator moves the book on his own.
    day.give(SetPhase("A", Phase.PRE_OPEN), SetPhase("A", Phase.PRE_OPEN_NCP))
    assert day.at("2026-11-24T11:29:30") == []
    assert day.at("2026-11-24T11:30:00")[0] == SetPhase("A", Phase.OPENING_AUCTION)


def test_an_instrument_listed_in_the_middle_of_a_day_opens_on_the_next():
    day = Day(A)
    day.at("2026-11-24T10:00:00")
    day.give(B)
    day.at("2026-11-24T15:00:00")
    assert day.phase("B") == Phase.CLOSED
    day.at("2026-11-25T09:00:00")
    assert day.phase("B") == Phase.PRE_OPEN


def test_days_bounds_how_long_the_market_lives_and_open_days_how_long_it_trades():
    day = Day(A, text="[schedule]\ndays = 3\nopen_days = 1\n")
    day.at("2026-11-24T09:00:00")
    day.at("2026-11-24T15:00:00")
    assert not day.schedule.ended
    assert day.at("2026-11-25T10:00:00") == [StartDay(20261125)]
    assert day.at("2026-11-26T10:00:00") == [StartDay(20261126)]
    assert day.schedule.ended
    assert day.schedule.next_ns(ns("2026-11-26T10:00:00")) is None


def test_beyond_the_calendar_nothing_is_guessed(caplog: pytest.LogCaptureFixture):
    day = Day(A)
    assert day.at("2031-01-06T09:00:00") == []
    assert day.schedule.next_ns(ns("2031-01-06T09:00:00")) is None
    assert "send a newer calendar" in caplog.text


def test_a_round_the_clock_book_rolls_at_midnight():
    day = Day(C)
    day.at("2026-11-24T12:00:00")
    assert day.phase("C") == Phase.CONTINUOUS
    day.at("2026-11-24T23:59:59")
    assert day.at("2026-11-25T00:00:00") == [StartDay(20261125), SetPhase("C", Phase.CONTINUOUS)]


class SleepingClock(AcceleratedClock):
    """Time passes while the schedule sleeps, and only then, so the machine's speed does not show."""

    def __init__(self, factor: int, start_ns: int) -> None:
        super().__init__(factor, start_ns, skip=True)
        self.slept_ns = 0

    def now_ns(self) -> int:
        return self._market + self.slept_ns * self.factor

    async def sleep(self, seconds: float) -> None:
        task = asyncio.current_task()
        assert task is not None
        if task.get_name() == "schedule":
            self.slept_ns += int(seconds * 1e9)
        await asyncio.sleep(0.0001)

    def _jump(self, time_ns: int) -> None:
        self._market, self.slept_ns = time_ns, 0


async def test_an_accelerated_market_lives_its_days_and_skips_its_nights():
    config = settings.parse('[schedule]\ndays = 3\n[[instrument]]\ninstrument = "A"\n')
    clock = SleepingClock(6000, ns("2026-11-24T08:59:00"))
    log = open_log(config, MemoryStorage(), clock)
    said: list[tuple[str, Any]] = []
    exchange = Exchange(
        config,
        log=log,
        clock=clock,
        calendar=CALENDAR,
        reference=settings.listings(config, Path()),
        say=lambda event, **fields: said.append((event, fields)),
    )
    exchange.replay()
    task = asyncio.create_task(exchange.run(MemoryBus()))
    await asyncio.wait_for(exchange.schedule_ended.wait(), 30)
    exchange.stop()
    await task
    log.close()
    assert [fields["date"] for event, fields in said if event == "day"] == [20261124, 20261125, 20261126]
    assert [fields["phase"] for event, fields in said if event == "auction"] == ["OpeningAuction", "ClosingAuction"] * 3
    assert exchange.engine.instrument("A").phase == Phase.CLOSED


def test_an_accelerated_clock_goes_on_from_where_the_log_ended():
    clock = AcceleratedClock(1000, ns("2026-11-24T09:00:00"))
    clock.resume(ns("2026-11-24T14:00:00"))
    assert ns("2026-11-24T14:00:00") <= clock.now_ns() < ns("2026-11-24T15:00:00")
    assert not clock.skip_to(ns("2026-11-25T00:00:00"))
    assert clock.now_ns() < ns("2026-11-24T15:00:00")


def test_the_machines_clock_neither_resumes_nor_skips():
    clock = SystemClock()
    clock.resume(0)
    assert not clock.skip_to(clock.now_ns() + 10**18)
    assert clock.seconds_until(0) == 0


# --- other market models ---------------------------------------------------------------------------------------------


def test_a_hybrid_day_has_two_sessions_and_pre_closing():
    day = Day(ListInstrument("H", profile="TSE_HYBRID", reference_price=500, limit_table="tse"))
    assert day.at("2026-11-24T08:00:00") == [StartDay(20261124), SetPhase("H", Phase.PRE_OPEN)]
    assert day.at("2026-11-24T09:00:00") == [SetPhase("H", Phase.OPENING_AUCTION), SetPhase("H", Phase.CONTINUOUS)]
    assert day.at("2026-11-24T11:30:00") == [SetPhase("H", Phase.CLOSING_AUCTION), SetPhase("H", Phase.BREAK)]
    assert day.at("2026-11-24T12:05:00") == [SetPhase("H", Phase.PRE_OPEN)]
    assert day.at("2026-11-24T12:30:00") == [SetPhase("H", Phase.OPENING_AUCTION), SetPhase("H", Phase.CONTINUOUS)]
    assert day.at("2026-11-24T15:25:00") == [SetPhase("H", Phase.PRE_CLOSE)]
    assert day.at("2026-11-24T15:30:00") == [SetPhase("H", Phase.CLOSING_AUCTION), SetPhase("H", Phase.CLOSED)]
    assert day.phase("H") == Phase.CLOSED
    assert len(day.auctions) == 4


def test_a_quote_is_renewed_when_it_is_due_also_after_a_restart():
    day = Day(ListInstrument("H", profile="TSE_HYBRID", reference_price=500, limit_table="tse"))
    day.at("2026-11-24T09:00:00")
    order = NewOrder("m", "H", Side.BUY, 100, 0, OrderType.MARKET)
    day.schedule.fold(day.engine.apply(order, "alfa", ns("2026-11-24T09:30:00")))
    assert day.schedule.next_ns(ns("2026-11-24T09:30:00")) == ns("2026-11-24T09:33:00")

    assert day.at("2026-11-24T09:32:59") == []
    assert day.schedule.due(ns("2026-11-24T09:33:00")) == [RenewQuote("H")]
    assert day.schedule.due(ns("2026-11-24T09:33:00")) == []
    day.schedule.fold(day.engine.apply(RenewQuote("H"), "", ns("2026-11-24T09:33:00")))
    assert day.engine.instrument("H").quote_price == 520
    assert day.schedule.next_ns(ns("2026-11-24T09:33:00")) == ns("2026-11-24T09:36:00")


def test_a_call_ends_at_random_within_its_bound_once_drawn_and_the_command_says_how_late():
    drawn: list[int] = []

    def draw(bound: int) -> int:
        drawn.append(bound)
        return 7_000

    config = settings.parse("[schedule]\nrandom_end_ms = { N_CALLS = 30000 }")
    day = Day(ListInstrument("N", profile="N_CALLS", reference_price=100))
    day.schedule = Schedule(
        {"N_CALLS": [Step(9 * 3600, Phase.CALL), Step(10 * 3600, Phase.CALL_AUCTION), Step(10 * 3600, Phase.CLOSED)]},
        business_calendar(CALENDAR),
        random_end_ms=config.schedule.random_end_ms,
        draw=draw,
    )
    day.schedule.fold([InstrumentListed("N", "N_CALLS", 1, 0, 100, 2, "embedded")])
    day.at("2026-11-24T09:00:00")

    assert day.at("2026-11-24T10:00:06") == []
    assert day.schedule.next_ns(ns("2026-11-24T10:00:06")) == ns("2026-11-24T10:00:07")
    auction, closed = day.at("2026-11-24T10:00:07")
    assert (auction, closed) == (SetPhase("N", Phase.CALL_AUCTION, delay_ms=7_000), SetPhase("N", Phase.CLOSED))
    assert drawn == [30_001]


def test_n_calls_run_one_after_the_other_by_the_clock():
    day = Day(ListInstrument("N", profile="N_CALLS", reference_price=100))
    day.at("2026-11-24T23:00:00")
    assert day.auctions == []  # the day was not begun in time
    day.at("2026-11-25T09:00:00")
    for at in ("10:30", "12:00", "13:30", "15:00"):
        assert day.phase("N") == Phase.CALL
        day.at(f"2026-11-25T{at}:00")
    assert day.phase("N") == Phase.CLOSED
    assert day.auctions == [("N", Phase.CALL_AUCTION)] * 4


def test_a_non_cancel_period_before_each_of_n_calls_is_the_timetable_s_and_the_instrument_s_to_say():
    text = '[schedule.sessions]\nN_CALLS = [["09:00:00", "Call"], ["09:29:00", "CallNCP"], ["09:30:00", "CallAuction"],'
    text += ' ["09:30:00", "Closed"]]'
    day = Day(ListInstrument("N", "N_CALLS", rules={"call_ncp": 1}), ListInstrument("P", "N_CALLS"), text=text)
    day.at("2026-11-24T09:28:59")
    assert (day.phase("N"), day.phase("P")) == (Phase.CALL, Phase.CALL)
    day.at("2026-11-24T09:29:00")
    assert (day.phase("N"), day.phase("P")) == (Phase.CALL_NCP, Phase.CALL)
    day.at("2026-11-24T09:30:00")
    assert day.auctions == [("N", Phase.CALL_AUCTION), ("P", Phase.CALL_AUCTION)]
    assert (day.phase("N"), day.phase("P")) == (Phase.CLOSED, Phase.CLOSED)
