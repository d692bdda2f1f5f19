"""The engine: a pure function of a numbered sequence of commands.

``Engine.apply`` takes one command and returns what follows from it. It reads no clock, draws no random number, opens no
file and depends on no hash order, so the same commands give the same events on any machine, and anybody who doubts a
trade can run the log again. What the market declines is answered by ``Rejected`` and changes nothing: every check comes
before the first change. Only a value that is no command at all raises.

How a command goes: who sent it and under which id (*identities*), may it be done (*checks*, in a fixed order that
``engine/checks.py`` tells, the first that fails is named), do it (*changes*), say what happened (*events*).

State: one ``OrderTable`` for all books, one ``Instrument`` per book, one ``Member`` per firm. Every id that a member
ever used is remembered with the outcome of what was asked, so that asking again is harmless for the life of the log. An
accepted order or cancel costs one integer there; the answer is rebuilt from the order's row.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Final, cast, get_args

import msgspec

from engine.backend import CHOSEN, COMPILED
from engine.checks import (
    PEAKS_MAX,
    Refusal,
    beyond_limits,
    cancels_from,
    check_deferred,
    check_offered,
    check_options,
    check_price,
    check_quantity,
    check_uncrossed,
    check_words,
    frozen,
    is_account,
    is_code,
    is_participant,
    no_day,
    not_changed,
    number,
    off_tick,
    phase_label,
    plain,
    set_aside,
    suspended,
    unknown_instrument,
    worst_price,
    wrong_phase,
)
from engine.commands import (
    AmendOrder,
    ApproveTransfer,
    BustTrade,
    CancelOrder,
    Command,
    Deposit,
    Disconnected,
    ExchangeCommand,
    Kill,
    ListInstrument,
    MassCancel,
    MemberCommand,
    NewOrder,
    OperatorCommand,
    OperatorConfirm,
    OperatorDecline,
    OperatorRequest,
    PermitMember,
    RebuildInstrument,
    RenewQuote,
    Restore,
    ResumeInstrument,
    SetCalendar,
    SetEligibility,
    SetHolder,
    SetLimitTable,
    SetPhase,
    SetQuoteTable,
    SetReferencePrice,
    SetRiskLimits,
    SetTickTable,
    SetTokenStatus,
    SetWindow,
    StartDay,
    SuspendInstrument,
    Withdraw,
)
from engine.events import (
    Accepted,
    Amended,
    CancelFrozen,
    DayStarted,
    Event,
    InstrumentListed,
    InstrumentRebuilt,
    MassCancelled,
    OperatorRequested,
    OrderMarked,
    PhaseChanged,
    PhaseTimed,
    ReferencePriceSet,
    Rejected,
    TradingStateChanged,
)
from engine.faults import InvariantBroken
from engine.funding import Balance
from engine.identities import BLOCK, Member, encode, newest, spell
from engine.market import ASIDE, FUNDED, RESTRICTED, DeferredMassCancel, Instrument, InstrumentView, Options, OrderView
from engine.matching.auction import Plan
from engine.matching.book import (
    ALL,
    BUY,
    IN_BOOK,
    SELL,
    WAITING,
    Book,
    ReferenceBook,
    pack_terms,
)
from engine.matching.fastbook import FastBook
from engine.matching.itayose import Equilibrium
from engine.names import CANCEL, EVENT, ORDER, WAITING_ORDER, Name, name_of
from engine.operators import Operators
from engine.profiles import (
    AUCTION,
    COLLECT,
    DAY,
    FUNARI,
    GTD,
    IMMEDIATE,
    OVERNIGHT,
    PROFILES,
    REPLACE_CANCEL_LIVE,
    REPLACE_KEEP,
    TRADE,
    UNPRICED,
    Rules,
)
from engine.quotes import NOBODY, Quoting
from engine.rebuild import doubt, fill_anew
from engine.reference_data import DayPlan, ReferenceData
from engine.tables import TICK_TABLES, TickTable
from engine.ticket import (
    MARKET_ORDER,
    SELF_TRADE_REJECT,
    CancelTicket,
    CommandTicket,
    OrderTicket,
    cancel_of,
    ticket_of,
)
from engine.trading import SECOND_NS
from engine.types import (
    PRICE_MAX,
    SIDES,
    VALUE_MAX,
    CancelReason,
    OrderType,
    Phase,
    Reason,
    SelfTrade,
    Side,
    TimeInForce,
)
from engine.wire import PAYS, EventWriter, WrittenEvent

# Names of another module are looked up at every use; these are not.
_NewOrder: Final = NewOrder
_CancelOrder: Final = CancelOrder
_OrderTicket: Final = OrderTicket
_CancelTicket: Final = CancelTicket
_Accepted: Final = Accepted
_MEMBER: Final = CancelReason.MEMBER
_Sides: Final = list(Side)
_OrderTypes: Final = list(OrderType)
_Validities: Final = list(TimeInForce)

EXCHANGE_COMMANDS: Final = get_args(ExchangeCommand)

REFERENCE: Final = "reference"
FAST: Final = "fast"
#: How many orders a digest mark takes in, newest and others each, and how much of whatever else can be many: a
#: millisecond's worth. Part of the digest's definition.
MARK_ROWS: Final = 4096
MARK_ENTRIES: Final = 1024
_64_BITS: Final = 2**64
#: What a market can be made with.
BOOKS: Final = (REFERENCE, FAST)
#: The fast book is made for compiled code; interpreted, the reference book is the faster one.
DEFAULT_BOOK: Final = FAST if CHOSEN == COMPILED else REFERENCE


class Engine(Quoting):
    """A market. Feed it commands, read the events; ask it anything in between.

    ``apply`` is the only way to change it. Queries raise ``KeyError`` for an instrument or order that does not exist.
    ``book`` is one of ``BOOKS``; all give the same answers.
    """

    def __init__(self, book: str = "") -> None:
        if book and book not in BOOKS:
            raise ValueError(f"Expected a book of {', '.join(BOOKS)}, got {book!r}")
        super().__init__()
        self._fast: Final = (book or DEFAULT_BOOK) == FAST
        self._reference: Final = ReferenceData()
        self._operators: Final = Operators()
        #: Who sent the command before, and the name as it was given: the next is often of the same batch. No part of
        #: the state; neither is the instrument of the last order.
        self._sender: Member | None = None
        self._sender_name: str = ""
        self._asked: Instrument | None = None
        self._asked_code: str = ""
        self._keeping: EventWriter | None = EventWriter(keeps=True) if PAYS else None
        self._told: Final = EventWriter()
        self._funded: bool = False  #: whether some instrument is pre-funded

    # --- commands ----------------------------------------------------------------------------------------------------

    def apply(self, command: Command | CommandTicket, participant: str = "", time_ns: int = 0) -> list[Event]:
        """Carry out one command and return what followed, in order.

        ``participant`` is the member that sent it, "" for the exchange; ``time_ns`` its stamp in nanoseconds (UTC).
        New orders and cancels may come as their tickets (``engine/wire.py``).
        Never raises for what a command says. Raises ``TypeError`` for a value that is no command.
        """
        self.sequence += 1
        self.time_ns = time_ns
        events: list[Event] = []
        kind = type(command)  # isinstance of a Struct class that it is not costs as much as a whole check
        if kind is _OrderTicket or kind is _NewOrder:
            ticket = cast(OrderTicket, command) if kind is _OrderTicket else ticket_of(cast("NewOrder", command))
            member = self._identify(participant, ticket.name, ticket, events)
            if member is not None:
                self._new(ticket, member, events)
        elif kind is _CancelTicket or kind is _CancelOrder:
            cancel = cast(CancelTicket, command) if kind is _CancelTicket else cancel_of(cast("CancelOrder", command))
            member = self._identify(participant, cancel.request, cancel, events)
            if member is not None:
                self._cancel(cancel, member, events)
        elif isinstance(command, AmendOrder):
            request = name_of(command.request_id)
            member = self._identify(participant, request, command, events)
            if member is not None:
                self._amend(command, request, member, events)
        elif isinstance(command, MassCancel):
            request = name_of(command.request_id)
            member = self._identify(participant, request, command, events)
            if member is not None:
                self._mass_cancel(command, request, member, events)
        else:
            self._exchange(cast("Command", command), participant, events)
        if self._quoted:
            self._review_quotes(events)
        if self._funded:
            self._funding.fold(events, self._by_code)
        return events

    def tell(self, commands: Sequence[Command | CommandTicket], participant: str, time_ns: int) -> bytes:
        """Carry out one sender's commands, the first with the stamp ``time_ns``, each with one more than before.

        Returns event bytes as the digest takes them (docs/log-format.md), for whoever needs nothing else.
        """
        told = EventWriter()
        self._writer = EventWriter()
        try:
            for command in commands:
                events = self.apply(command, participant, time_ns)
                told.command(self.sequence, time_ns, events)
                time_ns += 1
        finally:
            self._writer = None
        return told.written()

    def carry_out(self, command: Command | CommandTicket, participant: str, time_ns: int) -> list[Event | WrittenEvent]:
        """``apply``, for whoever needs the event bytes too: ``told`` has them.

        Most of what follows from a member's command comes as these bytes: that costs less than to make objects of it
        and to write those. Interpreted it does not, and all is as ``apply`` has it.
        """
        self._writer = self._keeping if participant else None
        try:
            events = self.apply(command, participant, time_ns)
        finally:
            self._writer = None
        self._told.command(self.sequence, time_ns, events)
        return cast("list[Event | WrittenEvent]", events)

    def told(self) -> bytes:
        """The event bytes of all that was carried out since this was asked last, as ``tell`` returns them."""
        return self._told.written()

    def _exchange(self, command: Command, participant: str, events: list[Event]) -> None:
        """Commands of the exchange itself."""
        instrument = ""
        refusal: Refusal | None
        if isinstance(
            command,
            SetPhase
            | SetReferencePrice
            | SuspendInstrument
            | ResumeInstrument
            | ListInstrument
            | Kill
            | Restore
            | SetRiskLimits
            | RebuildInstrument
            | Deposit
            | Withdraw
            | RenewQuote
            | SetEligibility
            | SetTokenStatus
            | PermitMember
            | SetHolder
            | SetWindow,
        ):
            instrument = command.instrument if is_code(command.instrument) else ""
        elif isinstance(command, OperatorRequest | OperatorConfirm | OperatorDecline):
            if participant:
                events.append(self._not_for_members(command, participant, ""))
            else:
                self._operate(command, events)
            return
        elif not isinstance(command, EXCHANGE_COMMANDS):
            self.sequence -= 1
            raise TypeError(f"Expected a command of engine.commands, got {type(command).__name__}")
        if participant:
            events.append(self._not_for_members(command, participant, instrument))
            return
        if isinstance(command, SetPhase):
            refusal = self._set_phase(command, events)
        elif isinstance(command, StartDay):
            refusal = self._start_day(command, events)
        elif isinstance(command, ListInstrument):
            refusal = self._list(command, events)
        elif isinstance(command, SetTickTable):
            refusal = self._reference.set_tick_table(command, events)
        elif isinstance(command, SetLimitTable):
            refusal = self._reference.set_limit_table(command, events)
        elif isinstance(command, SetQuoteTable):
            refusal = self._reference.set_quote_table(command, events)
        elif isinstance(command, RenewQuote):
            refusal = self._renew_quote(command.instrument, self._by_code.get(command.instrument), events)
        elif isinstance(command, SetCalendar):
            refusal = self._reference.set_calendar(command, events)
        elif isinstance(command, SetReferencePrice):
            refusal = self._set_reference(command, events)
        elif isinstance(command, SuspendInstrument):
            refusal = self._suspend(command.instrument, events)
        elif isinstance(command, ResumeInstrument):
            refusal = self._resume(command.instrument, events)
        elif isinstance(command, Kill):
            refusal = self._kill(command, events)
        elif isinstance(command, Restore):
            refusal = self._restore(command, events)
        elif isinstance(command, SetRiskLimits):
            refusal = self._set_risk_limits(command, events)
        elif isinstance(command, Disconnected):
            refusal = self._disconnected(command, events)
        elif isinstance(command, BustTrade):
            refusal = self._bust(command, events)
        elif isinstance(command, RebuildInstrument):
            refusal = self._rebuild(command, events)
        elif isinstance(command, Deposit | Withdraw):
            refusal = self._funding.book(command, self._by_code, events)
        elif isinstance(command, SetEligibility):
            refusal = self._set_eligibility(command, events)
        elif isinstance(command, SetTokenStatus):
            refusal = self._set_token_status(command, events)
        elif isinstance(command, PermitMember):
            refusal = self._permit(command, events)
        elif isinstance(command, SetHolder):
            refusal = self._set_holder(command, events)
        elif isinstance(command, ApproveTransfer):
            refusal = self._approve_transfer(command, events)
        else:
            refusal = self._set_window(command, events)
        if refusal is not None:
            events.append(Rejected("", "", refusal.reason, refusal.text, instrument))

    def _not_for_members(self, command: Command, participant: str, instrument: str) -> Rejected:
        text = f"Expected a member's command, got {type(command).__name__}: the exchange's own"
        name = participant if is_participant(participant) else ""
        return Rejected(name, "", Reason.NOT_PERMITTED, text, instrument)

    def _operate(self, command: OperatorCommand, events: list[Event]) -> None:
        """What an operator asks for: carried out like the exchange's own commands, once it may be."""
        if isinstance(command, OperatorRequest) and not isinstance(command.command, EXCHANGE_COMMANDS):
            self.sequence -= 1
            raise TypeError(f"Expected a command of the exchange, got {type(command.command).__name__}")
        wish = self._operators.take(command, self.time_ns, events)
        if wish is None:
            return
        before = len(events)
        self._exchange(wish, "", events)
        last = events[-1] if len(events) > before else None
        refusal = last if isinstance(last, Rejected) and not last.participant else None
        if refusal is not None:
            events.pop()  # said by the answer to the operator
        self._operators.settle(command, refusal, events)

    def waiting_requests(self, time_ns: int) -> list[OperatorRequested]:
        """What operators asked for and a second one can still confirm at ``time_ns``, oldest first."""
        return self._operators.waiting(time_ns)

    # --- identities --------------------------------------------------------------------------------------------------

    def _identify(
        self, participant: str, name: Name, command: MemberCommand | CommandTicket, events: list[Event]
    ) -> Member | None:
        """The member, if the command is well formed and its id is new. Otherwise None, and the answer is given."""
        member = self._sender
        if member is None or self._sender_name is not participant:
            member = self._sender = self._identities.by_name.get(participant)
            self._sender_name = participant
        if member is None:
            if not is_participant(participant):
                text = f"Expected a participant of 1 to 16 characters a-z, 0-9, -, got {plain(participant)}"
                events.append(Rejected("", name.text if name.size else "", Reason.BAD_IDENTITY, text))
                return None
            member = self._identities.add(participant)
            member.guards = self._guards_member(participant)
        if name.size == 0:
            text = f"Expected an id of 1 to 36 printable characters, got {plain(name.text)}"
            events.append(Rejected(participant, "", Reason.BAD_IDENTITY, text))
            return None
        outcome = self._identities.outcome(member, name)
        if outcome < 0:
            return member
        again = command.command if isinstance(command, OrderTicket | CancelTicket) else command
        if self._is_asked(again, outcome):
            self._repeat(again, member, outcome, events)
        else:
            text = f"Expected a new id, got {name.text}, which was used for another command - at `$[1]`"
            events.append(Rejected(participant, name.text, Reason.DUPLICATE_CLIENT_ORDER_ID, text))
        return None

    def _is_asked(self, command: MemberCommand, outcome: int) -> bool:
        """Whether what was asked under an id is this command: read from its order's row, or compared whole."""
        table = self._orders
        kind = outcome & 3
        order = outcome >> 2
        if kind == EVENT:
            return self._identities.content(order) == spell(command)
        if kind == CANCEL:
            return isinstance(command, CancelOrder) and table.client_order_id[order] == command.client_order_id
        if not isinstance(command, NewOrder):
            return False
        options = self._options.get(order) or Options()
        return (
            self._original(order) == (command.quantity, command.price)
            and table.side(order) == command.side
            and table.order_type(order) == command.order_type
            and table.validity(order) == command.time_in_force
            and self._instruments[table.instrument(order)].code == command.instrument
            and table.account[order] == command.account
            and options.display == command.display_quantity
            and options.stop_price == command.stop_price
            and options.minimum == command.minimum_quantity
            and options.post_only == command.post_only
            and options.self_trade == command.self_trade
            and options.expire_date == command.expire_date
            and options.confirmed == command.confirmed
        )

    def _answer(self, member: Member, request: Name, command: MemberCommand, event: Event, events: list[Event]) -> None:
        """Say ``event`` and keep it as the outcome of the command."""
        self._identities.keep(member, request, command, event)
        events.append(event)

    def _refuse(
        self,
        member: Member,
        request: Name,
        command: MemberCommand,
        refusal: Refusal,
        instrument: str,
        events: list[Event],
    ) -> None:
        event = Rejected(member.name, request.text, refusal.reason, refusal.text, instrument)
        self._answer(member, request, command, event, events)

    def _repeat(self, command: MemberCommand, member: Member, outcome: int, events: list[Event]) -> None:
        """Answer a command that was answered before, from the record, with no effect."""
        kind = outcome & 3
        index = outcome >> 2
        if kind == EVENT:
            events.append(msgspec.structs.replace(self._identities.kept(index), repeat=True))
        elif kind == CANCEL:
            request_id = command.request_id if isinstance(command, CancelOrder) else ""
            events.append(self._cancelled(index, CancelReason.MEMBER, request_id, True))
        else:
            # The content is the same, so the command itself says what was accepted; the row may have been amended.
            assert isinstance(command, NewOrder)
            events.append(self._accepted(ticket_of(command), member, index, kind == WAITING_ORDER, True))

    # --- new order ---------------------------------------------------------------------------------------------------

    def _new(self, command: OrderTicket, member: Member, events: list[Event]) -> None:
        instrument = self._asked
        if instrument is None or self._asked_code is not command.instrument:
            instrument = self._asked = self._by_code.get(command.instrument)
            self._asked_code = command.instrument
        try:
            refusal = self._check_new(command, instrument, member)
        except InvariantBroken as fault:  # it looks at whom the order would meet
            assert instrument is not None
            refusal = set_aside(instrument, "orders")
            self._refuse(member, command.name, command.command, refusal, instrument.code, events)
            self._set_aside(instrument, fault, events)
            return
        if refusal is None and instrument is not None and (member.guards or instrument.guards):
            if instrument.guards & RESTRICTED:
                refusal = self._check_holder(instrument, member.name, command.account, command.side, command.quantity)
            if refusal is None:
                refusal = self._check_limits(
                    member,
                    instrument,
                    command.client_order_id,
                    command.side,
                    command.quantity,
                    command.price,
                    command.stop_price,
                    command.confirmed,
                    True,
                    events,
                )
            if refusal is None and instrument.guards & FUNDED:
                limit = 0 if command.time_in_force == TimeInForce.FUNARI else command.price
                refusal = self._funding.check(
                    instrument, member.name, command.account, command.side, limit, command.quantity
                )
            if refusal is None:
                self._pass_limits(member, instrument, command.client_order_id, command.quantity, events)
        if refusal is not None or instrument is None:
            assert refusal is not None
            code = instrument.code if instrument is not None else ""
            self._refuse(member, command.name, command.command, refusal, code, events)
            return
        validity = 1 << command.time_in_force
        rules = instrument.phase_rules
        waiting = rules.waits & validity != 0
        imbalance = False
        options: Options | None = None
        if command.special:
            options = Options(
                command.display_quantity,
                command.stop_price,
                command.minimum_quantity,
                command.post_only,
                command.self_trade,
                command.expire_date,
                command.confirmed,
            )
            if options.stop_price and not self._is_through(instrument, command.side, options.stop_price):
                waiting = True
            imbalance = command.order_type == OrderType.IMBALANCE_ONLY
        takes_part = not waiting
        waiting = waiting or imbalance
        terms = pack_terms(command.side, command.order_type, command.time_in_force, instrument.index, member.index)
        order = self._orders.append(
            terms, command.price, command.quantity, self.sequence, command.name, command.account
        )
        self._identities.remember(member, command.name, WAITING_ORDER if waiting else ORDER, order)
        member.enter(self._orders, order)
        said = len(events)
        self._say_accepted(instrument, command, member, order, waiting, events)
        if instrument.guards & RESTRICTED and self._marks(instrument):
            events.append(OrderMarked(member.name, command.client_order_id, order, instrument.code))
        if validity & ~(OVERNIGHT | IMMEDIATE | DAY):
            instrument.bound.append(order)
        if options is not None:
            self._options[order] = options
            if options.self_trade > SelfTrade.NONE:
                instrument.prevents = True
            if waiting and options.stop_price:
                self._wait(instrument, order)
                return
        if waiting:
            self._orders.state[order] = WAITING
            if imbalance:
                instrument.imbalance[order] = takes_part
            return
        entered = len(events)
        try:
            self._enter(instrument, order, events)
        except InvariantBroken as fault:
            if len(events) > entered:
                self._give_up(order, events)
            else:
                del events[said:]
                self._forget(instrument, order, member, command)
                refusal = set_aside(instrument, "orders")
                self._refuse(member, command.name, command.command, refusal, instrument.code, events)
            self._set_aside(instrument, fault, events)

    def _forget(self, instrument: Instrument, order: int, member: Member, command: OrderTicket) -> None:
        """The newest order, which has not come to its book, never was."""
        if instrument.bound and instrument.bound[-1] == order:
            instrument.bound.pop()
        self._options.pop(order, None)
        self._identities.forget(member, command.name)
        self._orders.forget()
        member.open_orders(self._orders)  # drops what is not open

    def _check_new(self, command: OrderTicket, instrument: Instrument | None, member: Member) -> Refusal | None:
        if instrument is None:
            return unknown_instrument(command.instrument)
        refusal = check_words(command)
        if refusal is not None:
            return refusal
        validity = 1 << command.time_in_force
        if instrument.day != self.date or self.date == 0:
            return no_day(instrument)
        if instrument.guards and instrument.set_aside:
            return set_aside(instrument, "orders")
        rules = instrument.phase_rules
        if rules.new == 0:
            return wrong_phase(instrument, "new orders")
        if instrument.suspended and not instrument.rules.queue_in_halt:
            return suspended(instrument)
        if instrument.guards & RESTRICTED:
            refusal = self._check_open_to(instrument, member.name)
            if refusal is not None:
                return refusal
        refusal = check_offered(command, instrument, validity)
        if refusal is not None:
            return refusal
        if rules.new & validity == 0 or (instrument.suspended and validity & IMMEDIATE):
            return wrong_phase(instrument, f"{TimeInForce(command.time_in_force).name} orders")
        if not is_account(command.account):
            text = f"Expected an account of up to 32 printable characters, got {plain(command.account)}"
            return Refusal(Reason.BAD_IDENTITY, f"{text} - at `$.account`")
        refusal = check_quantity(command.quantity, instrument)
        if refusal is not None:
            return refusal
        unpriced = 1 << command.order_type & UNPRICED != 0
        at_once = command.order_type == MARKET_ORDER and rules.matching == TRADE
        at_once = at_once and not instrument.suspended and not instrument.rules.market_rests
        at_once = at_once and instrument.widths is None
        refusal = check_price(command.price, command.quantity, unpriced, instrument, at_once)
        if refusal is not None:
            return refusal
        if validity & FUNARI:  # it is a market order at the close, and may be worth as much
            refusal = check_price(0, command.quantity, True, instrument)
            if refusal is not None:
                return refusal
        if command.special or validity & (GTD | FUNARI):
            refusal = check_options(command, instrument, self.date)
            if refusal is not None:
                return refusal
            if command.stop_price and not self._is_through(instrument, command.side, command.stop_price):
                return None  # how it stands with the book is asked when it gets there
            if command.order_type == OrderType.IMBALANCE_ONLY:
                return None  # it never gets there
        mode = command.self_trade or instrument.rules.self_trade
        if (command.special or mode == SELF_TRADE_REJECT) and rules.waits & validity == 0:
            if command.order_type == OrderType.MARKET_TO_LIMIT:
                refusal = self._check_market_to_limit(instrument, command.side)
                if refusal is not None:
                    return refusal
            return self._check_counterparties(
                instrument,
                command.side,
                command.price,
                command.quantity,
                command.post_only,
                mode,
                member.index,
                command.account,
            )
        return None

    def _check_market_to_limit(self, instrument: Instrument, side: int) -> Refusal | None:
        if not instrument.rules.mtl_needs_limit or instrument.phase_rules.matching != TRADE or instrument.suspended:
            return None
        if instrument.book.best(side ^ 1) and not instrument.book.head(side ^ 1, 0):
            return None
        text = f"Expected a limit on the other side of {instrument.code} for a market-to-limit order, got none"
        return Refusal(Reason.NO_OPPOSITE_LIMIT, f"{text} - at `$.order_type`")

    def _check_counterparties(
        self,
        instrument: Instrument,
        side: int,
        limit: int,
        quantity: int,
        post_only: bool,
        mode: int,
        member: int,
        account: str,
    ) -> Refusal | None:
        """What an order may not meet when it comes to the book, where orders trade at once."""
        if instrument.phase_rules.matching != TRADE or instrument.suspended or instrument.quote is not None:
            return None
        if post_only:
            best = instrument.book.best(side ^ 1)
            crosses = best and (limit >= best if side == BUY else limit <= best)
            if crosses or instrument.book.head(side ^ 1, 0):
                text = f"Expected a price that does not trade at once for a post-only order, got {limit}"
                return Refusal(Reason.WOULD_TRADE, f"{text} against {best or 'a market order'} - at `$.price`")
        if mode == SelfTrade.REJECT and self._would_meet_own(instrument, side, limit, quantity, member, account):
            text = f"Expected an order that does not meet one of its own group in {instrument.code}"
            return Refusal(Reason.SELF_TRADE, f"{text}, got one that would trade with it")
        return None

    # --- cancel and amend --------------------------------------------------------------------------------------------

    def _check_open(self, order: int, name: Name) -> Refusal | None:
        if order == 0:
            text = f"Expected the client_order_id of an order of this member, got {plain(name.text)}"
            return Refusal(Reason.UNKNOWN_ORDER, f"{text} - at `$.client_order_id`")
        if not self._orders.is_open(order):
            if self._orders.open[order] == 0:
                return Refusal(Reason.ORDER_FILLED, f"Expected an open order, got {name.text}, which is filled")
            text = f"Expected an open order, got {name.text}, which was cancelled or has expired"
            return Refusal(Reason.ORDER_GONE, text)
        return None

    def _cancel(self, command: CancelTicket, member: Member, events: list[Event]) -> None:
        order = self._identities.find(member, command.order)
        refusal = self._check_open(order, command.order)
        instrument = self._instruments[self._orders.instrument(order)] if order else None
        until: Phase | None = None
        if refusal is None and instrument is not None and not instrument.phase_rules.cancel:
            refusal = wrong_phase(instrument, "cancels")
            if instrument.until_ns:
                until = cancels_from(instrument, 1 << self._orders.validity(order) & OVERNIGHT != 0)
                refusal = frozen(instrument, until)
        if refusal is None and instrument is not None and instrument.guards and instrument.frozen:
            refusal = set_aside(instrument, "cancels")
        if refusal is not None:
            code = instrument.code if instrument is not None else ""
            self._refuse(member, command.request, command.command, refusal, code, events)
            if instrument is not None and until is not None:
                ids = (command.request.text, command.order.text)
                events.append(CancelFrozen(member.name, *ids, code, until, instrument.until_ns))
            return
        self._identities.remember(member, command.request, CANCEL, order)
        self._release(order, events)
        assert instrument is not None
        self._say_cancelled(instrument, order, _MEMBER, command.request, events)

    def _amend(self, command: AmendOrder, request: Name, member: Member, events: list[Event]) -> None:
        table = self._orders
        target = name_of(command.client_order_id)
        order = self._identities.find(member, target)
        refusal = self._check_open(order, target)
        if refusal is not None:
            code = self._instruments[table.instrument(order)].code if order else ""
            self._refuse(member, request, command, refusal, code, events)
            return
        instrument = self._instruments[table.instrument(order)]
        if instrument.guards and instrument.set_aside:
            refusal = set_aside(instrument, "amends")
        elif not instrument.phase_rules.amend:
            refusal = wrong_phase(instrument, "amends")
        elif instrument.suspended and not instrument.rules.queue_in_halt:
            refusal = suspended(instrument)
        if refusal is not None:
            self._refuse(member, request, command, refusal, instrument.code, events)
            return

        filled = table.quantity[order] - self._whole(instrument, order)
        quantity = command.quantity if command.quantity else table.quantity[order]
        price = command.price if command.price else table.price[order]
        ends = quantity == filled
        if not ends:
            try:
                refusal = self._check_amend(command, order, instrument, quantity, price, filled)
            except InvariantBroken as fault:  # it looks at whom the order would meet
                refusal = set_aside(instrument, "amends")
                self._refuse(member, request, command, refusal, instrument.code, events)
                self._set_aside(instrument, fault, events)
                return
            if refusal is not None:
                mode = instrument.rules.invalid_replace
                ends = mode == REPLACE_CANCEL_LIVE or (mode != REPLACE_KEEP and 0 < quantity < filled)
                ends = ends and refusal.reason != Reason.NO_CHANGE
            elif (member.guards or instrument.guards) and (
                price != table.price[order] or quantity > table.quantity[order]
            ):
                # An order that is refused here stays: it is not the amend that is wrong, but what it would come to.
                options = self._options.get(order)
                if instrument.guards & RESTRICTED:
                    refusal = self._check_open_to(instrument, member.name)
                    if refusal is None:
                        refusal = self._check_holder(
                            instrument, member.name, table.account[order], table.side(order), quantity - filled, order
                        )
                if refusal is None:
                    refusal = self._check_limits(
                        member,
                        instrument,
                        command.request_id,
                        table.side(order),
                        quantity,
                        price,
                        options.stop_price if options is not None else 0,
                        command.confirmed,
                        False,
                        events,
                    )
                if refusal is None and instrument.guards & FUNDED:
                    refusal = self._funding.check_amend(order, instrument, price, quantity - filled)
                if refusal is None:
                    self._pass_limits(member, instrument, command.request_id, quantity, events)
        if ends:
            self._release(order, events)
            event = self._cancelled(order, CancelReason.REPLACED, command.request_id, False)
            self._answer(member, request, command, event, events)
        elif refusal is not None:
            self._refuse(member, request, command, refusal, instrument.code, events)
        else:
            self._change(command, request, member, order, instrument, quantity, price, events)

    def _check_amend(
        self, command: AmendOrder, order: int, instrument: Instrument, quantity: int, price: int, filled: int
    ) -> Refusal | None:
        table = self._orders
        refusal = check_quantity(quantity, instrument)
        if refusal is not None:
            return refusal
        if quantity < filled:
            text = f"Expected a total of at least the {filled} already filled, got {quantity} - at `$.quantity`"
            return Refusal(Reason.BAD_QUANTITY, text)
        # A market-to-limit order that has its limit is a limit order; a stop without one stays without.
        refusal = check_price(price, quantity, table.price[order] == 0, instrument)
        if refusal is None and table.validity(order) == TimeInForce.FUNARI:
            refusal = check_price(0, quantity, True, instrument)
        if refusal is not None:
            return refusal
        if quantity == table.quantity[order] and price == table.price[order]:
            text = f"Expected a new price or quantity, got what {command.client_order_id} has: {quantity} at {price}"
            return Refusal(Reason.NO_CHANGE, text)
        options = self._options.get(order)
        mode = self._mode(instrument, order)
        if options is not None and quantity > options.display * PEAKS_MAX > 0:
            text = f"Expected at most {PEAKS_MAX} times the {options.display} that it shows, got {quantity}"
            return Refusal(Reason.BAD_QUANTITY, f"{text} - at `$.quantity`")
        if (options is not None or mode == SelfTrade.REJECT) and table.state[order] != WAITING:
            if price == table.price[order] and quantity < table.quantity[order]:
                return None
            return self._check_counterparties(
                instrument,
                table.side(order),
                price,
                quantity - filled,
                options is not None and options.post_only,
                mode,
                table.participant(order),
                table.account[order],
            )
        return None

    def _change(
        self,
        command: AmendOrder,
        request: Name,
        member: Member,
        order: int,
        instrument: Instrument,
        quantity: int,
        price: int,
        events: list[Event],
    ) -> None:
        """Carry out an amend that has passed every check."""
        table = self._orders
        said = len(events)
        waiting = table.state[order] == WAITING
        if not waiting:
            self._show_whole(instrument, order, events)
        open_before = table.open[order]
        total_before = table.quantity[order]
        priority_before = table.priority[order]
        behind = table.next[order]
        price_before = table.price[order]
        open_now = open_before + quantity - table.quantity[order]
        same_price = price == price_before
        keeps = same_price and (open_now < open_before or instrument.rules.qty_up_keeps_priority)
        event = Amended(
            member.name,
            command.client_order_id,
            order,
            instrument.code,
            SIDES[table.side(order)],
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
        self._answer(member, request, command, event, events)
        self._keep_original(order)
        table.quantity[order] = quantity
        if keeps:
            if waiting:
                table.open[order] = open_now
            else:
                instrument.book.fill(order, open_before - open_now)
                self._show_peak(instrument, order, events)
            return
        if not waiting:
            instrument.book.remove(order)
        table.open[order] = open_now
        table.price[order] = price
        table.priority[order] = self.sequence
        if waiting:
            if order in instrument.stops:
                del instrument.stops[order]
                self._wait(instrument, order)
            return
        entered = len(events)
        try:
            self._enter(instrument, order, events)
        except InvariantBroken as fault:
            if len(events) > entered:
                self._give_up(order, events)
            else:
                del events[said:]
                self._identities.forget(member, request)
                table.open[order] = open_before
                table.price[order] = price_before
                table.quantity[order] = total_before
                table.priority[order] = priority_before
                self._put_back(instrument, order, behind)
                refusal = set_aside(instrument, "amends")
                self._refuse(member, request, command, refusal, instrument.code, events)
            self._set_aside(instrument, fault, events)

    def _put_back(self, instrument: Instrument, order: int, behind: int) -> None:
        """An order that was taken out of its queue stands there again, before ``behind``; an iceberg shows its peak."""
        table = self._orders
        book = instrument.book
        followers: list[int] = []
        while behind:
            followers.append(behind)
            behind = table.behind(behind)
        book.add(order)
        for follower in followers:
            book.remove(follower)
            book.add(follower)
        self._show_peak(instrument, order, [])

    def _mass_cancel(self, command: MassCancel, request: Name, member: Member, events: list[Event]) -> None:
        only: Instrument | None = None
        refusal: Refusal | None = None
        if command.instrument:
            only = self._by_code.get(command.instrument)
            if only is None:
                refusal = unknown_instrument(command.instrument)
        if refusal is None and command.side is not None and not 0 <= command.side <= 1:
            text = f"Expected a side from 0 to 1, or none, got {number(command.side)} - at `$.side`"
            refusal = Refusal(Reason.NOT_OFFERED, text)
        if refusal is None and not (0 <= command.price_from <= PRICE_MAX and 0 <= command.price_to <= PRICE_MAX):
            low, high = number(command.price_from), number(command.price_to)
            text = f"Expected prices from 0 to {PRICE_MAX}, got {low} to {high} - at `$.price_from`"
            refusal = Refusal(Reason.BAD_PRICE, text)
        if refusal is None and command.price_to and command.price_from > command.price_to:
            text = f"Expected a price not below {command.price_from}, got {command.price_to} - at `$.price_to`"
            refusal = Refusal(Reason.BAD_PRICE, text)
        if refusal is None and not is_account(command.account):
            text = f"Expected an account of up to 32 printable characters, got {plain(command.account)}"
            refusal = Refusal(Reason.BAD_IDENTITY, f"{text} - at `$.account`")
        books = self._instruments if only is None else [only]
        if refusal is None:
            refusal = check_deferred(books, member.index)
        if refusal is not None:
            code = only.code if only is not None else ""
            self._refuse(member, request, command, refusal, code, events)
            return
        wish = DeferredMassCancel(
            member.index,
            command.request_id,
            -1 if command.side is None else int(command.side),
            command.price_from,
            command.price_to,
            command.account,
            self._orders.count,
        )
        frozen_books: list[Event] = []
        for instrument in books:
            if not instrument.cancels:
                # A non-cancel period holds it up, it does not refuse it (market-rules 1).
                instrument.defer(wish)
                if instrument.until_ns:
                    until = cancels_from(instrument, instrument.rules.validities & OVERNIGHT != 0)
                    frozen_books.append(
                        CancelFrozen(member.name, command.request_id, "", instrument.code, until, instrument.until_ns)
                    )
        orders: list[int] = []
        for order in member.open_orders(self._orders):
            instrument = self._instruments[self._orders.instrument(order)]
            if (only is None or instrument is only) and instrument.cancels and self._means(wish, order):
                orders.append(order)
        for order in orders:
            self._withdraw(order, CancelReason.MASS_CANCEL, command.request_id, events)
        events.extend(frozen_books)
        event = MassCancelled(member.name, command.request_id, len(orders))
        self._answer(member, request, command, event, events)

    def _means(self, request: DeferredMassCancel, order: int) -> bool:
        """Whether a mass cancel means an open order of its member."""
        table = self._orders
        if order > request.newest or (request.side >= 0 and table.side(order) != request.side):
            return False
        price = table.price[order]
        if price < request.low or (request.high and (price > request.high or price == 0)):
            return False
        return not request.account or table.account[order] == request.account

    # --- events ------------------------------------------------------------------------------------------------------

    def _accepted(self, command: OrderTicket, member: Member, order: int, waiting: bool, repeat: bool) -> Accepted:
        return _Accepted(
            member.name,
            command.client_order_id,
            order,
            command.instrument,
            _Sides[command.side],
            command.quantity,
            command.price,
            _OrderTypes[command.order_type],
            _Validities[command.time_in_force],
            command.account,
            command.display_quantity,
            repeat,
            waiting,
        )

    def _say_accepted(
        self,
        instrument: Instrument,
        command: OrderTicket,
        member: Member,
        order: int,
        waiting: bool,
        events: list[Event],
    ) -> None:
        writer = self._writer_for(instrument)
        if writer is None:
            events.append(self._accepted(command, member, order, waiting, False))
            return
        written = writer.accepted(
            member.name,
            command.name,
            order,
            instrument.code,
            command.side,
            command.quantity,
            command.price,
            command.order_type,
            command.time_in_force,
            command.account,
            command.display_quantity,
            False,
            waiting,
        )
        events.append(cast("Event", written))

    # --- reference data and the day ----------------------------------------------------------------------------------

    def _list(self, command: ListInstrument, events: list[Event]) -> Refusal | None:
        if not is_code(command.instrument):
            text = f"Expected a code of 1 to 12 characters A-Z, 0-9, -, got {plain(command.instrument)}"
            return Refusal(Reason.BAD_REFERENCE_DATA, f"{text} - at `$.instrument`")
        if command.instrument in self._by_code:
            text = f"Expected a code that is not listed, got {command.instrument} - at `$.instrument`"
            return Refusal(Reason.ALREADY_LISTED, text)
        text = self._reference.wrong_in_listing(command)
        if text:
            return Refusal(Reason.BAD_REFERENCE_DATA, text)
        try:
            rules = Rules(PROFILES[command.profile], command.rules)
        except ValueError as error:
            return Refusal(Reason.BAD_REFERENCE_DATA, str(error))
        text = self._reference.wrong_in_rules(rules)
        if text:
            return Refusal(Reason.BAD_REFERENCE_DATA, text)
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
        self._funded = self._funded or rules.funding != 0
        self._set_guards()
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
        return FastBook(self._orders) if self._fast else ReferenceBook(self._orders)

    def _start_day(self, command: StartDay, events: list[Event]) -> Refusal | None:
        date = command.date
        plan = DayPlan()
        refusal = self._reference.plan(date, self.date, self._instruments, plan)
        if refusal is not None:
            return refusal
        self.date = date
        self._tape.start_day(date, self.trades + 1)
        self._reference.start(date)
        events.append(DayStarted(date))
        for i, instrument in enumerate(self._instruments):
            if instrument.set_aside:
                continue  # it trades again from the day that starts after it was rebuilt
            instrument.day = date
            instrument.settlement_date = plan.settlement_dates[i]
            instrument.ticks = plan.ticks[i]
            instrument.limits = plan.limits[i]
            instrument.widths = plan.widths[i]
            instrument.run_base = 0
            instrument.moved = False
            instrument.pressed = 0
            instrument.reference = instrument.ticks.nearest(instrument.reference)
            self._set_limits(instrument, instrument.reference, events)
            instrument.book.set_step(instrument.ticks.step(instrument.lower, instrument.upper))
            self._revalidate(instrument, events)
            if instrument.guards & RESTRICTED:
                self._begin_day(instrument, events)
        return None

    def _revalidate(self, instrument: Instrument, events: list[Event]) -> None:
        """Orders that rested overnight must be valid today (market-rules 7)."""
        table = self._orders
        orders = sorted(self._open_orders(instrument))
        for order in orders:
            price = table.price[order]
            options = self._options.get(order)
            stop_price = options.stop_price if options is not None and table.state[order] == WAITING else 0
            if price:
                off = not instrument.ticks.is_valid(price) or beyond_limits(price, instrument)
            else:
                quantity: int = table.quantity[order]  # the product may be more than 64 bits
                off = worst_price(0, instrument) * quantity >= VALUE_MAX
            if self._last_day(order) < self.date:
                self._withdraw(order, CancelReason.EXPIRED, "", events)
            elif off or (stop_price and not instrument.ticks.is_valid(stop_price)):
                self._withdraw(order, CancelReason.LIMITS, "", events)
        if instrument.guards & FUNDED:
            for order in self._funding.lock_anew(orders, instrument):
                self._withdraw(order, CancelReason.UNFUNDED, "", events)

    def _set_reference(self, command: SetReferencePrice, events: list[Event]) -> Refusal | None:
        instrument = self._by_code.get(command.instrument)
        if instrument is None:
            return unknown_instrument(command.instrument)
        if not 1 <= command.price <= PRICE_MAX:
            return Refusal(
                Reason.BAD_PRICE, f"Expected a price from 1 to {PRICE_MAX}, got {number(command.price)} - at `$.price`"
            )
        if instrument.day and not instrument.ticks.is_valid(command.price):
            return off_tick(command.price, instrument)
        instrument.reference = command.price
        events.append(ReferencePriceSet(instrument.code, command.price))
        return None

    def _suspend(self, code: str, events: list[Event]) -> Refusal | None:
        instrument = self._by_code.get(code)
        if instrument is None:
            return unknown_instrument(code)
        if instrument.set_aside:
            return set_aside(instrument, "halts")
        if instrument.suspended:
            return not_changed(instrument, "trading")
        self._collect(instrument)
        instrument.suspended = True
        instrument.dropped = instrument.dropped or instrument.phase_rules.is_frozen
        events.append(TradingStateChanged(instrument.code, True))
        self._interrupt_quote(instrument, events)
        if instrument.rules.purges_in_halt:
            for order in self._open_of("", instrument.code):
                self._withdraw(order, CancelReason.HALT, "", events)
        return None

    def _resume(self, code: str, events: list[Event]) -> Refusal | None:
        """The book trades again: at once, or by a call where its rule says so and something would trade (rule 7)."""
        instrument = self._by_code.get(code)
        if instrument is None:
            return unknown_instrument(code)
        if instrument.set_aside:
            return set_aside(instrument, "halts")
        if not instrument.suspended:
            return not_changed(instrument, "suspended")
        trades = instrument.phase_rules.matching == TRADE
        seconds = instrument.rules.reopen_call_seconds
        calls = seconds > 0 and (trades or instrument.dropped or instrument.phase == Phase.CALL)
        if trades and not calls:
            refusal = check_uncrossed(instrument)
            if refusal is not None:
                return refusal
        instrument.suspended = False
        events.append(TradingStateChanged(instrument.code, False))
        if calls:
            until_ns = self.time_ns + seconds * SECOND_NS
            if instrument.phase == Phase.CALL:
                until_ns = max(until_ns, instrument.until_ns)  # one that has longer to go is not cut short
                instrument.until_ns = until_ns
                events.append(PhaseTimed(instrument.code, Phase.CALL, until_ns))
            else:
                self._open_call(instrument, until_ns, events)
                self._entered(instrument, None, events)
        elif trades:
            self._trade_on(instrument)
            self._resume_stops(instrument, events)
        return None

    def _rebuild(self, command: RebuildInstrument, events: list[Event]) -> Refusal | None:
        """Make the book of an instrument that was set aside anew. It comes back suspended."""
        instrument = self._by_code.get(command.instrument)
        if instrument is None:
            return unknown_instrument(command.instrument)
        if not instrument.set_aside:
            text = f"Expected an instrument that is set aside, got {instrument.code}, which is not"
            return Refusal(Reason.BAD_TRANSITION, f"{text} - at `$.instrument`")
        what = doubt(self._orders, instrument)
        if what:
            text = f"Expected orders of {instrument.code} that a book can be made of, got {what}"
            return Refusal(Reason.SET_ASIDE, f"{text}: start the exchange again, which replays the log")
        fill_anew(self._orders, instrument, self._make_book())
        instrument.buy_stops.clear()
        instrument.sell_stops.clear()
        for order in list(instrument.stops):
            self._wait(instrument, order)
        instrument.set_aside = False
        instrument.frozen = False
        instrument.guards &= ~ASIDE
        events.append(InstrumentRebuilt(instrument.code, len(self._open_orders(instrument))))
        for pair in list(self._killed):
            for order in self._killable(pair):
                self._withdraw(order, CancelReason.KILL, "", events)
        if instrument.day != self.date:
            # Its day ended without it.
            before = instrument.phase
            instrument.enter(Phase.CLOSED)
            events.append(PhaseChanged(instrument.code, Phase.CLOSED, before))
            self._expire(instrument, instrument.phase_rules.expires, events)
            instrument.bound.clear()
        if instrument.deferred and instrument.phase_rules.cancel:
            self._cancel_deferred(instrument, events)
        return None

    # --- phases and auctions -----------------------------------------------------------------------------------------

    def _set_phase(self, command: SetPhase, events: list[Event]) -> Refusal | None:
        instrument = self._by_code.get(command.instrument)
        if instrument is None:
            return unknown_instrument(command.instrument)
        if instrument.day != self.date or self.date == 0:
            return no_day(instrument)
        if instrument.set_aside:
            return set_aside(instrument, "phases")
        before = instrument.phase
        if command.phase not in instrument.phase_rules.following:
            following = ", ".join(phase.label for phase in instrument.phase_rules.following)
            text = f"Expected {following} after {before.label} of {instrument.code}"
            return Refusal(Reason.BAD_TRANSITION, f"{text}, got {phase_label(command.phase)} - at `$.phase`")
        next_rules = instrument.rules.phases[command.phase]
        if next_rules.matching == TRADE and instrument.quote is None:
            refusal = check_uncrossed(instrument)
            if refusal is not None:
                return refusal
        if not 0 <= command.until_ns < 2**63:
            text = f"Expected a time in nanoseconds since the epoch, or 0, got {number(command.until_ns)}"
            return Refusal(Reason.BAD_TRANSITION, f"{text} - at `$.until_ns`")
        if next_rules.matching != TRADE:
            self._interrupt_quote(instrument, events)
        plan: Plan | None = None
        # A halt drops the auction, also one that ended in the non-cancel period before it; the orders stay for the call
        # that re-opens the book (market-rules 7).
        if next_rules.matching == AUCTION and not (instrument.suspended or instrument.dropped or instrument.in_window):
            try:
                plan = self._plan_auction(instrument, next_rules)
            except InvariantBroken as fault:
                self._set_aside(instrument, fault, events)
                return set_aside(instrument, "phases")
        instrument.enter(Phase(command.phase), command.until_ns)  # a caller of the library may send a plain integer
        events.append(PhaseChanged(instrument.code, instrument.phase, before))
        if command.until_ns:
            events.append(PhaseTimed(instrument.code, instrument.phase, command.until_ns))
        self._entered(instrument, plan, events)
        return None

    def _entered(self, instrument: Instrument, plan: Plan | None, events: list[Event]) -> None:
        """What entering its present phase does with a book."""
        rules = instrument.phase_rules
        if rules.matching == AUCTION:
            instrument.dropped = instrument.dropped or instrument.suspended
            if plan is not None:
                if rules.joins:
                    self._join(instrument, rules.joins, events)
                self._carry_out(instrument, plan, events)
                if instrument.quote is not None:
                    instrument.quote.expires = rules.expires  # the auction is not over before the quote is
                elif rules.expires:
                    self._expire(instrument, rules.expires, events)
        else:
            instrument.dropped = instrument.suspended and rules.is_frozen
            if rules.matching == COLLECT:
                self._collect(instrument)
            elif not instrument.suspended and instrument.quote is None:
                self._trade_on(instrument)
            if instrument.phase == Phase.CLOSED:
                self._close_day(instrument)
            if rules.expires:
                self._expire(instrument, rules.expires, events)
            if rules.joins:
                self._join(instrument, rules.joins, events)
        self._sweep(instrument, events)
        if rules.matching == TRADE and not instrument.suspended:
            self._resume_stops(instrument, events)
        if rules.cancel and instrument.deferred:
            self._cancel_deferred(instrument, events)
        if instrument.phase == Phase.CLOSED:
            instrument.bound.clear()

    def _join(self, instrument: Instrument, validities: int, events: list[Event]) -> None:
        """Take waiting orders into the book, behind what rests there, by the time they were entered.

        A funari order rests there already: it gives up its limit, and so its place, but not its time of entry.
        """
        table = self._orders
        if instrument.turns is not None:
            instrument.turns.joined = self.sequence
        for order, joined in instrument.imbalance.items():
            instrument.imbalance[order] = joined or 1 << table.validity(order) & validities != 0
        for order in self._joining(instrument, validities):
            if table.state[order] == WAITING:
                table.state[order] = IN_BOOK
                instrument.book.add(order)
                events.append(self._activated(instrument, order))
            else:
                limit: int = table.price[order]
                self._keep_original(order)
                instrument.book.remove(order)
                table.price[order] = 0
                instrument.book.add(order)
                events.append(self._changed(instrument, order, table.open[order], limit))

    def _cancel_deferred(self, instrument: Instrument, events: list[Event]) -> None:
        """Carry out the mass cancels that waited, as they came; each member's orders are walked once for all of its."""
        table = self._orders
        requests: dict[int, list[int]] = {}  # by member, as places in ``deferred``
        meant: list[list[int]] = []
        for i, request in enumerate(instrument.deferred):
            requests.setdefault(request.participant, []).append(i)
            meant.append([])
        for participant, places in requests.items():
            for order in self._identities.members[participant].open_orders(table):
                if table.instrument(order) != instrument.index:
                    continue
                for i in places:
                    if self._means(instrument.deferred[i], order):
                        meant[i].append(order)
                        break
        for i, request in enumerate(instrument.deferred):
            for order in meant[i]:
                self._withdraw(order, request.reason, request.request_id, events)
        instrument.deferred.clear()
        instrument.deferred_by.clear()

    # --- queries -----------------------------------------------------------------------------------------------------

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
        return list(self._identities.by_name)

    def indicative(self, code: str) -> Equilibrium:
        """What an auction held now would give: price (0: none), volume, surplus. Nothing in a phase that shows none."""
        instrument = self._known(code)
        if not instrument.phase_rules.indicative or instrument.set_aside:
            return Equilibrium(0, 0, 0)
        return self._outlook(instrument)

    def depth(self, code: str) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Bids and asks as (price, quantity), best first. Price 0 comes before all: orders without a limit."""
        instrument = self._known(code)
        return self._side_depth(instrument, BUY), self._side_depth(instrument, SELL)

    def _side_depth(self, instrument: Instrument, side: int) -> list[tuple[int, int]]:
        if instrument.frozen:
            levels: dict[int, int] = {}
            for order in self._queue(instrument, side):
                price = self._orders.price[order]
                levels[price] = levels.get(price, 0) + self._orders.open[order]
            return list(levels.items())
        book = instrument.book
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
        instrument = self._instruments[table.instrument(order_id)]
        return OrderView(
            order_id,
            self._identities.members[table.participant(order_id)].name,
            table.client_order_id[order_id],
            instrument.code,
            SIDES[table.side(order_id)],
            table.price[order_id],
            table.quantity[order_id],
            self._whole(instrument, order_id) if table.is_open(order_id) else 0,
            OrderType(table.order_type(order_id)),
            TimeInForce(table.validity(order_id)),
            table.account[order_id],
            table.state[order_id] == WAITING,
            table.open[order_id] if table.is_open(order_id) and table.state[order_id] != WAITING else 0,
        )

    def order_id(self, participant: str, client_order_id: str) -> int:
        """The number of a member's order; 0: it never had one of that id."""
        member = self._identities.by_name.get(participant)
        return self._identities.find(member, name_of(client_order_id)) if member is not None else 0

    def open_orders(self, participant: str) -> list[OrderView]:
        """A member's open orders, oldest first. Costs a walk through these."""
        member = self._identities.by_name.get(participant)
        if member is None:
            return []
        return [self.order(order) for order in member.open_orders(self._orders)]

    def most_open(self, participant: str) -> int:
        """No less than a member's open orders: how many a mass cancel walks over. Costs nothing."""
        member = self._identities.by_name.get(participant)
        return member.most_open() if member is not None else 0

    def balance(self, participant: str, account: str = "", instrument: str = "") -> Balance:
        """What an account has of an instrument's units, or in yen (""), for pre-funded instruments to count on."""
        return self._funding.balance(participant, account, instrument)

    def queue(self, code: str, side: Side) -> list[int]:
        """The numbers of the orders on one side of a book, in matching priority."""
        return self._queue(self._known(code), side)

    def shown(self, code: str, side: Side) -> list[tuple[int, int, int]]:
        """What one side of a book shows, order by order in matching priority, as (order_id, price, quantity)."""
        table = self._orders
        return [(order, table.price[order], table.open[order]) for order in self.queue(code, side)]

    def digest(self) -> bytes:
        """32 bytes over the whole state: equal digests mean equal markets.

        It covers what decides the future and what answers about the past, and nothing of how a book is built, so every
        book, interpreted or compiled, gives the same. Costs a walk over everything ever accepted.
        """
        return self._digest(ALL, ALL)

    def mark_digest(self) -> bytes:
        """The same for a digest mark, at a cost that neither the log nor what is open makes larger.

        Of what can be many it takes in how many there are, and a part. What is never changed once it is written (ids,
        what became of them, trades) is there whole, hashed block by block as it comes. Of the orders these are the
        newest ``MARK_ROWS``, and as many of the older ones from a place that the sequence decides; of each queue those
        that trade next; of dictionaries the newest keys. While there are not more than that, it is ``digest``.

        A mark holds the digest of all events too, and no order begins, changes or ends without an event: so what the
        part leaves out is vouched for by the events, and the part says that the state is what was told.

        A change of what either is made of raises ``engine.log.digest.STATE_VERSION``: the marks of older logs say
        theirs.
        """
        return self._digest(MARK_ROWS, MARK_ENTRIES)

    def _digest(self, most_rows: int, most: int) -> bytes:
        """At most twice ``most_rows`` orders, and about ``most`` of everything else that can be many."""
        digest = blake2b(digest_size=32)
        table = self._orders
        digest.update(encode([self.sequence, self.time_ns, self.date, self.trades, table.count]))
        digest.update(table.client_order_id.digest())
        digest.update(table.account.digest())
        digest.update(self._identities.digest())
        for start, end in self._windows(most_rows):
            self._digest_rows(start, end, digest)
        each = max(1, most // (len(self._instruments) or 1))
        for instrument in self._instruments:
            digest.update(encode(instrument.key()))
            if not instrument.frozen or most == ALL:  # else only a walk over all rows tells
                for side in (BUY, SELL):
                    digest.update(encode(self._queue(instrument, side, each)))
            digest.update(encode([order for order in instrument.bound[-each:] if table.is_open(order)]))
            digest.update(encode([len(instrument.reserves), len(instrument.stops), len(instrument.imbalance)]))
        digest.update(encode([self._operators.key(most), self._protection_key(most), self._funding.key(most)]))
        for index in sorted(self._policies):
            digest.update(encode([index, self._policies[index].key(each)]))
        digest.update(encode([len(self._decided), newest(self._decided, most)]))
        digest.update(encode(self._reference.key()))
        calendar = self._reference.calendar
        if calendar is not None:
            digest.update(encode([calendar.first, calendar.last, sorted(calendar.holidays)]))
        return digest.digest()

    def _windows(self, most: int) -> list[tuple[int, int]]:
        """Which orders a digest takes in, as (first, behind the last): the newest ``most``, and as many others."""
        count: int = self._orders.count
        if count <= 2 * most:
            return [(1, count + 1)]
        older = count - most
        # Drawn by lot: a step from mark to mark could have a common divisor with their number.
        lot = int.from_bytes(blake2b(encode(self.sequence), digest_size=8).digest(), "big")
        first = 1 + lot % -(-older // most) * most
        return [(first, min(first + most, older + 1)), (older + 1, count + 1)]

    def _digest_rows(self, start: int, end: int, digest: blake2b) -> None:
        """Take in the orders from ``start`` up to but not including ``end``, with what few of them carry besides."""
        table = self._orders
        for first in range(start, end, BLOCK):
            digest.update(table.contents(first, min(first + BLOCK, end)))
        if not self._options and not self._originals:
            return
        for order in range(start, end):
            options = self._options.get(order)
            original = self._originals.get(order, -1)
            if options is not None or original >= 0:
                instrument = self._instruments[table.instrument(order)]
                # More than 64 bits have no encoding as one number; what has fewer stays what marks of older logs have.
                was = original if original < _64_BITS else self._original(order)
                own = [order, was, instrument.reserves.get(order, 0), int(order in instrument.stops)]
                joins = int(instrument.imbalance[order]) if order in instrument.imbalance else -1
                digest.update(encode([own, joins, options.key() if options is not None else []]))

    def check(self) -> None:
        """Raise ``InvariantBroken`` if the state contradicts itself. Costs a walk over everything ever accepted."""
        table = self._orders
        resting: set[int] = set()
        broken: set[int] = set()  # set aside and frozen: what is wrong there has been said
        for instrument in self._instruments:
            if instrument.frozen:
                broken.add(instrument.index)
                resting.update(self._open_orders(instrument))
                continue
            instrument.book.check()
            if (instrument.index in self._quoted) != (instrument.quote is not None):
                raise InvariantBroken(f"A quote of {instrument.code} is in the instrument or the index, not in both")
            if instrument.quote is not None and self._pressing(instrument) == NOBODY:
                raise InvariantBroken(f"A quote of {instrument.code} stands although no orders meet")
            if instrument.phase_rules.matching == TRADE and not instrument.suspended and instrument.quote is None:
                refusal = check_uncrossed(instrument)
                if refusal is not None:
                    raise InvariantBroken(f"{instrument.code} trades continuously with a crossed book: {refusal.text}")
            for order in self._open_orders(instrument):
                if order in resting or table.instrument(order) != instrument.index:
                    raise InvariantBroken(f"Order {order} stands in {instrument.code} twice, or belongs elsewhere")
                resting.add(order)
                if table.price[order] and not instrument.ticks.is_valid(table.price[order]):
                    raise InvariantBroken(f"Order {order} rests off the grid of {instrument.code}")
                if table.state[order] == WAITING and order in instrument.bound and order in instrument.stops:
                    raise InvariantBroken(f"Order {order} waits in {instrument.code} for two things")
            for order, hidden in instrument.reserves.items():
                shown = table.open[order]
                peak = self._options[order].display
                if hidden <= 0 or not 0 < shown <= peak or table.state[order] != IN_BOOK:
                    raise InvariantBroken(f"Order {order} shows {shown} of a peak of {peak} and hides {hidden}")
        for order in range(1, table.count + 1):
            if table.instrument(order) in broken:
                continue
            if not 0 <= self._whole(self._instruments[table.instrument(order)], order) <= table.quantity[order]:
                raise InvariantBroken(f"Order {order} has {table.open[order]} open of {table.quantity[order]}")
            if table.is_open(order) != (order in resting):
                raise InvariantBroken(f"Order {order} is open in the table or in a book, not in both")
        known: list[int] = []
        for member in self._identities.members:
            orders = member.open_orders(table)
            if any(table.participant(order) != member.index for order in orders) or orders != sorted(orders):
                raise InvariantBroken(f"The open orders of {member.name} are not its own, or not in their order")
            known.extend(orders)
        if len(known) != len(resting) or not resting.issuperset(known):
            raise InvariantBroken("The members know of other open orders than the books")
        self._check_protection()
        self._check_eligibility()
        if self._funded and not broken:
            self._funding.verify([(order, self._instruments[table.instrument(order)]) for order in sorted(resting)])
