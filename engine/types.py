"""The words of the market: sides, order types, validities, phases, reasons.

Small integers on the wire and in the log, names in Python. The numbers are part of the message contract
(``docs/asyncapi.yaml``) and of every log ever written: never renumber, only append.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

#: Largest price, in price units of the instrument. Fits the 53 bits that JavaScript clients can hold.
PRICE_MAX: Final = 2**48
#: Largest quantity of one order, in whole token units.
QUANTITY_MAX: Final = 2**40
#: Price times quantity of one order stays below this, so that every sum of money fits a signed 64-bit integer.
VALUE_MAX: Final = 2**62


class Side(IntEnum):
    BUY = 0
    SELL = 1


#: By number: calling an enum takes ten times as long as looking it up.
SIDES: Final = [Side.BUY, Side.SELL]


class OrderType(IntEnum):
    """How an order is priced (market-rules 7)."""

    LIMIT = 0
    MARKET = 1
    MARKET_TO_LIMIT = 2  #: trades like a market order, the rest becomes a limit at the price of its last fill
    STOP = 3  #: becomes MARKET when the last price reaches ``stop_price``
    STOP_LIMIT = 4  #: becomes LIMIT when the last price reaches ``stop_price``
    IMBALANCE_ONLY = 5  #: outside the book; in an auction it fills what the other side has left over, up to its limit


class TimeInForce(IntEnum):
    """How long an order lives (market-rules 7)."""

    DAY = 0
    IOC = 1
    FOK = 2
    GTC = 3
    GTD = 4
    ON_OPEN = 5
    ON_CLOSE = 6
    FUNARI = 7


class Phase(IntEnum):
    """State of one book. The first eight carry START's own names and follow one another (market-rules 1)."""

    CLOSED = 0
    PRE_OPEN = 1
    PRE_OPEN_NCP = 2
    OPENING_AUCTION = 3
    BREAK = 4
    PRE_CLOSE = 5
    PRE_CLOSE_NCP = 6
    CLOSING_AUCTION = 7
    CONTINUOUS = 8  #: zaraba
    CALL = 9  #: a call outside the day's two: re-opening after a halt, volatility, N calls a day
    CALL_AUCTION = 10
    CALL_NCP = 11  #: the non-cancel period of such a call

    @property
    def label(self) -> str:
        """The name START prints, for instance ``PreOpenNCP``."""
        return PHASE_LABELS[self]


PHASE_LABELS: Final = {
    Phase.CLOSED: "Closed",
    Phase.PRE_OPEN: "PreOpen",
    Phase.PRE_OPEN_NCP: "PreOpenNCP",
    Phase.OPENING_AUCTION: "OpeningAuction",
    Phase.BREAK: "Break",
    Phase.PRE_CLOSE: "PreClose",
    Phase.PRE_CLOSE_NCP: "PreCloseNCP",
    Phase.CLOSING_AUCTION: "ClosingAuction",
    Phase.CONTINUOUS: "Continuous",
    Phase.CALL: "Call",
    Phase.CALL_AUCTION: "CallAuction",
    Phase.CALL_NCP: "CallNCP",
}


class SelfTrade(IntEnum):
    """What happens when an order would trade with its own group (market-rules 7)."""

    DEFAULT = 0  #: as the instrument's rules say
    NONE = 1
    CANCEL_NEWEST = 2
    CANCEL_OLDEST = 3
    CANCEL_BOTH = 4
    DECREMENT = 5  #: both lose the quantity of the smaller one
    REJECT = 6  #: the order is refused before any trade; in an auction as CANCEL_NEWEST


class QuoteKind(IntEnum):
    """What keeps a book from trading although it could: the next price would be too far away (market-rules 6)."""

    NONE = 0  #: nothing
    SPECIAL = 1  #: special quote: the next price lies outside the width around the last one
    SEQUENTIAL = 2  #: sequential trade quote: orders that follow one another would run past two widths


class CancelReason(IntEnum):
    """Why an order left the book without being filled."""

    MEMBER = 0  #: the member's own cancel
    MASS_CANCEL = 1  #: the member's own mass cancel
    REMAINDER = 2  #: rest of an IOC or market order, or an FOK that could not fill whole
    EXPIRED = 3  #: validity ended
    SELF_TRADE = 4
    OPERATOR = 5
    DISCONNECT = 6
    REPLACED = 7  #: an amend to a total at or below what was already filled
    LIMITS = 8  #: no longer valid under new ticks, limits or eligibility
    KILL = 9  #: the operator's kill switch
    HALT = 10  #: the book was halted, and its rule is that a halt voids orders
    INELIGIBLE = 11  #: its member, account or token may not trade any more
    WINDOW = 12  #: a record date, a distribution or a freeze has begun
    UNFUNDED = 13  #: the new day's limits ask for more cash than its account has
    SET_ASIDE = 14  #: it was on its way when the instrument was set aside


class WindowKind(IntEnum):
    """Why an instrument is closed to orders for some days (market-rules 8)."""

    RECORD_DATE = 0
    DISTRIBUTION = 1
    FREEZE = 2


class Approval(IntEnum):
    """What a book does where each transfer needs the issuer's approval (market-rules 8); settlement waits for it."""

    NONE = 0  #: no approval is needed
    ACCEPT = 1  #: orders are taken like any others
    REFUSE = 2  #: no orders are taken
    MARK = 3  #: orders are taken and marked


class Reason(IntEnum):
    """Why a command was refused. The first check that fails names it; the order of checks is fixed."""

    NONE = 0
    UNKNOWN_INSTRUMENT = 1
    WRONG_PHASE = 2
    SUSPENDED = 3
    DUPLICATE_CLIENT_ORDER_ID = 4
    UNKNOWN_ORDER = 5
    OFF_TICK = 6
    OFF_LOT = 7
    ABOVE_LIMIT = 8
    BELOW_LIMIT = 9
    BAD_PRICE = 10  #: a price where none belongs, or none where one is needed
    BAD_QUANTITY = 11
    VALUE_TOO_LARGE = 12
    NOT_OFFERED = 13  #: order type, validity or option that this instrument does not offer
    MARKET_ORDERS_RESTRICTED = 14
    ORDER_FILLED = 15  #: cancel or amend of an order that is filled
    ORDER_GONE = 16  #: cancel or amend of an order that was cancelled or has expired
    NO_CHANGE = 17  #: an amend that changes nothing
    BAD_TRANSITION = 18  #: the phase does not follow the present one
    BAD_REFERENCE_DATA = 19
    ALREADY_LISTED = 20
    DATE_OUTSIDE_CALENDAR = 21
    NO_DAY = 22  #: the trading day has not been started
    SELF_TRADE = 23
    WOULD_TRADE = 24  #: a post-only order that would take liquidity
    NOT_PERMITTED = 25
    BAD_IDENTITY = 26  #: a participant, account or client_order_id that is not well formed
    NO_OPPOSITE_LIMIT = 27  #: a market-to-limit order that finds no limit to take over
    KILLED = 28  #: the kill switch is on for the member, the instrument or the market
    QUANTITY_CAP = 29  #: more units than the member's or the book's risk limit
    VALUE_CAP = 30  #: worth more than the member's or the book's risk limit
    SHARE_CAP = 31  #: too large a share of the units outstanding
    NEEDS_CONFIRMATION = 32  #: a share of the units outstanding that its member has to confirm
    PRICE_COLLAR = 33  #: too far from the last price
    TOO_MANY_ORDERS = 34  #: more open orders than the risk limit
    TOO_MANY_MESSAGES = 35  #: more orders and amends in the interval than the risk limit
    UNKNOWN_TRADE = 36
    TRADE_BUSTED = 37  #: the trade has been busted before
    UNKNOWN_REQUEST = 38  #: no request of an operator that waits for a second one
    TOO_LATE = 39  #: after the time limit
    SET_ASIDE = 40  #: the instrument's book contradicts itself; it is out of the market until it is rebuilt
    NOT_REGISTERED = 41  #: the account is not on the token's whitelist
    HOLDER_NOT_ALLOWED = 42  #: a jurisdiction or investor type that may not hold the token
    HOLDING_CAP = 43  #: the account would hold more than it may
    TOO_MANY_HOLDERS = 44  #: the token has as many holders as it may have
    LOCKED_UP = 45  #: units under a lock-up
    NOT_TRANSFERABLE = 46  #: the token is not active, not transferable, or paused
    TERMINATED = 47  #: the token's last trading day is over
    APPROVAL_REQUIRED = 48  #: each transfer needs the issuer's approval, and the book takes no such orders
    IN_WINDOW = 49  #: a record date, a distribution or a freeze
    INSUFFICIENT_UNITS = 50
    INSUFFICIENT_CASH = 51
    NO_PRICE_BOUND = 52  #: a pre-funded buy that could cost any amount: no limit, and no daily limit either
    ALREADY_BOOKED = 53  #: a deposit or withdrawal of this reference has been booked
