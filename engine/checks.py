"""What is wrong with a command, before anything has changed: each check answers None or the refusal it calls for.

The order of checks is fixed, and the first that fails names the refusal (market-rules 7). Of a new order:

1. who and under which id (``engine/identities.py``); the words that only a caller of the library can get wrong;
2. the book: known, a day started, a phase that takes orders, no halt;
3. what the instrument offers: type, validity, options, market orders;
4. account; quantity and lot; price, tick, daily limits, and what can be counted at all;
5. what goes with what in a rare order, and what it would meet in the book: post-only, own orders;
6. where a member or a book has guards, and only there: the holder (``engine/eligibility.py``); the kill switch; value
   cap, quantity cap; share of the units outstanding, first what is too much, then what has to be confirmed; price
   collar; open orders; messages (all ``engine/protection.py``); last what it has to be covered by
   (``engine/funding.py``).

An amend goes the same way from 2 on, as far as it changes anything; 6 only where it makes an order larger or moves it.
Here is what each check asks, and the words it refuses with: what was expected, what came, where.
"""

from __future__ import annotations

import re
from typing import Final

from mypy_extensions import i64

from engine.calendar import Calendar, DateOutside
from engine.commands import PARTICIPANT_PATTERN
from engine.market import Instrument
from engine.matching.book import BUY, SELL
from engine.profiles import (
    FUNARI,
    GOES_WITH,
    GTD,
    ICEBERG,
    MARKET,
    MARKET_TO_LIMIT,
    MINIMUM,
    POST_ONLY,
    SELF_TRADE,
    STOP,
    STOPS,
    may_have,
)
from engine.ticket import SELF_TRADE_NONE, OrderTicket
from engine.types import (
    PRICE_MAX,
    QUANTITY_MAX,
    VALUE_MAX,
    OrderType,
    Phase,
    Reason,
    TimeInForce,
)

is_participant: Final = re.compile(PARTICIPANT_PATTERN.strip("^$")).fullmatch
is_code: Final = re.compile(r"[A-Z0-9-]{1,12}").fullmatch


def is_id(text: str) -> bool:
    """Whether it is 1 to 36 of the characters ! to ~."""
    return 1 <= len(text) <= 36 and is_visible(text)


def is_visible(text: str) -> bool:
    """Whether it has no other characters than ! to ~. Compiled, a loop costs less than one call of a method."""
    size: i64 = len(text)
    for i in range(size):  # noqa: SIM110 (compiled, a generator costs more than the loop)
        if not 33 <= ord(text[i]) <= 126:
            return False
    return True


def is_account(text: str) -> bool:
    """Whether it is up to 32 of the same characters."""
    return len(text) <= 32 and is_visible(text)


class Refusal:
    """Why a command is declined, before it becomes an event."""

    def __init__(self, reason: Reason, text: str) -> None:
        self.reason: Final = reason
        self.text: Final = text


def is_date(date: int) -> bool:
    if not 0 < date <= 99991231:
        return False
    try:
        Calendar(date, date, [])  # the calendar knows which dates exist
    except DateOutside:
        return False
    return True


def number(value: int) -> str:
    """An integer for a message. Python refuses to print those of many thousand digits, and nobody would read them."""
    return str(value) if value.bit_length() <= 64 else f"a number of {value.bit_length()} bits"


def plain(text: str) -> str:
    """A member's malformed text, safe to print and to encode."""
    shown = ascii(text)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def unknown_instrument(code: str) -> Refusal:
    return Refusal(Reason.UNKNOWN_INSTRUMENT, f"Expected a listed instrument, got {plain(code)} - at `$.instrument`")


def no_day(instrument: Instrument) -> Refusal:
    return Refusal(
        Reason.NO_DAY, f"Expected a trading day to have been started for {instrument.code}: it trades from the next on"
    )


def wrong_phase(instrument: Instrument, what: str) -> Refusal:
    text = f"{instrument.code} is in {instrument.phase.label}, which takes no {what}"
    return Refusal(Reason.WRONG_PHASE, text)


def cancels_from(instrument: Instrument, overnight: bool) -> Phase:
    """The next phase that takes cancels: the shortest way there. Orders that do not last overnight end at Closed."""
    waiting = [instrument.phase]
    for phase in waiting:  # grows
        for following in instrument.rules.phases[phase].following:
            if instrument.rules.phases[following].cancel or (following == Phase.CLOSED and not overnight):
                return following
            if following not in waiting:
                waiting.append(following)
    return Phase.CLOSED


def frozen(instrument: Instrument, until: Phase) -> Refusal:
    """A cancel in a phase that takes none, where it is known when the phase ends."""
    ends = "the order ends with it" if until == Phase.CLOSED else "they are taken again"
    text = f"{instrument.code} is in {instrument.phase.label}, which takes no cancels: from {until.label} on {ends}"
    return Refusal(Reason.WRONG_PHASE, f"{text}; this phase is due to end at {instrument.until_ns} ns")


def set_aside(instrument: Instrument, what: str) -> Refusal:
    text = f"{instrument.code} is set aside because its book contradicts itself: it takes no {what} until it is rebuilt"
    return Refusal(Reason.SET_ASIDE, text)


def suspended(instrument: Instrument) -> Refusal:
    return Refusal(
        Reason.SUSPENDED,
        f"Expected {instrument.code} to be trading, got a suspended book: orders and amends wait for it",
    )


def not_changed(instrument: Instrument, wanted: str) -> Refusal:
    """A halt or its end where there is nothing to halt or to end."""
    other = "suspended" if wanted == "trading" else "trading"
    text = f"Expected a book that is {wanted}, got {instrument.code}, which is {other}"
    return Refusal(Reason.BAD_TRANSITION, text)


def not_effective(instrument: Instrument, kind: str, table: str, date: int) -> Refusal:
    text = f"Expected a {kind} table {table} that holds on {date} for {instrument.code}, got none - at `$.date`"
    return Refusal(Reason.BAD_REFERENCE_DATA, text)


def off_tick(price: int, instrument: Instrument) -> Refusal:
    tick = instrument.ticks.tick_at(price)
    return Refusal(Reason.OFF_TICK, f"Expected a multiple of {tick}, got {price} - at `$.price`")


def phase_label(phase: int) -> str:
    """Also for a number that is no phase, which a caller of the library can send."""
    return Phase(phase).label if 0 <= phase < len(Phase) else str(phase)


def beyond_limits(price: int, instrument: Instrument) -> bool:
    return bool(instrument.lower and price < instrument.lower) or bool(instrument.upper and price > instrument.upper)


def check_table(name: str, effective: int, rows: list[tuple[int, int]]) -> Refusal | None:
    """Name, date and bounds of a new table; its own constructor checks what the rows mean."""
    if not is_id(name):
        text = f"Expected a table name of 1 to 36 printable characters, got {plain(name)} - at `$.table`"
        return Refusal(Reason.BAD_REFERENCE_DATA, text)
    if effective and not is_date(effective):
        text = f"Expected a date as YYYYMMDD, or 0 for the next day, got {number(effective)} - at `$.effective`"
        return Refusal(Reason.BAD_REFERENCE_DATA, text)
    for i, (first, second) in enumerate(rows):
        if not (0 <= first <= PRICE_MAX and 0 <= second <= PRICE_MAX):
            text = f"Expected 0 to {PRICE_MAX}, got {number(first)}, {number(second)} - at `$.rows[{i}]`"
            return Refusal(Reason.BAD_REFERENCE_DATA, text)
    return None


def check_uncrossed(instrument: Instrument) -> Refusal | None:
    """Zaraba may begin only where nothing could trade at once: otherwise who trades with whom would be arbitrary."""
    book = instrument.book
    bid = book.best(BUY)
    ask = book.best(SELL)
    if bid and ask and bid >= ask:
        text = f"Expected a book that does not cross, got {instrument.code} with bid {bid}, ask {ask}"
        return Refusal(Reason.BAD_TRANSITION, f"{text}: hold a call first")
    market_buy = book.head(BUY, 0) != 0
    market_sell = book.head(SELL, 0) != 0
    if instrument.rules.market_rests:
        # They may rest, if there is nobody for them or no price.
        crosses = (market_buy and ask) or (market_sell and bid) or (market_buy and market_sell and instrument.reference)
        if crosses:
            text = f"Expected no counterparty for the orders without a limit in {instrument.code}: hold a call first"
            return Refusal(Reason.BAD_TRANSITION, text)
    elif market_buy or market_sell:
        text = f"Expected no orders without a limit in {instrument.code}: hold a call first"
        return Refusal(Reason.BAD_TRANSITION, text)
    return None


def check_words(command: OrderTicket) -> Refusal | None:
    """Whether side, type, validity and mode are such. The decoder takes no others; a caller of the library may."""
    side: int = command.side
    order_type: int = command.order_type
    validity: int = command.time_in_force
    mode: int = command.self_trade
    if 0 <= side <= 1 and 0 <= order_type <= 5 and 0 <= validity <= 7 and 0 <= mode <= 6:
        return None
    words = (("side", side, 1), ("order_type", order_type, 5), ("time_in_force", validity, 7), ("self_trade", mode, 6))
    name, value, last = next(word for word in words if not 0 <= word[1] <= word[2])
    return Refusal(Reason.NOT_OFFERED, f"Expected a {name} from 0 to {last}, got {number(value)} - at `$.{name}`")


def check_offered(command: OrderTicket, instrument: Instrument, validity: int) -> Refusal | None:
    """Whether the instrument has such orders at all."""
    rules = instrument.rules
    what = ""
    if rules.order_types & (1 << command.order_type) == 0:
        what = f"{OrderType(command.order_type).name} orders - at `$.order_type`"
    elif rules.validities & validity == 0:
        what = f"{TimeInForce(command.time_in_force).name} orders - at `$.time_in_force`"
    elif command.display_quantity and rules.options & ICEBERG == 0:
        what = "icebergs - at `$.display_quantity`"
    elif command.stop_price and rules.order_types & STOPS == 0:
        what = "stop orders - at `$.stop_price`"
    elif command.minimum_quantity and rules.options & MINIMUM == 0:
        what = "minimum quantities - at `$.minimum_quantity`"
    elif command.post_only and rules.options & POST_ONLY == 0:
        what = "post-only orders - at `$.post_only`"
    elif command.self_trade > SELF_TRADE_NONE and rules.options & SELF_TRADE == 0:
        what = "self-trade prevention by order - at `$.self_trade`"
    elif command.expire_date and rules.validities & GTD == 0:
        what = "orders with a last day - at `$.expire_date`"
    if what:
        return Refusal(Reason.NOT_OFFERED, f"{instrument.code} does not offer {what}")
    if rules.restriction_of_market_order and 1 << command.order_type & (MARKET | MARKET_TO_LIMIT | STOP):
        text = f"{instrument.code} takes no market orders - at `$.order_type`"
        return Refusal(Reason.MARKET_ORDERS_RESTRICTED, text)
    return None


def check_quantity(quantity: int, instrument: Instrument) -> Refusal | None:
    if not 1 <= quantity <= QUANTITY_MAX:
        text = f"Expected a quantity from 1 to {QUANTITY_MAX}, got {number(quantity)} - at `$.quantity`"
        return Refusal(Reason.BAD_QUANTITY, text)
    if quantity % instrument.lot:
        text = f"Expected a multiple of {instrument.lot}, the lot of {instrument.code}, got {quantity}"
        return Refusal(Reason.OFF_LOT, f"{text} - at `$.quantity`")
    return None


_VALUE_LAST: Final = VALUE_MAX - 1  #: the largest number that is no object in compiled code


def worst_price(price: int, instrument: Instrument) -> int:
    """The most that a unit may cost in any trade of an order: no buyer pays more than its own limit.

    Two orders without a limit can trade at any price that somebody else names.
    """
    return max(price, instrument.upper) or PRICE_MAX


def check_price(
    price: int, quantity: int, market: bool, instrument: Instrument, at_once: bool = False
) -> Refusal | None:
    """Price, tick, limits and value of an order. What it may be worth is bounded at the worst price it can get.

    ``at_once``: it trades now or never, so at limits of others, each of which is bounded by its own.
    """
    if market:
        if price:
            text = f"Expected no price (0) for an order without a limit, got {number(price)} - at `$.price`"
            return Refusal(Reason.BAD_PRICE, text)
    else:
        if not 1 <= price <= PRICE_MAX:
            text = f"Expected a price from 1 to {PRICE_MAX}, got {number(price)} - at `$.price`"
            return Refusal(Reason.BAD_PRICE, text)
        if not instrument.ticks.is_valid(price):
            return off_tick(price, instrument)
        if instrument.lower and price < instrument.lower:
            text = f"Expected a price not below the day's limit {instrument.lower}, got {price} - at `$.price`"
            return Refusal(Reason.BELOW_LIMIT, text)
        if instrument.upper and price > instrument.upper:
            text = f"Expected a price not above the day's limit {instrument.upper}, got {price} - at `$.price`"
            return Refusal(Reason.ABOVE_LIMIT, text)
    if market and at_once and not instrument.upper:
        return None
    worst = worst_price(price, instrument)
    if worst * quantity > _VALUE_LAST:
        text = f"Expected price times quantity below {VALUE_MAX}, got {quantity} at up to {worst} - at `$.quantity`"
        return Refusal(Reason.VALUE_TOO_LARGE, text)
    return None


#: Most mass cancels of one member that may wait for a book: each is compared with each of the member's orders.
DEFERRED_MAX: Final = 100


def check_deferred(instruments: list[Instrument], participant: int) -> Refusal | None:
    """Whether one more mass cancel may wait for those of ``instruments`` that are in a non-cancel period."""
    for instrument in instruments:
        if not instrument.cancels and instrument.deferred_by.get(participant, 0) >= DEFERRED_MAX:
            text = f"Expected at most {DEFERRED_MAX} mass cancels to wait for {instrument.code}, which is in"
            return Refusal(Reason.WRONG_PHASE, f"{text} {instrument.phase.label}, got one more")
    return None


#: Most peaks that an iceberg may have: each is a trade of its own when a large order comes.
PEAKS_MAX: Final = 1000


def check_options(command: OrderTicket, instrument: Instrument, today: int) -> Refusal | None:
    """What a rare kind of order has to say, and what goes with what (market-rules 7)."""
    order_type = OrderType(command.order_type)
    validity = 1 << command.time_in_force
    if (command.stop_price != 0) != (order_type in (OrderType.STOP, OrderType.STOP_LIMIT)):
        text = f"Expected a stop price for stop orders and for no others, got {number(command.stop_price)}"
        return Refusal(Reason.BAD_PRICE, f"{text} for {order_type.name} - at `$.stop_price`")
    if command.stop_price:
        if not 1 <= command.stop_price <= PRICE_MAX:
            text = f"Expected a price from 1 to {PRICE_MAX}, got {number(command.stop_price)} - at `$.stop_price`"
            return Refusal(Reason.BAD_PRICE, text)
        if not instrument.ticks.is_valid(command.stop_price):
            return off_tick(command.stop_price, instrument)
    if (command.expire_date != 0) != (validity == GTD):
        text = f"Expected a last day for GTD orders and for no others, got {number(command.expire_date)}"
        return Refusal(Reason.DATE_OUTSIDE_CALENDAR, f"{text} - at `$.expire_date`")
    if command.expire_date and (not is_date(command.expire_date) or command.expire_date < today):
        text = f"Expected a date from {today} on, got {number(command.expire_date)} - at `$.expire_date`"
        return Refusal(Reason.DATE_OUTSIDE_CALENDAR, text)
    if command.display_quantity:
        if GOES_WITH[ICEBERG][0] & 1 << order_type == 0:
            text = f"Expected an iceberg of type LIMIT or STOP_LIMIT, got {order_type.name}"
            return Refusal(Reason.NOT_OFFERED, f"{text} - at `$.display_quantity`")
        if command.display_quantity % instrument.lot:
            text = f"Expected a multiple of {instrument.lot}, the lot of {instrument.code}"
            return Refusal(Reason.OFF_LOT, f"{text}, got {number(command.display_quantity)} - at `$.display_quantity`")
        if not 1 <= command.display_quantity <= QUANTITY_MAX or command.quantity > command.display_quantity * PEAKS_MAX:
            text = f"Expected a peak of at least one {PEAKS_MAX}th of {command.quantity}"
            return Refusal(
                Reason.BAD_QUANTITY, f"{text}, got {number(command.display_quantity)} - at `$.display_quantity`"
            )
    if command.minimum_quantity:
        if GOES_WITH[MINIMUM][1] & validity == 0:
            text = f"Expected a minimum quantity with IOC only, got {TimeInForce(command.time_in_force).name}"
            return Refusal(Reason.NOT_OFFERED, f"{text} - at `$.minimum_quantity`")
        if not 1 <= command.minimum_quantity <= command.quantity:
            text = f"Expected a minimum from 1 to {command.quantity}, got {number(command.minimum_quantity)}"
            return Refusal(Reason.BAD_QUANTITY, f"{text} - at `$.minimum_quantity`")
    if not may_have(1 << order_type, validity, 0):
        wish = "FUNARI with LIMIT" if validity == FUNARI else "a validity that lets it wait for an auction"
        text = f"Expected {wish}, got {order_type.name} {TimeInForce(command.time_in_force).name}"
        return Refusal(Reason.NOT_OFFERED, f"{text} - at `$.time_in_force`")
    if command.post_only and not may_have(1 << order_type, validity, POST_ONLY):
        text = "Expected post-only with a limit order that may rest, got"
        name = f"{order_type.name} {TimeInForce(command.time_in_force).name}"
        return Refusal(Reason.NOT_OFFERED, f"{text} {name} - at `$.post_only`")
    return None
