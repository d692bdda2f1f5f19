"""Everything the engine says, as values: the facts that follow from one command, in order.

Events name their order by the member's own id and by the engine's number, so that a report, a tape and an explanation
need nothing but the event. Private events carry ``participant``; the gateway never shows one member another's.

This module stays interpreted when the engine is compiled: mypyc drops the keywords of a Struct class.
"""

from __future__ import annotations

from msgspec import Struct

from engine.commands import ExchangeCommand
from engine.types import Approval, CancelReason, OrderType, Phase, QuoteKind, Reason, Side, TimeInForce, WindowKind


class _Event(Struct, gc=False, array_like=True):
    """What all events share: an array whose first element names the type."""


# --- private: one member's business ----------------------------------------------------------------------------------


class Accepted(_Event, tag="accepted"):
    """An order is in the market (it may trade or leave at once: see the events behind it)."""

    participant: str
    client_order_id: str
    order_id: int  #: the engine's number, dense from 1, never changes
    instrument: str
    side: Side
    quantity: int
    price: int  #: 0: no limit
    order_type: OrderType
    time_in_force: TimeInForce
    account: str
    display_quantity: int = 0
    repeat: bool = False  #: this answers a command that had been accepted before; nothing happened now
    waiting: bool = False  #: outside the book for now: an untriggered stop, an on-close order before its call


class Rejected(_Event, tag="rejected"):
    """A command was refused and changed nothing."""

    participant: str  #: "" when the exchange's own command was refused
    client_order_id: str  #: the id of the refused command: client_order_id or request_id; "" for the exchange's own
    reason: Reason
    text: str  #: what was expected and what came, and where (``$.price``)
    instrument: str = ""
    repeat: bool = False


class Cancelled(_Event, tag="cancelled"):
    participant: str
    client_order_id: str
    order_id: int
    instrument: str
    side: Side
    price: int
    quantity: int  #: what was still open and is now gone
    reason: CancelReason
    request_id: str = ""  #: the member's request that caused it
    repeat: bool = False
    waiting: bool = False  #: it was outside the book (see Accepted)


class Amended(_Event, tag="amended"):
    participant: str
    client_order_id: str
    order_id: int
    instrument: str
    side: Side
    quantity: int  #: new total, filled part included
    price: int
    open_quantity: int  #: still to trade after the amend
    open_before: int
    price_before: int
    kept_priority: bool
    request_id: str
    repeat: bool = False
    waiting: bool = False


class Activated(_Event, tag="activated"):
    """An order that waited outside the book (see ``Accepted.waiting``) is in it from now on, last at its price.

    Of an imbalance-only order it is what takes part in the auction at hand, all of which trades; the rest still waits.
    """

    participant: str
    client_order_id: str
    order_id: int
    instrument: str
    side: Side
    price: int  #: 0: no limit
    open_quantity: int


class MassCancelled(_Event, tag="mass_cancelled"):
    """Closes the answer to a mass cancel; one ``Cancelled`` per order came before it."""

    participant: str
    request_id: str
    count: int
    repeat: bool = False


class SelfTradePrevented(_Event, tag="prevented"):
    """Two orders of one group would have traded. What became of them is said behind it (market-rules 7)."""

    participant: str
    instrument: str
    price: int  #: at which they would have traded
    quantity: int
    client_order_id: str  #: the incoming order; in an auction the newer one
    order_id: int
    other_client_order_id: str
    other_order_id: int


class CancelFrozen(_Event, tag="frozen"):
    """Until when an order cannot be cancelled: said behind the refusal of a cancel, or behind a mass cancel that waits.

    Said where the exchange has said when the phase ends (``PhaseTimed``).
    """

    participant: str
    request_id: str
    client_order_id: str  #: the order; "" for a mass cancel
    instrument: str
    until: Phase  #: the next phase that takes cancels, or ends the order
    until_ns: int  #: when the present phase is due to end


class KillSwitched(_Event, tag="killed"):
    """The kill switch was put on or off. The orders that it cancels follow."""

    participant: str  #: "" for every member: then this is public
    instrument: str  #: "" for every instrument
    killed: bool  #: off: new orders are taken again
    count: int  #: orders it cancels


class RiskLimitsSet(_Event, tag="risk_limits"):
    """See ``SetRiskLimits``."""

    participant: str
    instrument: str
    quantity_max: int
    value_max: int
    share_alert: int
    share_max: int
    collar: int
    open_orders_max: int
    messages_max: int
    interval_ms: int
    cancel_on_disconnect: bool | None


class LargeOrderAlerted(_Event, tag="large_order"):
    """For the operator: an order for a large share of the units outstanding. It was refused, or its member meant it."""

    participant: str
    client_order_id: str  #: of the order, or of the request that would have made it so large
    instrument: str
    quantity: int
    units_outstanding: int
    confirmed: bool  #: the order stands


class ConnectionLost(_Event, tag="connection_lost"):
    """A member has lost its last connection. The orders that go for it now follow."""

    participant: str
    count: int  #: orders it cancels now
    waiting: int  #: books in which it waits until the auction is over


class OrderMarked(_Event, tag="marked"):
    """Said behind ``Accepted``: what this order trades needs the issuer's approval before it settles."""

    participant: str
    client_order_id: str
    order_id: int
    instrument: str


class BalanceChanged(_Event, tag="balance"):
    """Cash or units of an account were deposited or withdrawn. What trades move, the trades say."""

    participant: str
    account: str
    instrument: str  #: "": yen
    quantity: int  #: yen or units; below 0: withdrawn
    balance: int  #: afterwards, what open orders have locked included
    locked: int
    reference: str


# --- trades: two members' business, and the public's -----------------------------------------------------------------


class Traded(_Event, tag="traded"):
    """One match. The gateway makes a ``fill`` report for each side and a nameless public trade of it."""

    trade_id: int  #: the match number, dense from 1 over the log's life
    instrument: str
    price: int
    quantity: int
    buyer: str
    buy_client_order_id: str
    buy_order_id: int
    buy_open: int  #: still open on the order after this trade
    buy_account: str
    seller: str
    sell_client_order_id: str
    sell_order_id: int
    sell_open: int
    sell_account: str
    maker: int  #: side of the resting order (Side), -1 in an auction
    trade_date: int  #: YYYYMMDD; 0 while no day has been started
    settlement_date: int  #: YYYYMMDD by T+n of the instrument; 0 while no day has been started
    buy_limit: int = 0  #: limit under which the buy order stood in the book; 0: none
    sell_limit: int = 0


class DisplayChanged(_Event, tag="displayed"):
    """An iceberg shows more or less of itself in the book, without a trade; what it has in all stays as it was.

    Of an order without such an event all is shown. Before the whole order takes part in something (a cancel, an amend,
    an auction) it is shown whole.
    """

    participant: str
    client_order_id: str
    order_id: int
    instrument: str
    side: Side
    price: int
    displayed: int
    displayed_before: int


class TradeBusted(_Event, tag="busted"):
    """A trade was an error and is void. The gateway tells each side and the public, settlement undoes it.

    Neither order comes back, and last price and reference price stay: ``SetReferencePrice`` is for that.
    """

    trade_id: int
    instrument: str
    price: int
    quantity: int
    buyer: str
    buy_client_order_id: str
    buy_order_id: int
    buy_account: str
    seller: str
    sell_client_order_id: str
    sell_order_id: int
    sell_account: str
    trade_date: int  #: of the trade, YYYYMMDD
    units_outstanding: int = 0  #: of the instrument: what share of them the trade was is the operator's judgement


# --- public ----------------------------------------------------------------------------------------------------------


class InstrumentListed(_Event, tag="listed"):
    instrument: str
    profile: str
    lot: int
    price_decimals: int
    reference_price: int
    settlement_days: int
    ledger: str


class ReferenceDataSet(_Event, tag="reference_data"):
    """A table or calendar was taken in."""

    kind: str  #: tick_table, limit_table, quote_table, calendar
    name: str
    effective: int


class DayStarted(_Event, tag="day_started"):
    date: int


class DayLimitsSet(_Event, tag="day_limits"):
    """What holds for one book today."""

    instrument: str
    base_price: int  #: 0: none
    lower_limit: int  #: 0: none
    upper_limit: int  #: 0: none


class PhaseChanged(_Event, tag="phase"):
    instrument: str
    phase: Phase
    before: Phase


class PhaseTimed(_Event, tag="phase_timed"):
    """When the present phase of a book is due to end; the exchange's clock ends a call that a rule has opened."""

    instrument: str
    phase: Phase
    until_ns: int  #: nanoseconds since the epoch


class VolatilityInterrupted(_Event, tag="volatility"):
    """The next trade would lie outside the band: trading stops, and a call follows (market-rules 2)."""

    instrument: str
    price: int  #: of the trade that was not made
    reference: int  #: price around which the band lies
    lower: int
    upper: int


class QuoteChanged(_Event, tag="quote"):
    """Orders meet but do not trade: the next price lies too far from the last one (market-rules 6).

    With kind NONE the quote is over: either its trades came before it, or nobody is left to trade with.
    """

    instrument: str
    kind: QuoteKind
    side: Side  #: the side that is pressing: BUY for a bid quote
    price: int  #: 0 when it is over
    due_ns: int  #: when ``RenewQuote`` is due, nanoseconds since the epoch; 0: never, it stands at the day's limit


class ReferencePriceSet(_Event, tag="reference"):
    instrument: str
    price: int


class TradingStateChanged(_Event, tag="trading_state"):
    instrument: str
    suspended: bool


class AuctionUncrossed(_Event, tag="uncrossed"):
    """An auction was held. Its trades follow."""

    instrument: str
    phase: Phase
    price: int  #: 0: no price, nothing traded
    volume: int
    surplus: int
    trades: int


# --- the exchange's own people ---------------------------------------------------------------------------------------


class OperatorRequested(_Event, tag="requested"):
    """An operator asked for a weighty command. It waits for a second operator and has changed nothing so far."""

    operator: str
    request_id: str
    command: ExchangeCommand
    until_ns: int  #: last stamp at which it can be confirmed
    repeat: bool = False


class OperatorActed(_Event, tag="acted"):
    """What an operator asked for has happened: the events before this one, of the same command."""

    operator: str
    request_id: str
    command: ExchangeCommand
    confirmed_by: str = ""  #: the second operator; "" where none was needed
    confirm_id: str = ""  #: under which that one confirmed
    repeat: bool = False


class OperatorRefused(_Event, tag="refused"):
    """What an operator asked for was refused and changed nothing."""

    operator: str
    request_id: str
    reason: Reason
    text: str  #: what was expected and what came
    confirmed_by: str = ""  #: the market refused it when this operator confirmed it
    confirm_id: str = ""
    repeat: bool = False


class OperatorDeclined(_Event, tag="declined"):
    """What an operator asked for will not happen."""

    operator: str  #: who said so
    request_id: str
    requested_by: str
    requested_id: str
    command: ExchangeCommand
    repeat: bool = False


class InstrumentSetAside(_Event, tag="set_aside"):
    """A book contradicts itself. The command that met it has changed nothing more; other instruments trade on.

    The instrument takes no orders until ``RebuildInstrument``.
    """

    instrument: str
    text: str  #: what contradicts what
    frozen: bool  #: cancels have to wait too: the queues themselves cannot be trusted


class InstrumentRebuilt(_Event, tag="rebuilt"):
    """An instrument that was set aside is back, suspended."""

    instrument: str
    orders: int  #: in the market, in its book or waiting


class EligibilitySet(_Event, tag="eligibility"):
    """See ``SetEligibility``."""

    instrument: str
    members_listed: bool
    whitelist: bool
    jurisdictions: list[str]
    investor_types: list[str]
    holding_max: int
    holders_max: int
    approval: Approval


class TokenStatusSet(_Event, tag="token_status"):
    """See ``SetTokenStatus``."""

    instrument: str
    active: bool
    transferable: bool
    paused: bool
    supervision: bool
    termination: bool
    last_day: int


class MemberPermitted(_Event, tag="permitted"):
    """See ``PermitMember``."""

    participant: str
    instrument: str
    permitted: bool


class HolderSet(_Event, tag="holder"):
    """See ``SetHolder``."""

    instrument: str
    participant: str
    account: str
    registered: bool
    jurisdiction: str
    investor_type: str
    holding_max: int
    lock_up: int
    lock_up_until: int


class WindowSet(_Event, tag="window"):
    """See ``SetWindow``."""

    instrument: str
    kind: WindowKind
    first: int
    last: int
    purge: bool


class TransferDecided(_Event, tag="transfer_decided"):
    """See ``ApproveTransfer``."""

    trade_id: int
    instrument: str
    approved: bool
    reference: str


class WindowBegan(_Event, tag="window_began"):
    """The instrument takes no orders up to and including ``last``. What it cancels follows."""

    instrument: str
    kind: WindowKind
    last: int
    purge: bool


Event = (
    Accepted
    | Rejected
    | Cancelled
    | Amended
    | Activated
    | MassCancelled
    | SelfTradePrevented
    | DisplayChanged
    | Traded
    | InstrumentListed
    | ReferenceDataSet
    | DayStarted
    | DayLimitsSet
    | PhaseChanged
    | ReferencePriceSet
    | TradingStateChanged
    | AuctionUncrossed
    | CancelFrozen
    | KillSwitched
    | RiskLimitsSet
    | LargeOrderAlerted
    | ConnectionLost
    | TradeBusted
    | PhaseTimed
    | VolatilityInterrupted
    | OperatorRequested
    | OperatorActed
    | OperatorRefused
    | OperatorDeclined
    | OrderMarked
    | BalanceChanged
    | InstrumentSetAside
    | InstrumentRebuilt
    | EligibilitySet
    | TokenStatusSet
    | MemberPermitted
    | HolderSet
    | WindowSet
    | WindowBegan
    | TransferDecided
    | QuoteChanged
)
