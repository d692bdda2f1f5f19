"""The messages on the bus: MessagePack, a map on the outside, arrays where there are many.

``docs/asyncapi.yaml`` describes the same for other languages; ``tests`` compare the two.

A member publishes ``Inbound`` to its ``in`` topic and reads ``Outbound`` from its ``out`` topic (``topics.py``); an
operator ``OperatorInbound`` and ``OperatorOutbound``. Everybody reads market data. Correlation lives in the payload, so
the contract is the same on MQTT 3.1.1 and 5.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from engine.commands import ClientOrderId, ExchangeCommand
from engine.events import (
    Accepted,
    Activated,
    Amended,
    BalanceChanged,
    CancelFrozen,
    Cancelled,
    ConnectionLost,
    Event,
    KillSwitched,
    MassCancelled,
    OperatorRequested,
    OrderMarked,
    Rejected,
    RiskLimitsSet,
    SelfTradePrevented,
)
from engine.types import OrderType, Side, TimeInForce

#: Most commands in one message; a larger batch is refused whole.
BATCH_MAX: Final = 1_000
#: Largest payload that is looked at, in bytes.
PAYLOAD_MAX: Final = 256 * 1024
#: Longest ``message_id``.
MESSAGE_ID_MAX: Final = 36

NOTHING: Final = msgspec.Raw(b"\x90")  #: an empty MessagePack array


# --- member to exchange ----------------------------------------------------------------------------------------------


class Presence(Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """A session of a member that wants its orders cancelled when it is gone says so; its last will says that it left.

    When the last such session of a member has been gone for a moment (``limits.disconnect_after_ms``), the market
    cancels what its rules say. A session that never says it is here leaves nothing behind.
    """

    session: Annotated[str, Meta(min_length=1, max_length=36)]  #: tells one session of the member from another
    here: bool


class Inbound(Struct, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """One message of a member: a batch of commands, or a question.

    ``commands`` is an array of ``engine.commands.MemberCommand``, kept as raw bytes: they go into the log as they came.
    """

    v: Literal[1] = 1
    message_id: Annotated[str, Meta(max_length=MESSAGE_ID_MAX)] = ""  #: echoed when the message as a whole is answered
    commands: msgspec.Raw = NOTHING
    resend_from: Annotated[int, Meta(ge=1, le=2**53)] | None = None  #: ask for reports from this number on
    open_orders: bool = False  #: ask for one's open orders
    presence: Presence | None = None  #: alone in its message


# --- exchange to member ----------------------------------------------------------------------------------------------


class Fill(Struct, array_like=True, gc=False, tag="fill"):
    """One side of a trade, for its owner."""

    participant: str
    client_order_id: str
    order_id: int
    instrument: str
    side: Side
    price: int
    quantity: int  #: of this fill
    open_quantity: int  #: still open on the order
    trade_id: int
    auction: bool
    counterparty: str
    account: str
    trade_date: int
    settlement_date: int


class Bust(Struct, array_like=True, gc=False, tag="bust"):
    """One side of a trade that was an error and is void, for its owner. The order does not come back."""

    participant: str
    client_order_id: str
    order_id: int
    instrument: str
    side: Side
    price: int
    quantity: int
    trade_id: int
    counterparty: str
    account: str
    trade_date: int


PrivateEvent = (
    Accepted
    | Rejected
    | Cancelled
    | Amended
    | MassCancelled
    | Activated
    | SelfTradePrevented
    | OrderMarked
    | BalanceChanged
    | Fill
    | Bust
    | CancelFrozen
    | KillSwitched
    | RiskLimitsSet
    | ConnectionLost
)


class Report(Struct, array_like=True, gc=False):
    """A fact about a member's business. Its number is that of its place: ``Reports.first`` plus its index."""

    sequence: int  #: of the command it follows from
    time_ns: int
    event: PrivateEvent


class Reports(Struct, gc=False, tag_field="kind", tag="reports"):
    """Reports are numbered per member, dense from 1, and can be asked for again from any number on."""

    first: int  #: number of the first report in here
    reports: list[Report]
    resent: bool = False
    v: Literal[1] = 1


class OpenOrder(Struct, array_like=True, gc=False):
    client_order_id: str
    order_id: int
    instrument: str
    side: Side
    price: int
    quantity: int  #: total, filled part included
    open_quantity: int
    order_type: OrderType
    time_in_force: TimeInForce
    account: str


class OpenOrders(Struct, gc=False, tag_field="kind", tag="open_orders"):
    next_report: int  #: the orders are as of just before this report
    orders: list[OpenOrder]
    message_id: str = ""
    more: bool = False  #: another part of the same answer follows (a message stays below a few hundred kilobytes)
    v: Literal[1] = 1


class Hello(Struct, gc=False, tag_field="kind", tag="hello"):
    """Said to every member when the exchange (re)starts or finds its broker again, and as the end of a resend.

    It lets a client see a gap. One answer to ``resend_from`` carries a bounded number of reports; a client that still
    misses some below ``next_report`` asks again from its own next number.
    """

    next_report: int
    sequence: int  #: last command applied
    v: Literal[1] = 1


class MessageError(Struct, gc=False, tag_field="kind", tag="error"):
    """A message as a whole was not taken: none of its commands has a sequence, none had an effect."""

    code: Literal["MALFORMED", "TOO_LARGE", "THROTTLED", "RETAINED", "UNKNOWN_MEMBER", "NOT_AVAILABLE", "NOT_PERMITTED"]
    text: str  #: what was expected, what came
    place: str = "$"  #: where, for instance ``$.commands[2].price``
    message_id: str = ""
    retry_after_ms: int = 0  #: THROTTLED: when to try again
    first_available: int = 0  #: NOT_AVAILABLE: first report number that can still be resent
    v: Literal[1] = 1


Outbound = Reports | OpenOrders | Hello | MessageError


# --- operator to exchange, and back ----------------------------------------------------------------------------------


class RequestCommand(Struct, array_like=True, forbid_unknown_fields=True, gc=False, tag="request"):
    """Ask for a command of the exchange. A weighty one waits for a second operator (``gateway.operators``)."""

    request_id: ClientOrderId  #: chosen by the operator, unique per operator for the log's life
    command: ExchangeCommand


class Confirm(Struct, array_like=True, forbid_unknown_fields=True, gc=False, tag="confirm"):
    """Agree to another operator's request, which takes effect with this."""

    request_id: ClientOrderId
    operator: ClientOrderId  #: who asked
    requested_id: ClientOrderId  #: under which id


class Decline(Struct, array_like=True, forbid_unknown_fields=True, gc=False, tag="decline"):
    """Take back one's own request, or decline another operator's."""

    request_id: ClientOrderId
    operator: ClientOrderId  #: who asked
    requested_id: ClientOrderId  #: under which id


class OperatorInbound(Struct, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """One message of an operator: what is wished, or a question."""

    v: Literal[1] = 1
    message_id: Annotated[str, Meta(max_length=MESSAGE_ID_MAX)] = ""  #: echoed when the message as a whole is answered
    commands: Annotated[list[RequestCommand | Confirm | Decline], Meta(max_length=100)] = []
    resend_from: Annotated[int, Meta(ge=1, le=2**53)] | None = None  #: ask for reports from this number on
    waiting: bool = False  #: ask what waits for a second operator


class ControlReport(Struct, array_like=True, gc=False):
    """What happened in the control of the market. Its number is that of its place, as in ``Reports``."""

    sequence: int  #: of the command it follows from
    time_ns: int
    event: Event


class ControlReports(Struct, gc=False, tag_field="kind", tag="control"):
    """One row for all operators, dense from 1: what each of them asked for and what became of it, and what the
    exchange itself did to the market."""

    first: int  #: number of the first report in here
    reports: list[ControlReport]
    resent: bool = False
    v: Literal[1] = 1


class WaitingRequests(Struct, gc=False, tag_field="kind", tag="waiting"):
    """What a second operator can confirm now, oldest first."""

    next_report: int  #: as of just before this report
    requests: list[OperatorRequested]
    message_id: str = ""
    v: Literal[1] = 1


OperatorOutbound = ControlReports | WaitingRequests | Hello | MessageError


# --- market data -----------------------------------------------------------------------------------------------------
# ``n`` counts the messages of one instrument over all kinds but ``snapshot``, dense from 1: a hole is a lost message.
# Whenever the exchange starts again, ``n`` jumps ahead to a number never used before, and the snapshot says so first: a
# subscriber meets a hole, takes the snapshot, and goes on.


class Level(Struct, array_like=True, gc=False):
    price: int  #: 0: market orders
    quantity: int  #: 0: the level is gone


class Indicative(Struct, gc=False, tag_field="kind", tag="indicative"):
    """During a call, what the book would do were the auction now."""

    n: int
    time_ns: int
    price: int  #: 0: no price
    volume: int
    surplus: int  #: buys minus sells left at the price
    v: Literal[1] = 1


class AuctionResult(Struct, gc=False, tag_field="kind", tag="auction"):
    n: int
    time_ns: int
    phase: int
    price: int
    volume: int
    surplus: int
    trades: int
    v: Literal[1] = 1


class PublicTrade(Struct, array_like=True, gc=False):
    trade_id: int
    price: int
    quantity: int
    maker: int  #: side of the resting order, -1 in an auction
    time_ns: int = 0


class Trades(Struct, gc=False, tag_field="kind", tag="trades"):
    n: int
    time_ns: int  #: of the last one in here
    trades: list[PublicTrade]
    v: Literal[1] = 1


class Depth(Struct, gc=False, tag_field="kind", tag="depth"):
    """New total quantity of every level that changed."""

    n: int
    time_ns: int
    bids: list[Level]
    asks: list[Level]
    digest: int | None = None  #: now and then: crc32 over the whole book after this message, see ``marketdata.digest``
    v: Literal[1] = 1


class PhaseMessage(Struct, gc=False, tag_field="kind", tag="phase"):
    n: int
    time_ns: int
    phase: str  #: START's name, for instance PreOpenNCP
    suspended: bool
    trading_date: int
    until_ns: int = 0  #: when this phase is due to end; 0: not said
    v: Literal[1] = 1


class TradeBust(Struct, gc=False, tag_field="kind", tag="bust"):
    """A trade of the tape was an error and is void."""

    n: int
    time_ns: int
    trade_id: int
    price: int
    quantity: int
    trade_date: int  #: of the trade: it no longer counts in the volume of that day
    v: Literal[1] = 1


class QuoteMessage(Struct, gc=False, tag_field="kind", tag="quote"):
    """Orders meet but do not trade, since the next price lies too far from the last one: the book collects."""

    n: int
    time_ns: int
    quote: str  #: special, sequential; none: it is over
    side: Side  #: the side that is pressing
    price: int  #: 0 when it is over
    due_ns: int  #: when it moves on, or an itayose decides; 0: never, it stands at the day's limit
    v: Literal[1] = 1


class Snapshot(Struct, gc=False, tag_field="kind", tag="snapshot"):
    """All a newcomer needs (retained). Continue with the messages numbered above ``n``."""

    n: int
    time_ns: int
    instrument: str
    phase: str
    suspended: bool
    trading_date: int
    price_decimals: int
    lot: int
    reference_price: int
    lower_limit: int
    upper_limit: int
    last_price: int
    last_quantity: int
    volume: int  #: traded today
    indicative_price: int
    indicative_volume: int
    indicative_surplus: int
    bids: list[Level]  #: best first; price 0 (market orders) before all
    asks: list[Level]
    digest: int
    quote: str = "none"  #: see the message of that kind
    quote_side: Side = Side.BUY
    quote_price: int = 0
    quote_due_ns: int = 0
    supervision: bool = False  #: START's attention flag
    termination: bool = False  #: START's flag of a delisting to come
    in_window: bool = False  #: a record date, a distribution or a freeze: it takes no orders
    set_aside: bool = False  #: out of the market until its book is made anew
    v: Literal[1] = 1
    market: str = ""  #: whose it is, where several markets share a broker


MarketData = Indicative | AuctionResult | Trades | Depth | PhaseMessage | TradeBust | QuoteMessage | Snapshot


# --- market data, order by order -------------------------------------------------------------------------------------
# A row of its own: ``n`` counts the messages of changes of one instrument, and jumps as that of the other market data.
# Orders are known by the engine's number and nothing else; of an iceberg only what it shows is told.


class OrderAdded(Struct, array_like=True, gc=False, tag="added"):
    """An order is in the book, last at its price."""

    order_id: int
    side: Side
    price: int  #: 0: no limit
    quantity: int  #: what it shows


class OrderExecuted(Struct, array_like=True, gc=False, tag="executed"):
    """An order in the book has traded. It leaves when nothing more shows."""

    order_id: int
    quantity: int  #: in an auction perhaps more than it showed
    price: int
    trade_id: int


class OrderDeleted(Struct, array_like=True, gc=False, tag="deleted"):
    order_id: int


class OrderResized(Struct, array_like=True, gc=False, tag="resized"):
    """An order shows another quantity, in its place."""

    order_id: int
    quantity: int


class OrderReplaced(Struct, array_like=True, gc=False, tag="replaced"):
    """An order has a new price, quantity or place: last at its price."""

    order_id: int
    price: int
    quantity: int


class OrderReplenished(Struct, array_like=True, gc=False, tag="replenished"):
    """An iceberg whose peak has traded shows a fresh one, last at its price."""

    order_id: int
    side: Side
    price: int
    quantity: int


OrderChange = OrderAdded | OrderExecuted | OrderDeleted | OrderResized | OrderReplaced | OrderReplenished


class OrderChanges(Struct, gc=False, tag_field="kind", tag="changes"):
    """What happened to a book, one after the other."""

    n: int
    time_ns: int
    changes: list[OrderChange]
    digest: int | None = None  #: now and then: over the whole book after this message, see ``OrderBook.digest``
    v: Literal[1] = 1


class BookOrder(Struct, array_like=True, gc=False):
    order_id: int
    side: Side
    price: int
    quantity: int  #: what it shows


class OrdersSnapshot(Struct, gc=False, tag_field="kind", tag="orders"):
    """Every order of a book (retained), in parts when there are many. Continue with the changes numbered above ``n``.

    The parts of one snapshot have the same ``n``; orders stand in matching priority, bids before asks.
    """

    n: int
    time_ns: int
    instrument: str
    part: int  #: from 0
    parts: int
    orders: list[BookOrder]
    digest: int  #: over the whole book
    v: Literal[1] = 1


OrderData = OrderChanges | OrdersSnapshot


class Status(Struct, gc=False, tag_field="kind", tag="status"):
    """Retained on ``dojima/v1/status``; the broker publishes state ``down`` (last will) when the exchange goes away."""

    state: Literal["up", "down"]
    sequence: int = 0
    time_ns: int = 0
    trading_date: int = 0
    v: Literal[1] = 1
    market: str = ""  #: whose it is, where several markets share a broker
