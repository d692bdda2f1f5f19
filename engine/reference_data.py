"""Reference data: dated tables of ticks, limits and quote widths, the calendar, what a listing must say.

START changed its tick and limit tables on 2024-10-07 with orders resting, so tables are looked up once, when a day
starts, and hold for that day. Everything is checked before the first change.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from engine.calendar import Calendar, DateOutside
from engine.checks import Refusal, check_table, is_date, is_id, not_effective, number, plain
from engine.commands import ListInstrument, SetCalendar, SetLimitTable, SetQuoteTable, SetTickTable
from engine.events import Event, ReferenceDataSet
from engine.market import Instrument
from engine.profiles import NO_TABLE, PROFILES, Rules
from engine.tables import LIMIT_TABLES, SPECIAL_QUOTE_TABLES, TICK_TABLES, LimitTable, TickTable
from engine.types import PRICE_MAX, QUANTITY_MAX, Phase, Reason


class DatedTables:
    """Tables of one kind by name, each version with the first trading day on which it holds.

    A version without a date holds from the next day started. Nothing ever changes within a day.
    """

    def __init__(self, shipped: Mapping[str, list[tuple[int, int]]]) -> None:
        #: Per name: (effective, rows) in the order of arrival; the shipped ones have always been effective.
        self._versions: Final[dict[str, list[tuple[int, list[tuple[int, int]]]]]] = {
            name: [(1, rows)] for name, rows in shipped.items()
        }

    def add(self, name: str, effective: int, rows: list[tuple[int, int]]) -> None:
        self._versions.setdefault(name, []).append((effective, rows))

    def __contains__(self, name: object) -> bool:
        return name in self._versions

    def names(self) -> list[str]:
        return list(self._versions)

    def rows(self, name: str, day: int) -> list[tuple[int, int]] | None:
        """What holds on ``day``: the version effective last, of equal ones the latest arrival. None: nothing yet."""
        current = self._version(name, day)
        return current[1] if current is not None else None

    def _version(self, name: str, day: int) -> tuple[int, list[tuple[int, int]]] | None:
        """What holds on ``day``, with the day since when."""
        found: tuple[int, list[tuple[int, int]]] | None = None
        since = 0
        for effective, rows in self._versions.get(name, []):
            from_day = effective or day
            if since <= from_day <= day:
                found = from_day, rows
                since = from_day
        return found

    def start(self, day: int) -> None:
        """Begin ``day``: what had no date is now dated, and what it replaces is forgotten.

        What holds keeps its date: a version that arrives later and holds from an earlier day does not replace it.
        """
        for name, versions in self._versions.items():
            current = self._version(name, day)
            kept = [version for version in versions if version[0] > day]
            if current is not None:
                kept.insert(0, current)
            self._versions[name] = kept

    def key(self) -> list[object]:
        """All versions, for the digest."""
        return [[name, list(versions)] for name, versions in self._versions.items()]


class DayPlan:
    """What a new day brings to each instrument, in the order of listing; nothing of it is in force yet."""

    def __init__(self) -> None:
        self.settlement_dates: Final[list[int]] = []
        self.ticks: Final[list[TickTable]] = []
        self.limits: Final[list[LimitTable | None]] = []  #: None: no daily limits
        self.widths: Final[list[LimitTable | None]] = []  #: None: no special quotes


class ReferenceData:
    """The tables and the calendar.

    ``set_tick_table``, ``set_limit_table``, ``set_quote_table`` and ``set_calendar`` take one in and say so, or answer
    why not and change nothing.
    """

    def __init__(self) -> None:
        self.tick_tables: Final = DatedTables(TICK_TABLES)
        self.limit_tables: Final = DatedTables(LIMIT_TABLES)
        self.quote_tables: Final = DatedTables(SPECIAL_QUOTE_TABLES)
        self.calendar: Calendar | None = None

    def set_tick_table(self, command: SetTickTable, events: list[Event]) -> Refusal | None:
        rows = [(row.start, row.tick) for row in command.rows]
        refusal = check_table(command.table, command.effective, rows)
        if refusal is not None:
            return refusal
        try:
            TickTable(rows)
        except ValueError as error:
            return Refusal(Reason.BAD_REFERENCE_DATA, str(error))
        self.tick_tables.add(command.table, command.effective, rows)
        events.append(ReferenceDataSet("tick_table", command.table, command.effective))
        return None

    def set_limit_table(self, command: SetLimitTable, events: list[Event]) -> Refusal | None:
        return self._set_widths("limit_table", self.limit_tables, command, events)

    def set_quote_table(self, command: SetQuoteTable, events: list[Event]) -> Refusal | None:
        return self._set_widths("quote_table", self.quote_tables, command, events)

    def _set_widths(
        self, kind: str, tables: DatedTables, command: SetLimitTable | SetQuoteTable, events: list[Event]
    ) -> Refusal | None:
        name = command.table
        rows = [(row.below, row.width) for row in command.rows]
        refusal = check_table(name, command.effective, rows)
        if refusal is not None:
            return refusal
        if name == NO_TABLE:
            text = f"Expected a table name other than {NO_TABLE!r}, which means no table - at `$.table`"
            return Refusal(Reason.BAD_REFERENCE_DATA, text)
        try:
            LimitTable(rows)
        except ValueError as error:
            return Refusal(Reason.BAD_REFERENCE_DATA, str(error))
        tables.add(name, command.effective, rows)
        events.append(ReferenceDataSet(kind, name, command.effective))
        return None

    def set_calendar(self, command: SetCalendar, events: list[Event]) -> Refusal | None:
        for date in (command.first, command.last, *command.holidays):
            if not is_date(date):
                text = f"Expected dates as YYYYMMDD, got {number(date)} - at `$`"
                return Refusal(Reason.BAD_REFERENCE_DATA, text)
        try:
            self.calendar = Calendar(command.first, command.last, command.holidays)
        except ValueError as error:
            return Refusal(Reason.BAD_REFERENCE_DATA, str(error))
        events.append(ReferenceDataSet("calendar", "", command.first))
        return None

    def wrong_in_listing(self, command: ListInstrument) -> str:
        """What is wrong with a listing's fields; "" if nothing is."""
        if command.profile not in PROFILES:
            return f"Expected a profile of {', '.join(PROFILES)}, got {plain(command.profile)} - at `$.profile`"
        if not 0 <= command.reference_price <= PRICE_MAX:
            price = number(command.reference_price)
            return f"Expected a price from 0 to {PRICE_MAX}, got {price} - at `$.reference_price`"
        if not 1 <= command.lot <= QUANTITY_MAX:
            return f"Expected a lot from 1 to {QUANTITY_MAX}, got {number(command.lot)} - at `$.lot`"
        if not 0 <= command.price_decimals <= 8:
            return f"Expected 0 to 8 decimals, got {number(command.price_decimals)} - at `$.price_decimals`"
        unit = 10**command.price_decimals
        if command.lot % unit:
            return (
                f"Expected a lot that is worth whole yen at the smallest price, a multiple of {unit}, got {command.lot}"
                " - at `$.lot`"
            )
        if command.tick_table not in self.tick_tables:
            known = ", ".join(self.tick_tables.names())
            return f"Expected a tick table of {known}, got {plain(command.tick_table)} - at `$.tick_table`"
        if command.limit_table != NO_TABLE and command.limit_table not in self.limit_tables:
            known = ", ".join([NO_TABLE, *self.limit_tables.names()])
            return f"Expected a limit table of {known}, got {plain(command.limit_table)} - at `$.limit_table`"
        if not 0 <= command.settlement_days <= 30:
            return f"Expected 0 to 30 days, got {number(command.settlement_days)} - at `$.settlement_days`"
        if not is_id(command.ledger):
            return f"Expected a ledger name of printable characters, got {plain(command.ledger)} - at `$.ledger`"
        if not 0 <= command.units_outstanding <= QUANTITY_MAX:
            units = number(command.units_outstanding)
            return f"Expected units from 0 to {QUANTITY_MAX}, got {units} - at `$.units_outstanding`"
        return ""

    def wrong_in_rules(self, rules: Rules) -> str:
        """What is wrong with the names of tables in an instrument's parameters; "" if nothing is."""
        if rules.quote_table != NO_TABLE and rules.quote_table not in self.quote_tables:
            known = ", ".join([NO_TABLE, *self.quote_tables.names()])
            return f"Expected a quote table of {known}, got {plain(rules.quote_table)} - at `$.rules.quote_width_table`"
        return ""

    def plan(self, date: int, today: int, instruments: list[Instrument], plan: DayPlan) -> Refusal | None:
        """Fill in ``plan`` for trading day ``date``, which follows ``today``, or say why that day cannot begin."""
        if not is_date(date):
            return Refusal(
                Reason.DATE_OUTSIDE_CALENDAR, f"Expected a date as YYYYMMDD, got {number(date)} - at `$.date`"
            )
        if date <= today:
            text = f"Expected a date after {today}, the present day, got {date} - at `$.date`"
            return Refusal(Reason.BAD_TRANSITION, text)
        for instrument in instruments:
            if instrument.phase != Phase.CLOSED and not instrument.set_aside:
                text = f"Expected every book to be Closed, got {instrument.code} in {instrument.phase.label}"
                return Refusal(Reason.BAD_TRANSITION, text)
        try:
            if self.calendar is not None and not self.calendar.is_business_day(date):
                text = f"Expected a business day, got {date} - at `$.date`"
                return Refusal(Reason.DATE_OUTSIDE_CALENDAR, text)
            for instrument in instruments:
                plan.settlement_dates.append(
                    self.calendar.add_business_days(date, instrument.settlement_days) if self.calendar else 0
                )
        except DateOutside as error:
            text = f"{error}: send a calendar that covers the day and its settlement - at `$.date`"
            return Refusal(Reason.DATE_OUTSIDE_CALENDAR, text)
        for instrument in instruments:
            tick_rows = self.tick_tables.rows(instrument.tick_table, date)
            if tick_rows is None:
                return not_effective(instrument, "tick", instrument.tick_table, date)
            plan.ticks.append(TickTable(tick_rows))
            for tables, kind, name, found in (
                (self.limit_tables, "limit", instrument.limit_table, plan.limits),
                (self.quote_tables, "quote", instrument.rules.quote_table, plan.widths),
            ):
                rows = tables.rows(name, date) if name != NO_TABLE else None
                if rows is None and name != NO_TABLE:
                    return not_effective(instrument, kind, name, date)
                found.append(LimitTable(rows) if rows is not None else None)
        return None

    def start(self, date: int) -> None:
        """Begin ``date``: what had no date holds from now on."""
        self.tick_tables.start(date)
        self.limit_tables.start(date)
        self.quote_tables.start(date)

    def key(self) -> list[object]:
        """All of it, for the digest."""
        return [self.tick_tables.key(), self.limit_tables.key(), self.quote_tables.key()]
