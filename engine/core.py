"""The engine: a pure function of a numbered sequence of commands.

``Engine.apply`` takes one command and returns what follows from it. It reads no clock, draws no random number, opens no
file and depends on no hash order, so the same commands give the same events on any machine, and anybody who doubts a
trade can run the log again. What the market declines is answered by ``Rejected`` and changes nothing: every check comes
before the first change. Only a value that is no command at all raises.

How a command goes: who sent it and under which id (*identities*), may it be done (*checks*, in a fixed order, the
first that fails is named), do it (*changes*), say what happened (*events*). The order of checks is market-rules 7:
instrument, day, phase, halt; then what is offered; then quantity and lot; then price, tick, daily limits, value.

State: one ``OrderTable`` for all books, one ``Instrument`` per book, one ``_Member`` per firm. Every id that a member
ever used is remembered with a fingerprint of what was asked and with the outcome, so that asking again is harmless for
the life of the log. An accepted order or cancel costs two integers there; the answer is rebuilt from the order's row.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import Final
from zlib import adler32, crc32

import msgspec

from engine.calendar import Calendar, DateOutside
from engine.commands import (
    PARTICIPANT_PATTERN,
    AmendOrder,
    CancelOrder,
    Command,
    ListInstrument,
    MassCancel,
    MemberCommand,
    NewOrder,
    ResumeInstrument,
    SetCalendar,
    SetLimitTable,
    SetPhase,
    SetReferencePrice,
    SetTickTable,
    StartDay,
    SuspendInstrument,
)
from engine.events import (
    Accepted,
    Activated,
    Amended,
    AuctionUncrossed,
    Cancelled,
    DayLimitsSet,
    DayStarted,
    Event,
    InstrumentListed,
    MassCancelled,
    PhaseChanged,
    ReferenceDataSet,
    ReferencePriceSet,
    Rejected,
    Traded,
    TradingStateChanged,
)
from engine.faults import InvariantBroken
from engine.market import DatedTables, DeferredMassCancel, Instrument, InstrumentView, OrderView
from engine.matching import continuous
from engine.matching.book import (
    BUY,
    GONE,
    GONE_WAITING,
    IN_BOOK,
    SELL,
    WAITING,
    Book,
    OrderTable,
    ReferenceBook,
    pack_terms,
)
from engine.matching.itayose import SIMULTANEOUS_RR, Equilibrium, allocate, equilibrium, pair
from engine.profiles import (
    AUCTION,
    IMMEDIATE,
    MARKET,
    OVERNIGHT,
    PROFILES,
    REPLACE_CANCEL_LIVE,
    REPLACE_KEEP,
    TRADE,
    Rules,
)
from engine.tables import LIMIT_TABLES, TICK_TABLES, LimitTable, TickTable
from engine.types import (
    PRICE_MAX,
    QUANTITY_MAX,
    VALUE_MAX,
    CancelReason,
    OrderType,
    Phase,
    Reason,
    SelfTrade,
    Side,
    TimeInForce,
)

_IS_PARTICIPANT: Final = re.compile(PARTICIPANT_PATTERN.strip("^$")).fullmatch
_IS_ID: Final = re.compile(r"[!-~]{1,36}").fullmatch
_IS_ACCOUNT: Final = re.compile(r"[!-~]{0,32}").fullmatch
_IS_CODE: Final = re.compile(r"[A-Z0-9-]{1,12}").fullmatch

#: A limit table of this name is none: the instrument has no daily limits.
NO_LIMITS: Final = "none"

#: The digest hashes rows and records by blocks of this many. Part of its definition: changing it changes every digest.
_BLOCK: Final = 4096

# What is remembered about an id: in the low bits what became of it, above them an index.
_ORDER: Final = 0  #: an order was accepted: its number
_WAITING_ORDER: Final = 1  #: the same, outside the book at first
_CANCEL: Final = 2  #: an order was cancelled: its number
_EVENT: Final = 3  #: any other answer: its place among the kept events


class _Refusal:
    """Why a command is declined, before it becomes an event."""

    def __init__(self, reason: Reason, text: str) -> None:
        self.reason: Final = reason
        self.text: Final = text


class _Member:
    """One firm, known from its first well-formed command on."""

    def __init__(self, index: int, name: str) -> None:
        self.index: Final = index
        self.name: Final = name
        self.records: Final[dict[str, int]] = {}  #: client_order_id or request_id to its record


_encode = msgspec.msgpack.Encoder().encode


def _fingerprint(command: MemberCommand) -> int:
    """63 bits over all fields of a command: two commands under one id are the same when these are.

    Not Python's ``hash``, which differs between runs. Values far beyond the wire's bounds, which only a caller of the
    library can send, have no encoding; they are spelled out instead, to be refused like any other.
    """
    try:
        content = _encode(command)
    except (OverflowError, ValueError):
        values = [getattr(command, field) for field in command.__struct_fields__]
        spelled = [format(value, "x") if isinstance(value, int) else ascii(value) for value in values]
        content = " ".join([type(command).__name__, *spelled]).encode()
    return crc32(content) << 31 ^ adler32(content)


def _is_date(date: int) -> bool:
    if not 0 < date <= 99991231:
        return False
    try:
        Calendar(date, date, [])  # the calendar knows which dates exist
    except DateOutside:
        return False
    return True


def _number(value: int) -> str:
    """An integer for a message. Python refuses to print those of many thousand digits, and nobody would read them."""
    return str(value) if value.bit_length() <= 64 else f"a number of {value.bit_length()} bits"


def _plain(text: str) -> str:
    """A member's malformed text, safe to print and to encode."""
    shown = ascii(text)
    return shown if len(shown) <= 60 else shown[:57] + "..."


class Engine:
    """A market. Feed it commands, read the events; ask it anything in between.

    ``apply`` is the only way to change it. Queries raise ``KeyError`` for an instrument or order that does not exist.
    """

    def __init__(self) -> None:
        self.sequence: int = 0  #: commands applied, refused ones included
        self.time_ns: int = 0  #: stamp of the last command
        self.date: int = 0  #: trading day, YYYYMMDD; 0 before the first
        self.trades: int = 0  #: number of the last trade
        self._orders: Final = OrderTable()
        self._instruments: Final[list[Instrument]] = []
        self._by_code: Final[dict[str, Instrument]] = {}
        self._members: Final[list[_Member]] = []
        self._by_name: Final[dict[str, _Member]] = {}
        self._fingerprints: Final[list[int]] = []
        self._outcomes: Final[list[int]] = []
        self._kept: Final[list[Event]] = []
        self._tick_tables: Final = DatedTables(TICK_TABLES)
        self._limit_tables: Final = DatedTables(LIMIT_TABLES)
        self._calendar: Calendar | None = None
        # Digests of blocks that can no longer change, by number: a cache, no part of the state.
        self._rows_digests: Final[dict[int, bytes]] = {}
        self._records_digests: Final[dict[int, bytes]] = {}
        self._kept_digests: Final[dict[int, bytes]] = {}

    # --- commands ----------------------------------------------------------------------------------------------------

    def apply(self, command: Command, participant: str = "", time_ns: int = 0) -> list[Event]:
        """Carry out one command and return what followed, in order.

        ``participant`` is the member that sent it, "" for the exchange; ``time_ns`` its stamp in nanoseconds (UTC).
        Never raises for what a command says. Raises ``TypeError`` for a value that is no command.
        """
        self.sequence += 1
        self.time_ns = time_ns
        events: list[Event] = []
        if isinstance(command, NewOrder):
            member = self._identify(participant, command.client_order_id, command, events)
            if member is not None:
                self._new(command, member, events)
        elif isinstance(command, CancelOrder):
            member = self._identify(participant, command.request_id, command, events)
            if member is not None:
                self._cancel(command, member, events)
        elif isinstance(command, AmendOrder):
            member = self._identify(participant, command.request_id, command, events)
            if member is not None:
                self._amend(command, member, events)
        elif isinstance(command, MassCancel):
            member = self._identify(participant, command.request_id, command, events)
            if member is not None:
                self._mass_cancel(command, member, events)
        else:
            self._exchange(command, participant, events)
        return events

    def _exchange(self, command: Command, participant: str, events: list[Event]) -> None:
        """Commands of the exchange itself."""
        instrument = ""
        refusal: _Refusal | None
        if isinstance(command, SetPhase | SetReferencePrice | SuspendInstrument | ResumeInstrument | ListInstrument):
            instrument = command.instrument if _IS_CODE(command.instrument) else ""
        elif not isinstance(command, SetTickTable | SetLimitTable | SetCalendar | StartDay):
            self.sequence -= 1
            raise TypeError(f"Expected a command of engine.commands, got {type(command).__name__}")
        if participant:
            refusal = _Refusal(
                Reason.NOT_PERMITTED, f"Expected a member's command, got {type(command).__name__}: the exchange's own"
            )
            name = participant if _IS_PARTICIPANT(participant) else ""
            events.append(Rejected(name, "", refusal.reason, refusal.text, instrument))
            return
        if isinstance(command, SetPhase):
            refusal = self._set_phase(command, events)
        elif isinstance(command, StartDay):
            refusal = self._start_day(command, events)
        elif isinstance(command, ListInstrument):
            refusal = self._list(command, events)
        elif isinstance(command, SetTickTable):
            refusal = self._set_tick_table(command, events)
        elif isinstance(command, SetLimitTable):
            refusal = self._set_limit_table(command, events)
        elif isinstance(command, SetCalendar):
            refusal = self._set_calendar(command, events)
        elif isinstance(command, SetReferencePrice):
            refusal = self._set_reference(command, events)
        elif isinstance(command, SuspendInstrument):
            refusal = self._suspend(command.instrument, True, events)
        else:
            refusal = self._suspend(command.instrument, False, events)
        if refusal is not None:
            events.append(Rejected("", "", refusal.reason, refusal.text, instrument))

    # --- identities --------------------------------------------------------------------------------------------------

    def _identify(
        self, participant: str, request_id: str, command: MemberCommand, events: list[Event]
    ) -> _Member | None:
        """The member, if the command is well formed and its id is new. Otherwise None, and the answer is given."""
        member = self._by_name.get(participant)
        if member is None:
            if not _IS_PARTICIPANT(participant):
                text = f"Expected a participant of 1 to 16 characters a-z, 0-9, -, got {_plain(participant)}"
                name = request_id if _IS_ID(request_id) else ""
                events.append(Rejected("", name, Reason.BAD_IDENTITY, text))
                return None
            member = _Member(len(self._members), participant)
            self._members.append(member)
            self._by_name[participant] = member
        record = member.records.get(request_id, -1)
        if record < 0:
            if not _IS_ID(request_id):
                text = f"Expected an id of 1 to 36 printable characters, got {_plain(request_id)}"
                events.append(Rejected(participant, "", Reason.BAD_IDENTITY, text))
                return None
            return member
        if self._fingerprints[record] == _fingerprint(command):
            self._repeat(command, member, self._outcomes[record], events)
        else:
            text = f"Expected a new id, got {request_id}, which was used for another command - at `$[1]`"
            events.append(Rejected(participant, request_id, Reason.DUPLICATE_CLIENT_ORDER_ID, text))
        return None

    def _remember(self, member: _Member, request_id: str, command: MemberCommand, kind: int, index: int) -> None:
        member.records[request_id] = len(self._fingerprints)
        self._fingerprints.append(_fingerprint(command))
        self._outcomes.append(index << 2 | kind)

    def _answer(
        self, member: _Member, request_id: str, command: MemberCommand, event: Event, events: list[Event]
    ) -> None:
        """Say ``event`` and keep it as the outcome of the command."""
        self._remember(member, request_id, command, _EVENT, len(self._kept))
        self._kept.append(event)
        events.append(event)

    def _refuse(
        self,
        member: _Member,
        request_id: str,
        command: MemberCommand,
        refusal: _Refusal,
        instrument: str,
        events: list[Event],
    ) -> None:
        event = Rejected(member.name, request_id, refusal.reason, refusal.text, instrument)
        self._answer(member, request_id, command, event, events)

    def _repeat(self, command: MemberCommand, member: _Member, outcome: int, events: list[Event]) -> None:
        """Answer a command that was answered before, from the record, with no effect."""
        kind = outcome & 3
        index = outcome >> 2
        if kind == _EVENT:
            events.append(msgspec.structs.replace(self._kept[index], repeat=True))
        elif kind == _CANCEL:
            request_id = command.request_id if isinstance(command, CancelOrder) else ""
            events.append(self._cancelled(index, CancelReason.MEMBER, request_id, True))
        else:
            # The content is the same, so the command itself says what was accepted; the row may have been amended.
            assert isinstance(command, NewOrder)
            events.append(self._accepted(command, member, index, kind == _WAITING_ORDER, True))

    # --- new order ---------------------------------------------------------------------------------------------------

    def _new(self, command: NewOrder, member: _Member, events: list[Event]) -> None:
        instrument = self._by_code.get(command.instrument)
        refusal = self._check_new(command, instrument)
        if refusal is not None or instrument is None:
            assert refusal is not None
            code = instrument.code if instrument is not None else ""
            self._refuse(member, command.client_order_id, command, refusal, code, events)
            return
        validity = 1 << command.time_in_force
        rules = instrument.phase_rules
        waiting = rules.waits & validity != 0
        terms = pack_terms(command.side, command.order_type, command.time_in_force, instrument.index, member.index)
        order = self._orders.append(
            terms, command.price, command.quantity, self.sequence, command.client_order_id, command.account
        )
        self._remember(member, command.client_order_id, command, _WAITING_ORDER if waiting else _ORDER, order)
        events.append(self._accepted(command, member, order, waiting, False))
        if validity & ~(OVERNIGHT | IMMEDIATE | 1 << TimeInForce.DAY):
            instrument.bound.append(order)
        if waiting:
            self._orders.state[order] = WAITING
        elif rules.matching == TRADE and not instrument.suspended:
            self._trade(instrument, order, events)
        else:
            instrument.book.add(order)

    def _trade(self, instrument: Instrument, order: int, events: list[Event]) -> None:
        """Zaraba: ``order``, in no queue, trades; what is left rests or goes."""
        table = self._orders
        limit = table.price[order]
        validity = 1 << table.validity(order)
        wanted = table.open[order]
        side = table.side(order)
        if validity & (1 << TimeInForce.FOK) and instrument.book.available(side ^ 1, limit, wanted) < wanted:
            table.state[order] = GONE
            events.append(self._cancelled(order, CancelReason.REMAINDER, "", False))
            return
        fills: list[int] = []
        left = continuous.place(table, instrument.book, order, validity & IMMEDIATE == 0, fills)
        open_then = wanted
        for i in range(0, len(fills), 3):
            maker = fills[i]
            open_then -= fills[i + 2]
            self._traded(instrument, order, open_then, maker, table.open[maker], fills[i + 1], fills[i + 2], events)
        if fills:
            instrument.last_price = fills[-2]
            instrument.last_quantity = fills[-1]
            instrument.reference = fills[-2]
        if left and table.state[order] == GONE:
            events.append(self._cancelled(order, CancelReason.REMAINDER, "", False))

    def _check_new(self, command: NewOrder, instrument: Instrument | None) -> _Refusal | None:
        if instrument is None:
            return _unknown_instrument(command.instrument)
        validity = 1 << command.time_in_force
        if instrument.day != self.date or self.date == 0:
            return _no_day(instrument)
        rules = instrument.phase_rules
        if rules.new == 0:
            return _wrong_phase(instrument, "new orders")
        if instrument.suspended and not instrument.rules.queue_in_halt:
            return _suspended(instrument)
        refusal = _check_offered(command, instrument, validity)
        if refusal is not None:
            return refusal
        if rules.new & validity == 0 or (instrument.suspended and validity & IMMEDIATE):
            return _wrong_phase(instrument, f"{TimeInForce(command.time_in_force).name} orders")
        if not _IS_ACCOUNT(command.account):
            text = f"Expected an account of up to 32 printable characters, got {_plain(command.account)}"
            return _Refusal(Reason.BAD_IDENTITY, f"{text} - at `$.account`")
        refusal = _check_quantity(command.quantity, instrument)
        if refusal is not None:
            return refusal
        return _check_price(command.price, command.quantity, command.order_type == OrderType.MARKET, instrument)

    # --- cancel and amend --------------------------------------------------------------------------------------------

    def _find(self, member: _Member, client_order_id: str) -> int:
        """The number of a member's order; 0: it has none of that id."""
        record = member.records.get(client_order_id, -1)
        if record < 0 or self._outcomes[record] & 3 > _WAITING_ORDER:
            return 0
        return self._outcomes[record] >> 2

    def _check_open(self, order: int, client_order_id: str) -> _Refusal | None:
        if order == 0:
            text = f"Expected the client_order_id of an order of this member, got {_plain(client_order_id)}"
            return _Refusal(Reason.UNKNOWN_ORDER, f"{text} - at `$.client_order_id`")
        if not self._orders.is_open(order):
            if self._orders.open[order] == 0:
                return _Refusal(Reason.ORDER_FILLED, f"Expected an open order, got {client_order_id}, which is filled")
            text = f"Expected an open order, got {client_order_id}, which was cancelled or has expired"
            return _Refusal(Reason.ORDER_GONE, text)
        return None

    def _cancel(self, command: CancelOrder, member: _Member, events: list[Event]) -> None:
        order = self._find(member, command.client_order_id)
        refusal = self._check_open(order, command.client_order_id)
        instrument = self._instruments[self._orders.instrument(order)] if order else None
        if refusal is None and instrument is not None and not instrument.phase_rules.cancel:
            refusal = _wrong_phase(instrument, "cancels")
        if refusal is not None:
            code = instrument.code if instrument is not None else ""
            self._refuse(member, command.request_id, command, refusal, code, events)
            return
        self._remember(member, command.request_id, command, _CANCEL, order)
        self._withdraw(order, CancelReason.MEMBER, command.request_id, events)

    def _amend(self, command: AmendOrder, member: _Member, events: list[Event]) -> None:
        table = self._orders
        order = self._find(member, command.client_order_id)
        refusal = self._check_open(order, command.client_order_id)
        if refusal is not None:
            code = self._instruments[table.instrument(order)].code if order else ""
            self._refuse(member, command.request_id, command, refusal, code, events)
            return
        instrument = self._instruments[table.instrument(order)]
        if not instrument.phase_rules.amend:
            refusal = _wrong_phase(instrument, "amends")
        elif instrument.suspended and not instrument.rules.queue_in_halt:
            refusal = _suspended(instrument)
        if refusal is not None:
            self._refuse(member, command.request_id, command, refusal, instrument.code, events)
            return

        filled = table.quantity[order] - table.open[order]
        quantity = command.quantity if command.quantity else table.quantity[order]
        price = command.price if command.price else table.price[order]
        ends = quantity == filled
        if not ends:
            refusal = self._check_amend(command, order, instrument, quantity, price, filled)
            if refusal is not None:
                mode = instrument.rules.invalid_replace
                ends = mode == REPLACE_CANCEL_LIVE or (mode != REPLACE_KEEP and 0 < quantity < filled)
                ends = ends and refusal.reason != Reason.NO_CHANGE
        if ends:
            self._release(order)
            event = self._cancelled(order, CancelReason.REPLACED, command.request_id, False)
            self._answer(member, command.request_id, command, event, events)
        elif refusal is not None:
            self._refuse(member, command.request_id, command, refusal, instrument.code, events)
        else:
            self._change(command, member, order, instrument, quantity, price, events)

    def _check_amend(
        self, command: AmendOrder, order: int, instrument: Instrument, quantity: int, price: int, filled: int
    ) -> _Refusal | None:
        table = self._orders
        refusal = _check_quantity(quantity, instrument)
        if refusal is not None:
            return refusal
        if quantity < filled:
            text = f"Expected a total of at least the {filled} already filled, got {quantity} - at `$.quantity`"
            return _Refusal(Reason.BAD_QUANTITY, text)
        refusal = _check_price(price, quantity, table.order_type(order) == OrderType.MARKET, instrument)
        if refusal is not None:
            return refusal
        if quantity == table.quantity[order] and price == table.price[order]:
            text = f"Expected a new price or quantity, got what {command.client_order_id} has: {quantity} at {price}"
            return _Refusal(Reason.NO_CHANGE, text)
        return None

    def _change(
        self,
        command: AmendOrder,
        member: _Member,
        order: int,
        instrument: Instrument,
        quantity: int,
        price: int,
        events: list[Event],
    ) -> None:
        """Carry out an amend that has passed every check."""
        table = self._orders
        open_before = table.open[order]
        price_before = table.price[order]
        open_now = open_before + quantity - table.quantity[order]
        keeps = price == price_before and open_now < open_before
        waiting = table.state[order] == WAITING
        event = Amended(
            member.name,
            command.client_order_id,
            order,
            instrument.code,
            Side(table.side(order)),
            quantity,
            price,
            open_now,
            open_before,
            price_before,
            keeps,
            command.request_id,
            False,
            waiting,
        )
        self._answer(member, command.request_id, command, event, events)
        table.quantity[order] = quantity
        if keeps:
            if waiting:
                table.open[order] = open_now
            else:
                instrument.book.fill(order, open_before - open_now)
            return
        if not waiting:
            instrument.book.remove(order)
        table.open[order] = open_now
        table.price[order] = price
        table.priority[order] = self.sequence
        if waiting:
            return
        if instrument.phase_rules.matching == TRADE and not instrument.suspended:
            self._trade(instrument, order, events)
        else:
            instrument.book.add(order)

    def _mass_cancel(self, command: MassCancel, member: _Member, events: list[Event]) -> None:
        only: Instrument | None = None
        refusal: _Refusal | None = None
        if command.instrument:
            only = self._by_code.get(command.instrument)
            if only is None:
                refusal = _unknown_instrument(command.instrument)
        if refusal is None and not (0 <= command.price_from <= PRICE_MAX and 0 <= command.price_to <= PRICE_MAX):
            low, high = _number(command.price_from), _number(command.price_to)
            text = f"Expected prices from 0 to {PRICE_MAX}, got {low} to {high} - at `$.price_from`"
            refusal = _Refusal(Reason.BAD_PRICE, text)
        if refusal is None and command.price_to and command.price_from > command.price_to:
            text = f"Expected a price not below {command.price_from}, got {command.price_to} - at `$.price_to`"
            refusal = _Refusal(Reason.BAD_PRICE, text)
        if refusal is None and not _IS_ACCOUNT(command.account):
            text = f"Expected an account of up to 32 printable characters, got {_plain(command.account)}"
            refusal = _Refusal(Reason.BAD_IDENTITY, f"{text} - at `$.account`")
        if refusal is not None:
            code = only.code if only is not None else ""
            self._refuse(member, command.request_id, command, refusal, code, events)
            return
        request = DeferredMassCancel(
            member.index,
            command.request_id,
            -1 if command.side is None else int(command.side),
            command.price_from,
            command.price_to,
            command.account,
            self._orders.count,
        )
        orders: list[int] = []
        for instrument in self._instruments if only is None else [only]:
            if instrument.phase_rules.cancel:
                self._select(instrument, request, orders)
            else:
                # A non-cancel period holds it up, it does not refuse it (market-rules 1).
                instrument.deferred.append(request)
        orders.sort()
        for order in orders:
            self._withdraw(order, CancelReason.MASS_CANCEL, command.request_id, events)
        event = MassCancelled(member.name, command.request_id, len(orders))
        self._answer(member, command.request_id, command, event, events)

    def _select(self, instrument: Instrument, request: DeferredMassCancel, found: list[int]) -> None:
        """Append the open orders of one instrument that a mass cancel means."""
        table = self._orders
        for order in self._open_orders(instrument):
            if table.participant(order) != request.participant or order > request.newest:
                continue
            price = table.price[order]
            if request.side >= 0 and table.side(order) != request.side:
                continue
            if request.low and price < request.low:
                continue
            if request.high and (price > request.high or price == 0):
                continue
            if request.account and table.account[order] != request.account:
                continue
            found.append(order)

    # --- orders leaving ----------------------------------------------------------------------------------------------

    def _release(self, order: int) -> None:
        """Take an open order off the market. Its row keeps what was open."""
        table = self._orders
        if table.state[order] == WAITING:
            table.state[order] = GONE_WAITING
        else:
            continuous.withdraw(table, self._instruments[table.instrument(order)].book, order)

    def _withdraw(self, order: int, reason: CancelReason, request_id: str, events: list[Event]) -> None:
        """Take an open order off the market and say so."""
        self._release(order)
        events.append(self._cancelled(order, reason, request_id, False))

    # --- events ------------------------------------------------------------------------------------------------------

    def _accepted(self, command: NewOrder, member: _Member, order: int, waiting: bool, repeat: bool) -> Accepted:
        return Accepted(
            member.name,
            command.client_order_id,
            order,
            command.instrument,
            command.side,
            command.quantity,
            command.price,
            command.order_type,
            command.time_in_force,
            command.account,
            command.display_quantity,
            repeat,
            waiting,
        )

    def _cancelled(self, order: int, reason: CancelReason, request_id: str, repeat: bool) -> Cancelled:
        table = self._orders
        return Cancelled(
            self._members[table.participant(order)].name,
            table.client_order_id[order],
            order,
            self._instruments[table.instrument(order)].code,
            Side(table.side(order)),
            table.price[order],
            table.open[order],
            reason,
            request_id,
            repeat,
            table.state[order] == GONE_WAITING,
        )

    def _traded(
        self,
        instrument: Instrument,
        taker: int,
        taker_open: int,
        maker: int,
        maker_open: int,
        price: int,
        quantity: int,
        events: list[Event],
    ) -> None:
        """A trade in zaraba."""
        if self._orders.side(maker) == SELL:
            self._print(instrument, taker, taker_open, maker, maker_open, price, quantity, SELL, events)
        else:
            self._print(instrument, maker, maker_open, taker, taker_open, price, quantity, BUY, events)

    def _print(
        self,
        instrument: Instrument,
        buy: int,
        buy_open: int,
        sell: int,
        sell_open: int,
        price: int,
        quantity: int,
        maker: int,
        events: list[Event],
    ) -> None:
        table = self._orders
        self.trades += 1
        events.append(
            Traded(
                self.trades,
                instrument.code,
                price,
                quantity,
                self._members[table.participant(buy)].name,
                table.client_order_id[buy],
                buy,
                buy_open,
                table.account[buy],
                self._members[table.participant(sell)].name,
                table.client_order_id[sell],
                sell,
                sell_open,
                table.account[sell],
                maker,
                self.date,
                instrument.settlement_date,
                table.price[buy],
                table.price[sell],
            )
        )

    # --- reference data and the day ----------------------------------------------------------------------------------

    def _set_tick_table(self, command: SetTickTable, events: list[Event]) -> _Refusal | None:
        rows = [(row.start, row.tick) for row in command.rows]
        refusal = _check_table(command.table, command.effective, rows)
        if refusal is not None:
            return refusal
        try:
            TickTable(rows)
        except ValueError as error:
            return _Refusal(Reason.BAD_REFERENCE_DATA, str(error))
        self._tick_tables.add(command.table, command.effective, rows)
        events.append(ReferenceDataSet("tick_table", command.table, command.effective))
        return None

    def _set_limit_table(self, command: SetLimitTable, events: list[Event]) -> _Refusal | None:
        rows = [(row.below, row.width) for row in command.rows]
        refusal = _check_table(command.table, command.effective, rows)
        if refusal is not None:
            return refusal
        if command.table == NO_LIMITS:
            text = f"Expected a table name other than {NO_LIMITS!r}, which means no limits - at `$.table`"
            return _Refusal(Reason.BAD_REFERENCE_DATA, text)
        try:
            LimitTable(rows)
        except ValueError as error:
            return _Refusal(Reason.BAD_REFERENCE_DATA, str(error))
        self._limit_tables.add(command.table, command.effective, rows)
        events.append(ReferenceDataSet("limit_table", command.table, command.effective))
        return None

    def _set_calendar(self, command: SetCalendar, events: list[Event]) -> _Refusal | None:
        for date in (command.first, command.last, *command.holidays):
            if not _is_date(date):
                text = f"Expected dates as YYYYMMDD, got {_number(date)} - at `$`"
                return _Refusal(Reason.BAD_REFERENCE_DATA, text)
        try:
            self._calendar = Calendar(command.first, command.last, command.holidays)
        except ValueError as error:
            return _Refusal(Reason.BAD_REFERENCE_DATA, str(error))
        events.append(ReferenceDataSet("calendar", "", command.first))
        return None

    def _list(self, command: ListInstrument, events: list[Event]) -> _Refusal | None:
        if not _IS_CODE(command.instrument):
            text = f"Expected a code of 1 to 12 characters A-Z, 0-9, -, got {_plain(command.instrument)}"
            return _Refusal(Reason.BAD_REFERENCE_DATA, f"{text} - at `$.instrument`")
        if command.instrument in self._by_code:
            text = f"Expected a code that is not listed, got {command.instrument} - at `$.instrument`"
            return _Refusal(Reason.ALREADY_LISTED, text)
        text = self._wrong_in_listing(command)
        if text:
            return _Refusal(Reason.BAD_REFERENCE_DATA, text)
        try:
            rules = Rules(PROFILES[command.profile], command.rules)
        except ValueError as error:
            return _Refusal(Reason.BAD_REFERENCE_DATA, str(error))
        instrument = Instrument(
            len(self._instruments),
            command.instrument,
            rules,
            self._make_book(),
            TickTable(TICK_TABLES["one"]),  # until its first day starts
            reference=command.reference_price,
            lot=command.lot,
            price_decimals=command.price_decimals,
            tick_table=command.tick_table,
            limit_table=command.limit_table,
            settlement_days=command.settlement_days,
            ledger=command.ledger,
            units_outstanding=command.units_outstanding,
        )
        self._instruments.append(instrument)
        self._by_code[command.instrument] = instrument
        events.append(
            InstrumentListed(
                command.instrument,
                command.profile,
                command.lot,
                command.price_decimals,
                command.reference_price,
                command.settlement_days,
                command.ledger,
            )
        )
        return None

    def _make_book(self) -> Book:
        return ReferenceBook(self._orders)

    def _wrong_in_listing(self, command: ListInstrument) -> str:
        """What is wrong with a listing's fields; "" if nothing is."""
        if command.profile not in PROFILES:
            return f"Expected a profile of {', '.join(PROFILES)}, got {_plain(command.profile)} - at `$.profile`"
        if not 0 <= command.reference_price <= PRICE_MAX:
            price = _number(command.reference_price)
            return f"Expected a price from 0 to {PRICE_MAX}, got {price} - at `$.reference_price`"
        if not 1 <= command.lot <= QUANTITY_MAX:
            return f"Expected a lot from 1 to {QUANTITY_MAX}, got {_number(command.lot)} - at `$.lot`"
        if not 0 <= command.price_decimals <= 8:
            return f"Expected 0 to 8 decimals, got {_number(command.price_decimals)} - at `$.price_decimals`"
        unit = 10**command.price_decimals
        if command.lot % unit:
            return (
                f"Expected a lot that is worth whole yen at the smallest price, a multiple of {unit}, got {command.lot}"
                " - at `$.lot`"
            )
        if command.tick_table not in self._tick_tables:
            known = ", ".join(self._tick_tables.names())
            return f"Expected a tick table of {known}, got {_plain(command.tick_table)} - at `$.tick_table`"
        if command.limit_table != NO_LIMITS and command.limit_table not in self._limit_tables:
            known = ", ".join([NO_LIMITS, *self._limit_tables.names()])
            return f"Expected a limit table of {known}, got {_plain(command.limit_table)} - at `$.limit_table`"
        if not 0 <= command.settlement_days <= 30:
            return f"Expected 0 to 30 days, got {_number(command.settlement_days)} - at `$.settlement_days`"
        if not _IS_ID(command.ledger):
            return f"Expected a ledger name of printable characters, got {_plain(command.ledger)} - at `$.ledger`"
        if not 0 <= command.units_outstanding <= QUANTITY_MAX:
            units = _number(command.units_outstanding)
            return f"Expected units from 0 to {QUANTITY_MAX}, got {units} - at `$.units_outstanding`"
        return ""

    def _start_day(self, command: StartDay, events: list[Event]) -> _Refusal | None:
        date = command.date
        if not _is_date(date):
            return _Refusal(
                Reason.DATE_OUTSIDE_CALENDAR, f"Expected a date as YYYYMMDD, got {_number(date)} - at `$.date`"
            )
        if date <= self.date:
            text = f"Expected a date after {self.date}, the present day, got {date} - at `$.date`"
            return _Refusal(Reason.BAD_TRANSITION, text)
        for instrument in self._instruments:
            if instrument.phase != Phase.CLOSED:
                text = f"Expected every book to be Closed, got {instrument.code} in {instrument.phase.label}"
                return _Refusal(Reason.BAD_TRANSITION, text)
        settlement_dates: list[int] = []
        ticks: list[TickTable] = []
        limits: list[LimitTable | None] = []
        try:
            if self._calendar is not None and not self._calendar.is_business_day(date):
                text = f"Expected a business day, got {date} - at `$.date`"
                return _Refusal(Reason.DATE_OUTSIDE_CALENDAR, text)
            for instrument in self._instruments:
                settlement_dates.append(
                    self._calendar.add_business_days(date, instrument.settlement_days) if self._calendar else 0
                )
        except DateOutside as error:
            text = f"{error}: send a calendar that covers the day and its settlement - at `$.date`"
            return _Refusal(Reason.DATE_OUTSIDE_CALENDAR, text)
        for instrument in self._instruments:
            tick_rows = self._tick_tables.rows(instrument.tick_table, date)
            if tick_rows is None:
                return _not_effective(instrument, "tick", instrument.tick_table, date)
            ticks.append(TickTable(tick_rows))
            if instrument.limit_table == NO_LIMITS:
                limits.append(None)
                continue
            limit_rows = self._limit_tables.rows(instrument.limit_table, date)
            if limit_rows is None:
                return _not_effective(instrument, "limit", instrument.limit_table, date)
            limits.append(LimitTable(limit_rows))

        self.date = date
        self._tick_tables.start(date)
        self._limit_tables.start(date)
        events.append(DayStarted(date))
        for i, instrument in enumerate(self._instruments):
            instrument.day = date
            instrument.settlement_date = settlement_dates[i]
            instrument.ticks = ticks[i]
            self._set_limits(instrument, limits[i], events)
            self._revalidate(instrument, events)
        return None

    def _set_limits(self, instrument: Instrument, limits: LimitTable | None, events: list[Event]) -> None:
        """The day's base price, on the day's grid, and its limits, rounded inwards (market-rules 2 and 5)."""
        ticks = instrument.ticks
        base = ticks.nearest(instrument.reference)
        instrument.base = base
        instrument.reference = base
        instrument.lower = 0
        instrument.upper = 0
        if base and limits is not None:
            width = limits.width(base)
            instrument.lower = ticks.ceil(max(base - width, 1))
            instrument.upper = ticks.floor(min(base + width, PRICE_MAX))
        events.append(DayLimitsSet(instrument.code, base, instrument.lower, instrument.upper))

    def _revalidate(self, instrument: Instrument, events: list[Event]) -> None:
        """Orders that rested overnight must be valid today (market-rules 7)."""
        table = self._orders
        for order in sorted(self._open_orders(instrument)):
            price = table.price[order]
            if not instrument.ticks.is_valid(price) or _beyond_limits(price, instrument):
                self._withdraw(order, CancelReason.LIMITS, "", events)

    def _set_reference(self, command: SetReferencePrice, events: list[Event]) -> _Refusal | None:
        instrument = self._by_code.get(command.instrument)
        if instrument is None:
            return _unknown_instrument(command.instrument)
        if not 1 <= command.price <= PRICE_MAX:
            return _Refusal(
                Reason.BAD_PRICE, f"Expected a price from 1 to {PRICE_MAX}, got {_number(command.price)} - at `$.price`"
            )
        if instrument.day and not instrument.ticks.is_valid(command.price):
            return _off_tick(command.price, instrument)
        instrument.reference = command.price
        events.append(ReferencePriceSet(instrument.code, command.price))
        return None

    def _suspend(self, code: str, suspended: bool, events: list[Event]) -> _Refusal | None:
        instrument = self._by_code.get(code)
        if instrument is None:
            return _unknown_instrument(code)
        if instrument.suspended == suspended:
            return _Refusal(
                Reason.BAD_TRANSITION,
                f"Expected a book that is {'trading' if suspended else 'suspended'}, got {instrument.code}, "
                f"which is {'suspended' if suspended else 'trading'}",
            )
        if not suspended and instrument.phase_rules.matching == TRADE:
            refusal = _check_uncrossed(instrument)
            if refusal is not None:
                return refusal
        instrument.suspended = suspended
        events.append(TradingStateChanged(instrument.code, suspended))
        return None

    # --- phases and auctions -----------------------------------------------------------------------------------------

    def _set_phase(self, command: SetPhase, events: list[Event]) -> _Refusal | None:
        instrument = self._by_code.get(command.instrument)
        if instrument is None:
            return _unknown_instrument(command.instrument)
        if instrument.day != self.date or self.date == 0:
            return _no_day(instrument)
        before = instrument.phase
        if command.phase not in instrument.phase_rules.following:
            following = ", ".join(phase.label for phase in instrument.phase_rules.following)
            text = f"Expected {following} after {before.label} of {instrument.code}"
            return _Refusal(Reason.BAD_TRANSITION, f"{text}, got {_phase_label(command.phase)} - at `$.phase`")
        if instrument.rules.phases[command.phase].matching == TRADE:
            refusal = _check_uncrossed(instrument)
            if refusal is not None:
                return refusal
        instrument.enter(command.phase)
        rules = instrument.phase_rules
        events.append(PhaseChanged(instrument.code, command.phase, before))
        if rules.matching == AUCTION:
            # A halt drops the auction; the orders stay for the call that re-opens the book (market-rules 7).
            if not instrument.suspended:
                self._uncross(instrument, events)
        elif rules.expires:
            self._expire(instrument, rules.expires, events)
        if rules.joins:
            self._join(instrument, rules.joins, events)
        if rules.cancel and instrument.deferred:
            self._cancel_deferred(instrument, events)
        if command.phase == Phase.CLOSED:
            instrument.bound.clear()
        return None

    def _expire(self, instrument: Instrument, validities: int, events: list[Event]) -> None:
        """End the orders of ``validities``; at Closed also whatever has no limit: it never rests overnight."""
        table = self._orders
        closed = instrument.phase == Phase.CLOSED
        for order in sorted(self._open_orders(instrument) if closed else instrument.bound):
            if table.is_open(order) and (
                1 << table.validity(order) & validities or (closed and table.price[order] == 0)
            ):
                self._withdraw(order, CancelReason.EXPIRED, "", events)

    def _join(self, instrument: Instrument, validities: int, events: list[Event]) -> None:
        """Take waiting orders into the book, behind what rests there, by the time they were entered."""
        table = self._orders
        joining = [
            (table.priority[order], order)
            for order in instrument.bound
            if table.state[order] == WAITING and 1 << table.validity(order) & validities
        ]
        for _, order in sorted(joining):
            table.state[order] = IN_BOOK
            instrument.book.add(order)
            events.append(
                Activated(
                    self._members[table.participant(order)].name,
                    table.client_order_id[order],
                    order,
                    instrument.code,
                    Side(table.side(order)),
                    table.price[order],
                    table.open[order],
                )
            )

    def _cancel_deferred(self, instrument: Instrument, events: list[Event]) -> None:
        for request in instrument.deferred:
            orders: list[int] = []
            self._select(instrument, request, orders)
            for order in sorted(orders):
                self._withdraw(order, CancelReason.MASS_CANCEL, request.request_id, events)
        instrument.deferred.clear()

    def _equilibrium(self, instrument: Instrument) -> Equilibrium:
        book = instrument.book
        bid_prices: list[int] = []
        bid_quantities: list[int] = []
        ask_prices: list[int] = []
        ask_quantities: list[int] = []
        book.levels(BUY, bid_prices, bid_quantities)
        book.levels(SELL, ask_prices, ask_quantities)
        return equilibrium(
            bid_prices,
            bid_quantities,
            ask_prices,
            ask_quantities,
            book.level_quantity(BUY, 0),
            book.level_quantity(SELL, 0),
            instrument.ticks,
            instrument.lower,
            instrument.upper,
            instrument.reference,
            instrument.rules.auction_price,
            instrument.rules.market_orders_must_all_fill,
        )

    def _uncross(self, instrument: Instrument, events: list[Event]) -> None:
        """Hold one itayose: freeze, price, allocate, print; then what has no place afterwards leaves."""
        result = self._equilibrium(instrument)
        buys: list[int] = []
        sells: list[int] = []
        matches: list[tuple[int, int, int]] = []
        if result.price:
            buy_fills = self._allocate(instrument, BUY, result.volume, buys)
            sell_fills = self._allocate(instrument, SELL, result.volume, sells)
            matches = pair(buy_fills, sell_fills)
        events.append(
            AuctionUncrossed(
                instrument.code, instrument.phase, result.price, result.volume, result.surplus, len(matches)
            )
        )
        opens = self._orders.open
        for i, j, quantity in matches:
            buy = buys[i]
            sell = sells[j]
            instrument.book.fill(buy, quantity)
            instrument.book.fill(sell, quantity)
            self._print(instrument, buy, opens[buy], sell, opens[sell], result.price, quantity, -1, events)
        if result.price:
            instrument.reference = result.price
            instrument.last_price = result.price
            instrument.last_quantity = result.volume
        market = [
            *instrument.book.queue(self._orders, BUY, 0),
            *instrument.book.queue(self._orders, SELL, 0),
        ]
        for order in sorted(market):
            self._withdraw(order, CancelReason.REMAINDER, "", events)
        if instrument.phase_rules.expires:
            self._expire(instrument, instrument.phase_rules.expires, events)

    def _allocate(self, instrument: Instrument, side: int, volume: int, orders: list[int]) -> list[int]:
        """Fills of one side, parallel to ``orders``, which is filled with the orders that ``volume`` can reach."""
        table = self._orders
        book = instrument.book
        prices = [0]
        book.levels(side, prices, [])
        quantities: list[int] = []
        participants: list[int] = []
        group_sizes: list[int] = []
        reached = 0
        for price in prices:
            if reached >= volume:
                break
            group = book.queue(table, side, price)
            orders.extend(group)
            quantities.extend([table.open[order] for order in group])
            if instrument.rules.allocation == SIMULTANEOUS_RR:
                participants.extend([table.participant(order) for order in group])
                group_sizes.append(len(group))
            reached += book.level_quantity(side, price)
        if instrument.rules.allocation == SIMULTANEOUS_RR:
            return allocate(volume, quantities, SIMULTANEOUS_RR, participants, group_sizes, instrument.lot)
        return allocate(volume, quantities)

    # --- queries -----------------------------------------------------------------------------------------------------

    def _open_orders(self, instrument: Instrument) -> list[int]:
        """Every open order of an instrument, in the book or waiting."""
        orders = instrument.book.orders(self._orders, BUY)
        orders.extend(instrument.book.orders(self._orders, SELL))
        for order in instrument.bound:
            if self._orders.state[order] == WAITING:
                orders.append(order)
        return orders

    def _known(self, code: str) -> Instrument:
        instrument = self._by_code.get(code)
        if instrument is None:
            raise KeyError(f"Expected a listed instrument, got {code!r}")
        return instrument

    def instrument(self, code: str) -> InstrumentView:
        """One instrument as it stands now."""
        return self._known(code).view()

    def instruments(self) -> list[str]:
        """The codes of all instruments, in the order of listing."""
        return list(self._by_code)

    def participants(self) -> list[str]:
        """Every member that ever sent a command, in the order of arrival."""
        return list(self._by_name)

    def indicative(self, code: str) -> Equilibrium:
        """What an auction held now would give: price (0: none), volume, surplus. Nothing in a phase that shows none."""
        instrument = self._known(code)
        if not instrument.phase_rules.indicative:
            return Equilibrium(0, 0, 0)
        return self._equilibrium(instrument)

    def depth(self, code: str) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Bids and asks as (price, quantity), best first. Price 0 comes before all: orders without a limit."""
        book = self._known(code).book
        return self._side_depth(book, BUY), self._side_depth(book, SELL)

    def _side_depth(self, book: Book, side: int) -> list[tuple[int, int]]:
        prices: list[int] = []
        quantities: list[int] = []
        market = book.level_quantity(side, 0)
        if market:
            prices.append(0)
            quantities.append(market)
        book.levels(side, prices, quantities)
        return list(zip(prices, quantities, strict=True))

    def order(self, order_id: int) -> OrderView:
        """One order as it stands now, however long ago it ended."""
        table = self._orders
        if not 1 <= order_id <= table.count:
            raise KeyError(f"Expected an order_id from 1 to {table.count}, got {order_id}")
        return OrderView(
            order_id,
            self._members[table.participant(order_id)].name,
            table.client_order_id[order_id],
            self._instruments[table.instrument(order_id)].code,
            Side(table.side(order_id)),
            table.price[order_id],
            table.quantity[order_id],
            table.open[order_id] if table.is_open(order_id) else 0,
            OrderType(table.order_type(order_id)),
            TimeInForce(table.validity(order_id)),
            table.account[order_id],
            table.state[order_id] == WAITING,
        )

    def order_id(self, participant: str, client_order_id: str) -> int:
        """The number of a member's order; 0: it never had one of that id."""
        member = self._by_name.get(participant)
        return self._find(member, client_order_id) if member is not None else 0

    def open_orders(self, participant: str) -> list[OrderView]:
        """A member's open orders, oldest first. Costs a walk through the books."""
        member = self._by_name.get(participant)
        if member is None:
            return []
        orders: list[int] = []
        for instrument in self._instruments:
            orders.extend(self._open_orders(instrument))
        index = member.index
        return [self.order(order) for order in sorted(orders) if self._orders.participant(order) == index]

    def queue(self, code: str, side: Side) -> list[int]:
        """The numbers of the orders on one side of a book, in matching priority."""
        return self._known(code).book.orders(self._orders, side)

    def digest(self) -> bytes:
        """32 bytes over the whole state: equal digests mean equal markets.

        It covers what decides the future and what answers about the past, and nothing of how a book is built, so every
        book, interpreted or compiled, gives the same. What can no longer change is hashed once, in blocks, and kept:
        asking again costs a walk over the blocks that have an open order or are new, not over the log's life.
        """
        digest = blake2b(digest_size=32)
        table = self._orders
        digest.update(_encode([self.sequence, self.time_ns, self.date, self.trades, table.count]))
        for block in range(table.count // _BLOCK + 1):
            digest.update(self._rows_digest(block))
        # The ids need no place of their own: each is in the content of a fingerprint, and its member in the outcome.
        for block in range(len(self._fingerprints) // _BLOCK + 1):
            digest.update(self._records_digest(block))
        for block in range(len(self._kept) // _BLOCK + 1):
            digest.update(self._kept_digest(block))
        digest.update(_encode([member.name for member in self._members]))
        for instrument in self._instruments:
            digest.update(_encode(instrument.key()))
            for side in (BUY, SELL):
                digest.update(_encode(instrument.book.orders(table, side)))
            digest.update(_encode([order for order in instrument.bound if table.is_open(order)]))
        digest.update(_encode([self._tick_tables.key(), self._limit_tables.key()]))
        calendar = self._calendar
        if calendar is not None:
            digest.update(_encode([calendar.first, calendar.last, sorted(calendar.holidays)]))
        return digest.digest()

    def _rows_digest(self, block: int) -> bytes:
        """Over the rows of one block of orders; kept once none of them is open any more."""
        known = self._rows_digests.get(block)
        if known is not None:
            return known
        table = self._orders
        start = block * _BLOCK + 1
        end = min(start + _BLOCK, table.count + 1)
        digest = blake2b(digest_size=32)
        for column in (table.price, table.open, table.quantity, table.terms, table.state, table.priority):
            digest.update(_encode(column[start:end]))
        for texts in (table.client_order_id, table.account):
            digest.update(_encode(texts[start:end]))
        result = digest.digest()
        if end - start == _BLOCK:
            for order in range(start, end):
                if table.is_open(order):
                    return result
            self._rows_digests[block] = result
        return result

    def _records_digest(self, block: int) -> bytes:
        """Over one block of what is remembered of requests; a record never changes."""
        known = self._records_digests.get(block)
        if known is not None:
            return known
        start = block * _BLOCK
        end = start + _BLOCK
        result = blake2b(_encode([self._fingerprints[start:end], self._outcomes[start:end]]), digest_size=32).digest()
        if end <= len(self._fingerprints):
            self._records_digests[block] = result
        return result

    def _kept_digest(self, block: int) -> bytes:
        """Over one block of the answers that are kept as events."""
        known = self._kept_digests.get(block)
        if known is not None:
            return known
        end = (block + 1) * _BLOCK
        result = blake2b(_encode(self._kept[block * _BLOCK : end]), digest_size=32).digest()
        if end <= len(self._kept):
            self._kept_digests[block] = result
        return result

    def check(self) -> None:
        """Raise ``InvariantBroken`` if the state contradicts itself. Costs a walk over everything ever accepted."""
        table = self._orders
        resting: set[int] = set()
        for instrument in self._instruments:
            instrument.book.check()
            if instrument.phase_rules.matching == TRADE and not instrument.suspended:
                refusal = _check_uncrossed(instrument)
                if refusal is not None:
                    raise InvariantBroken(f"{instrument.code} trades continuously with a crossed book: {refusal.text}")
            for order in self._open_orders(instrument):
                if order in resting or table.instrument(order) != instrument.index:
                    raise InvariantBroken(f"Order {order} stands in {instrument.code} twice, or belongs elsewhere")
                resting.add(order)
                if instrument.ticks.is_valid(table.price[order]) or table.order_type(order) == OrderType.MARKET:
                    continue
                raise InvariantBroken(f"Order {order} rests off the grid of {instrument.code}")
        for order in range(1, table.count + 1):
            if not 0 <= table.open[order] <= table.quantity[order]:
                raise InvariantBroken(f"Order {order} has {table.open[order]} open of {table.quantity[order]}")
            if table.is_open(order) != (order in resting):
                raise InvariantBroken(f"Order {order} is open in the table or in a book, not in both")


# --- refusals, and the checks that need nothing but the instrument ---------------------------------------------------


def _unknown_instrument(code: str) -> _Refusal:
    return _Refusal(Reason.UNKNOWN_INSTRUMENT, f"Expected a listed instrument, got {_plain(code)} - at `$.instrument`")


def _no_day(instrument: Instrument) -> _Refusal:
    return _Refusal(
        Reason.NO_DAY, f"Expected a trading day to have been started for {instrument.code}: it trades from the next on"
    )


def _wrong_phase(instrument: Instrument, what: str) -> _Refusal:
    text = f"{instrument.code} is in {instrument.phase.label}, which takes no {what}"
    return _Refusal(Reason.WRONG_PHASE, text)


def _suspended(instrument: Instrument) -> _Refusal:
    return _Refusal(
        Reason.SUSPENDED,
        f"Expected {instrument.code} to be trading, got a suspended book: orders and amends wait for it",
    )


def _not_effective(instrument: Instrument, kind: str, table: str, date: int) -> _Refusal:
    text = f"Expected a {kind} table {table} that holds on {date} for {instrument.code}, got none - at `$.date`"
    return _Refusal(Reason.BAD_REFERENCE_DATA, text)


def _off_tick(price: int, instrument: Instrument) -> _Refusal:
    tick = instrument.ticks.tick_at(price)
    return _Refusal(Reason.OFF_TICK, f"Expected a multiple of {tick}, got {price} - at `$.price`")


def _phase_label(phase: int) -> str:
    """Also for a number that is no phase, which a caller of the library can send."""
    return Phase(phase).label if 0 <= phase < len(Phase) else str(phase)


def _beyond_limits(price: int, instrument: Instrument) -> bool:
    return bool(instrument.lower and price < instrument.lower) or bool(instrument.upper and price > instrument.upper)


def _check_table(name: str, effective: int, rows: list[tuple[int, int]]) -> _Refusal | None:
    """Name, date and bounds of a new table; its own constructor checks what the rows mean."""
    if not _IS_ID(name):
        text = f"Expected a table name of 1 to 36 printable characters, got {_plain(name)} - at `$.table`"
        return _Refusal(Reason.BAD_REFERENCE_DATA, text)
    if effective and not _is_date(effective):
        text = f"Expected a date as YYYYMMDD, or 0 for the next day, got {_number(effective)} - at `$.effective`"
        return _Refusal(Reason.BAD_REFERENCE_DATA, text)
    for i, (first, second) in enumerate(rows):
        if not (0 <= first <= PRICE_MAX and 0 <= second <= PRICE_MAX):
            text = f"Expected 0 to {PRICE_MAX}, got {_number(first)}, {_number(second)} - at `$.rows[{i}]`"
            return _Refusal(Reason.BAD_REFERENCE_DATA, text)
    return None


def _check_uncrossed(instrument: Instrument) -> _Refusal | None:
    """Zaraba may begin only where nothing could trade at once: otherwise who trades with whom would be arbitrary."""
    book = instrument.book
    bid = book.best(BUY)
    ask = book.best(SELL)
    if bid and ask and bid >= ask:
        text = f"Expected a book that does not cross, got {instrument.code} with bid {bid}, ask {ask}"
        return _Refusal(Reason.BAD_TRANSITION, f"{text}: hold a call first")
    if book.head(BUY, 0) or book.head(SELL, 0):
        text = f"Expected no orders without a limit in {instrument.code}: hold a call first"
        return _Refusal(Reason.BAD_TRANSITION, text)
    return None


def _check_offered(command: NewOrder, instrument: Instrument, validity: int) -> _Refusal | None:
    """Whether the instrument has such orders at all."""
    rules = instrument.rules
    what = ""
    if rules.order_types & (1 << command.order_type) == 0:
        what = f"{OrderType(command.order_type).name} orders - at `$.order_type`"
    elif rules.validities & validity == 0:
        what = f"{TimeInForce(command.time_in_force).name} orders - at `$.time_in_force`"
    elif command.display_quantity:
        what = "icebergs - at `$.display_quantity`"
    elif command.stop_price:
        what = "stop orders - at `$.stop_price`"
    elif command.minimum_quantity:
        what = "minimum quantities - at `$.minimum_quantity`"
    elif command.post_only:
        what = "post-only orders - at `$.post_only`"
    elif command.self_trade != SelfTrade.DEFAULT and command.self_trade != SelfTrade.NONE:
        what = "self-trade prevention - at `$.self_trade`"
    elif command.expire_date:
        what = "orders with a last day - at `$.expire_date`"
    if what:
        return _Refusal(Reason.NOT_OFFERED, f"{instrument.code} does not offer {what}")
    if rules.restriction_of_market_order and 1 << command.order_type & MARKET:
        text = f"{instrument.code} takes no market orders - at `$.order_type`"
        return _Refusal(Reason.MARKET_ORDERS_RESTRICTED, text)
    return None


def _check_quantity(quantity: int, instrument: Instrument) -> _Refusal | None:
    if not 1 <= quantity <= QUANTITY_MAX:
        text = f"Expected a quantity from 1 to {QUANTITY_MAX}, got {_number(quantity)} - at `$.quantity`"
        return _Refusal(Reason.BAD_QUANTITY, text)
    if quantity % instrument.lot:
        text = f"Expected a multiple of {instrument.lot}, the lot of {instrument.code}, got {quantity}"
        return _Refusal(Reason.OFF_LOT, f"{text} - at `$.quantity`")
    return None


def _check_price(price: int, quantity: int, market: bool, instrument: Instrument) -> _Refusal | None:
    """Price, tick, limits and value of an order. What it may be worth is bounded at the worst price it can get."""
    if market:
        if price:
            text = f"Expected no price (0) for an order without a limit, got {_number(price)} - at `$.price`"
            return _Refusal(Reason.BAD_PRICE, text)
    else:
        if not 1 <= price <= PRICE_MAX:
            text = f"Expected a price from 1 to {PRICE_MAX}, got {_number(price)} - at `$.price`"
            return _Refusal(Reason.BAD_PRICE, text)
        if not instrument.ticks.is_valid(price):
            return _off_tick(price, instrument)
        if instrument.lower and price < instrument.lower:
            text = f"Expected a price not below the day's limit {instrument.lower}, got {price} - at `$.price`"
            return _Refusal(Reason.BELOW_LIMIT, text)
        if instrument.upper and price > instrument.upper:
            text = f"Expected a price not above the day's limit {instrument.upper}, got {price} - at `$.price`"
            return _Refusal(Reason.ABOVE_LIMIT, text)
    worst = max(price, instrument.upper)
    if worst * quantity >= VALUE_MAX:
        text = f"Expected price times quantity below {VALUE_MAX}, got {quantity} at up to {worst} - at `$.quantity`"
        return _Refusal(Reason.VALUE_TOO_LARGE, text)
    return None
