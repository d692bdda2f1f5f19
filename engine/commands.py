"""Everything that can happen to a market, as values.

A command says *what* is wished. *Who* wishes it and *when* travel beside it (``participant`` and ``time_ns`` of
``Engine.apply``), so that a payload can never name its own sender. The number is given by the sequencer.

Arrays on the wire and in the log: ``["new", "a-1", "KDX-2107", 0, 10, 100000]``. Fields are only ever appended, with a
default. Members may send the types of ``MemberCommand``; all others belong to the exchange, whose operators ask for
them by ``OperatorCommand``.

This module stays interpreted when the engine is compiled: mypyc drops the keywords of a Struct class.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from engine.types import (
    PRICE_MAX,
    QUANTITY_MAX,
    Approval,
    OrderType,
    Phase,
    SelfTrade,
    Side,
    TimeInForce,
    WindowKind,
)

#: A member firm. Topics and logins carry it, never a payload.
PARTICIPANT_PATTERN = r"^[a-z0-9-]{1,16}$"
INSTRUMENT_PATTERN = r"^[A-Z0-9-]{1,12}$"

# The decoder checks lengths only: matching four patterns took two thirds of the time that an order took to decode, and
# the engine answers a malformed text anyway, with words. The patterns are for whoever reads the contract.
ClientOrderId = Annotated[str, Meta(min_length=1, max_length=36, extra_json_schema={"pattern": r"^[!-~]+$"})]
"""Chosen by the member; unique per member for the log's life, over orders and requests alike."""
InstrumentCode = Annotated[str, Meta(min_length=1, max_length=12, extra_json_schema={"pattern": INSTRUMENT_PATTERN})]
InstrumentOrAll = Annotated[str, Meta(max_length=12, extra_json_schema={"pattern": r"^[A-Z0-9-]*$"})]
Account = Annotated[str, Meta(max_length=32, extra_json_schema={"pattern": r"^[!-~]*$"})]
"""The member's own opaque client reference; no personal data."""
Participant = Annotated[str, Meta(min_length=1, max_length=16, extra_json_schema={"pattern": PARTICIPANT_PATTERN})]
ParticipantOrAll = Annotated[str, Meta(max_length=16, extra_json_schema={"pattern": r"^[a-z0-9-]*$"})]
Tag = Annotated[str, Meta(max_length=16, extra_json_schema={"pattern": r"^[!-~]*$"})]
"""A word of the issuer's, for instance ``JP`` or ``professional``."""
Price = Annotated[int, Meta(ge=0, le=PRICE_MAX)]
"""Whole price units of the instrument; 0 means none."""
Quantity = Annotated[int, Meta(ge=0, le=QUANTITY_MAX)]
"""Whole token units."""
Date = Annotated[int, Meta(ge=0, le=99991231)]
"""A business date as YYYYMMDD, for instance 20261124; 0 means none."""
Yen = Annotated[int, Meta(ge=0, le=2**53)]
BasisPoints = Annotated[int, Meta(ge=0, le=1_000_000)]
"""Hundredths of a percent; 0 means none."""
Count = Annotated[int, Meta(ge=0, le=2**31)]
Time = Annotated[int, Meta(ge=0, le=2**63 - 1)]
"""Nanoseconds since the epoch (UTC); 0 means none."""


class _Command(Struct, gc=False, array_like=True, forbid_unknown_fields=True):
    """What all commands share: an array whose first element names the type."""


# --- what a member may send ------------------------------------------------------------------------------------------


class NewOrder(_Command, tag="new"):
    client_order_id: ClientOrderId
    instrument: InstrumentCode
    side: Side
    quantity: Quantity
    price: Price = 0  #: 0 for orders without a limit
    order_type: OrderType = OrderType.LIMIT
    time_in_force: TimeInForce = TimeInForce.DAY
    account: Account = ""
    display_quantity: Quantity = 0  #: iceberg peak; 0 shows everything
    stop_price: Price = 0
    minimum_quantity: Quantity = 0
    post_only: bool = False
    self_trade: SelfTrade = SelfTrade.DEFAULT
    expire_date: Date = 0  #: last day of a GTD order
    confirmed: bool = False  #: its member means it, although it is a large share of the units outstanding


class CancelOrder(_Command, tag="cancel"):
    request_id: ClientOrderId
    client_order_id: ClientOrderId  #: the order to cancel


class AmendOrder(_Command, tag="amend"):
    """Change price or quantity. A smaller quantity keeps priority, anything else loses it (market-rules 7)."""

    request_id: ClientOrderId
    client_order_id: ClientOrderId  #: the order to change
    quantity: Quantity = 0  #: new total of the order, filled part included; 0 leaves it
    price: Price = 0  #: new limit; 0 leaves it
    confirmed: bool = False  #: see ``NewOrder.confirmed``


class MassCancel(_Command, tag="mass_cancel"):
    """Cancel this member's open orders that meet every condition given; none given: all of them."""

    request_id: ClientOrderId
    instrument: InstrumentOrAll = ""
    side: Side | None = None
    price_from: Price = 0
    price_to: Price = 0
    account: Account = ""


# --- what the exchange sends -----------------------------------------------------------------------------------------


class TickRow(Struct, array_like=True, frozen=True):
    """``tick`` holds for prices from ``start`` on, up to the next row's start (market-rules 3.2: ``up(p)``)."""

    start: Price
    tick: Price


class LimitRow(Struct, array_like=True, frozen=True):
    """Daily limit width for base prices below ``below`` (market-rules 5.2)."""

    below: Price  #: 0 closes the table: any base price
    width: Price


class SetTickTable(_Command, tag="set_tick_table"):
    table: str
    effective: Date  #: first trading day on which it holds; 0: from the next day started
    rows: list[TickRow]


class SetLimitTable(_Command, tag="set_limit_table"):
    table: str
    effective: Date
    rows: list[LimitRow]


class SetQuoteTable(_Command, tag="set_quote_table"):
    """Special-quote widths for last prices below ``below`` (market-rules 5.3)."""

    table: str
    effective: Date
    rows: list[LimitRow]


class SetCalendar(_Command, tag="set_calendar"):
    """Business days are weekdays that are not in ``holidays``; dates outside first..last are refused, never guessed."""

    first: Date
    last: Date
    holidays: list[Date]


class ListInstrument(_Command, tag="list"):
    """Bring an instrument to the market. It trades from the next ``StartDay`` on."""

    instrument: InstrumentCode
    profile: str = "START"  #: START, TSE_HYBRID, CONTINUOUS, N_CALLS
    reference_price: Price = 0  #: 0: none yet
    lot: Quantity = 1
    price_decimals: Annotated[int, Meta(ge=0, le=8)] = 0  #: a price unit is 10**-price_decimals yen
    tick_table: str = "one"
    limit_table: str = "none"
    settlement_days: Annotated[int, Meta(ge=0, le=30)] = 2
    ledger: str = "embedded"  #: which ledger adapter settles it
    units_outstanding: Quantity = 0
    rules: dict[str, int | str] = {}  #: deviations from the profile, see ``engine/profiles.py``


class StartDay(_Command, tag="start_day"):
    """Begin trading day ``date``: tables become effective, base prices and the day's limits are fixed."""

    date: Date


class SetPhase(_Command, tag="phase"):
    """Move one book to its next phase. Entering an auction phase runs that auction, whole, in this one command."""

    instrument: InstrumentCode
    phase: Phase
    until_ns: Time = 0  #: when this phase is due to end; refusals of cancels name it
    delay_ms: Count = 0  #: a random end: how much later than the timetable the phase begins, as the gateway drew it


class SetReferencePrice(_Command, tag="reference"):
    instrument: InstrumentCode
    price: Price


class SuspendInstrument(_Command, tag="suspend"):
    """START's `V`. Orders stay; what the book refuses meanwhile is a rule of the instrument."""

    instrument: InstrumentCode


class ResumeInstrument(_Command, tag="resume"):
    """START's `T`. Where the rule ``reopen_call_seconds`` says so, a call re-opens the book (market-rules 7)."""

    instrument: InstrumentCode


class RenewQuote(_Command, tag="renew_quote"):
    """The time of a book's special or sequential trade quote has passed (market-rules 6). Refused before it has."""

    instrument: InstrumentCode


class Kill(_Command, tag="kill"):
    """The kill switch: cancel what is open, at once in every phase, and refuse new orders until ``Restore``.

    Of one member, of one instrument, of a member in an instrument, or of all: "" means every one.
    """

    participant: ParticipantOrAll = ""
    instrument: InstrumentOrAll = ""


class Restore(_Command, tag="restore"):
    """Take back the ``Kill`` that named the same; others stay on."""

    participant: ParticipantOrAll = ""
    instrument: InstrumentOrAll = ""


class SetRiskLimits(_Command, tag="set_risk_limits"):
    """Pre-trade limits of members in instruments (market-rules 7), in place of those set for the same pair; 0: none.

    ``participant`` "" means each member by itself. ``instrument`` "" means any instrument; open orders and messages are
    then counted over all of them together. An order has to pass the limits of every pair that it falls under.
    """

    participant: ParticipantOrAll = ""
    instrument: InstrumentOrAll = ""
    quantity_max: Quantity = 0  #: of one order
    value_max: Yen = 0  #: of one order, at the worst price it can get
    share_alert: BasisPoints = 0  #: above this share of the units outstanding an order has to be confirmed
    share_max: BasisPoints = 0  #: above this share it is refused
    collar: BasisPoints = 0  #: how far from the last price a limit may be
    open_orders_max: Count = 0
    messages_max: Count = 0  #: orders and amends taken in one interval; cancels are free
    interval_ms: Count = 1000  #: intervals begin at multiples of it since the epoch
    cancel_on_disconnect: bool | None = None  #: none: as the instrument's rule has it


class Disconnected(_Command, tag="disconnected"):
    """A member has lost its last connection: its orders go where ``cancel_on_disconnect`` says so (market-rules 7).

    A non-cancel period holds it up until the auction is over.
    """

    participant: ParticipantOrAll


class BustTrade(_Command, tag="bust"):
    """Cancel a trade that was an error. The orders stay as they are, last price and statistics too."""

    trade_id: Annotated[int, Meta(ge=1)]


class RebuildInstrument(_Command, tag="rebuild"):
    """Bring back an instrument that was set aside, with a book made anew from its orders.

    It comes back suspended: a call and ``ResumeInstrument`` let it trade again.
    """

    instrument: InstrumentCode


class SetEligibility(_Command, tag="set_eligibility"):
    """Who may trade and hold a token (market-rules 8), in place of what was set before."""

    instrument: InstrumentCode
    members_listed: bool = False  #: only members whom ``PermitMember`` names; else all whom it does not bar
    whitelist: bool = False  #: only accounts that ``SetHolder`` registers
    jurisdictions: list[Tag] = []  #: of buyers; none given: any
    investor_types: list[Tag] = []  #: of buyers; none given: any
    holding_max: Quantity = 0  #: units of one account; 0: any number
    holders_max: Count = 0  #: accounts; 0: any number
    approval: Approval = Approval.NONE


class SetTokenStatus(_Command, tag="set_token_status"):
    instrument: InstrumentCode
    active: bool = True
    transferable: bool = True
    paused: bool = False
    supervision: bool = False  #: START's attention flag: shown, refuses nothing
    termination: bool = False  #: START's termination flag, for a delisting to come: shown, refuses nothing
    last_day: Date = 0  #: last trading day; afterwards no order is taken and none is left


class PermitMember(_Command, tag="permit"):
    participant: Participant
    instrument: InstrumentCode
    permitted: bool = True


class SetHolder(_Command, tag="set_holder"):
    """What the issuer's register says of an account, in place of what it said before."""

    instrument: InstrumentCode
    participant: Participant
    account: Account = ""
    registered: bool = True
    jurisdiction: Tag = ""
    investor_type: Tag = ""
    holding_max: Quantity = 0  #: units; 0: as the token has it
    lock_up: Quantity = 0  #: units that may not be sold …
    lock_up_until: Date = 0  #: … up to and including this day; 0: until further notice


class SetWindow(_Command, tag="set_window"):
    """Days on which an instrument takes no orders. ``kind`` and ``first`` name the window."""

    instrument: InstrumentCode
    kind: WindowKind
    first: Date
    last: Date = 0  #: 0 takes the window back
    purge: bool = True  #: resting orders are cancelled when it begins; else they stay, and nothing trades


class ApproveTransfer(_Command, tag="approve_transfer"):
    """The issuer has decided about the transfer of a trade (market-rules 8); settlement waits where it must."""

    trade_id: Annotated[int, Meta(ge=1)]
    reference: ClientOrderId  #: what the decision is kept under, at the issuer's
    approved: bool = True


class Deposit(_Command, tag="deposit"):
    """Cash or units of an account that pre-funded instruments may count on."""

    reference: ClientOrderId  #: of the one who books it; each is booked once
    participant: Participant
    account: Account
    quantity: Yen  #: yen, or units of ``instrument``
    instrument: InstrumentOrAll = ""  #: "": yen


class Withdraw(_Command, tag="withdraw"):
    """Take back what no open order has locked."""

    reference: ClientOrderId
    participant: Participant
    account: Account
    quantity: Yen
    instrument: InstrumentOrAll = ""


MemberCommand = NewOrder | CancelOrder | AmendOrder | MassCancel
ExchangeCommand = (
    SetTickTable
    | SetLimitTable
    | SetQuoteTable
    | SetCalendar
    | ListInstrument
    | StartDay
    | SetPhase
    | SetReferencePrice
    | SuspendInstrument
    | ResumeInstrument
    | Kill
    | Restore
    | SetRiskLimits
    | Disconnected
    | BustTrade
    | RebuildInstrument
    | SetEligibility
    | SetTokenStatus
    | PermitMember
    | SetHolder
    | SetWindow
    | ApproveTransfer
    | Deposit
    | Withdraw
    | RenewQuote
)


# --- what the exchange's own people send -----------------------------------------------------------------------------
# As the gateway writes it into the log: the operator's name comes from the login, never from a payload.


class OperatorRequest(_Command, tag="operator_request"):
    """An operator asks for a command of the exchange."""

    operator: Annotated[str, Meta(max_length=16)]
    request_id: ClientOrderId  #: chosen by the operator, unique per operator for the log's life
    command: ExchangeCommand
    confirm_ns: Annotated[int, Meta(ge=0, le=2**62)] = 0  #: how long it waits for a second operator; 0: not at all


class OperatorConfirm(_Command, tag="operator_confirm"):
    """A second operator agrees: what was asked takes effect with this command."""

    operator: Annotated[str, Meta(max_length=16)]
    request_id: ClientOrderId
    requested_by: Annotated[str, Meta(max_length=16)]
    requested_id: ClientOrderId


class OperatorDecline(_Command, tag="operator_decline"):
    """What was asked will not happen: said by whoever asked, or by another operator."""

    operator: Annotated[str, Meta(max_length=16)]
    request_id: ClientOrderId
    requested_by: Annotated[str, Meta(max_length=16)]
    requested_id: ClientOrderId


OperatorCommand = OperatorRequest | OperatorConfirm | OperatorDecline
Command = MemberCommand | ExchangeCommand | OperatorCommand
