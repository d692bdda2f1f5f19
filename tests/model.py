"""A market written to be believed: lists, sorting, and one rule after the other as market-rules has them.

It is the oracle of ``tests/engine/test_machine.py``. It shares the words with the engine (commands, events, types) and
not one line of its logic: no linked queues, no ladders, no walk over stretches of prices. Where the engine is quick,
the model looks at everything again. Refusals carry no text here; what a text says is the engine's own business.

Covered: the profiles START and CONTINUOUS with limit and market orders; everything else is refused as not offered.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec

from engine.commands import (
    AmendOrder,
    CancelOrder,
    Command,
    ListInstrument,
    MassCancel,
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

BUY, SELL = Side.BUY, Side.SELL
DAY, IOC, FOK, GTC = TimeInForce.DAY, TimeInForce.IOC, TimeInForce.FOK, TimeInForce.GTC
ON_OPEN, ON_CLOSE = TimeInForce.ON_OPEN, TimeInForce.ON_CLOSE


class Rule(NamedTuple):
    """What a phase allows (market-rules 1)."""

    following: tuple[Phase, ...]
    new: tuple[TimeInForce, ...] = ()
    amend: bool = False
    cancel: bool = False
    indicative: bool = False


COLLECTING = {"amend": True, "cancel": True, "indicative": True}

PHASES = {
    "START": {
        Phase.CLOSED: Rule((Phase.PRE_OPEN,)),
        Phase.PRE_OPEN: Rule((Phase.PRE_OPEN_NCP,), (DAY, ON_OPEN, ON_CLOSE), **COLLECTING),
        Phase.PRE_OPEN_NCP: Rule((Phase.OPENING_AUCTION,), (DAY, ON_OPEN, ON_CLOSE), indicative=True),
        Phase.OPENING_AUCTION: Rule((Phase.BREAK, Phase.CALL)),
        Phase.BREAK: Rule((Phase.PRE_CLOSE, Phase.CALL), cancel=True),
        Phase.CALL: Rule((Phase.CALL_AUCTION,), (DAY,), **COLLECTING),
        Phase.CALL_AUCTION: Rule((Phase.BREAK, Phase.CALL, Phase.CLOSED)),
        Phase.PRE_CLOSE: Rule((Phase.PRE_CLOSE_NCP,), (DAY, ON_CLOSE), **COLLECTING),
        Phase.PRE_CLOSE_NCP: Rule((Phase.CLOSING_AUCTION,), (DAY, ON_CLOSE), indicative=True),
        Phase.CLOSING_AUCTION: Rule((Phase.CLOSED, Phase.CALL)),
    },
    "CONTINUOUS": {
        Phase.CLOSED: Rule((Phase.CONTINUOUS, Phase.CALL)),
        Phase.CONTINUOUS: Rule((Phase.CALL, Phase.CLOSED), (DAY, IOC, FOK, GTC), amend=True, cancel=True),
        Phase.CALL: Rule((Phase.CALL_AUCTION, Phase.CLOSED), (DAY, GTC), **COLLECTING),
        Phase.CALL_AUCTION: Rule((Phase.CONTINUOUS, Phase.CALL, Phase.CLOSED)),
    },
}
AUCTIONS = (Phase.OPENING_AUCTION, Phase.CLOSING_AUCTION, Phase.CALL_AUCTION)
#: Before the closing call, an on-close order waits outside the book.
BEFORE_THE_CLOSE = (Phase.PRE_OPEN, Phase.PRE_OPEN_NCP, Phase.OPENING_AUCTION, Phase.BREAK)
#: Whose orders leave after the auction of a phase, or on entering it when it holds none.
EXPIRES = {
    Phase.OPENING_AUCTION: (ON_OPEN,),
    Phase.CALL_AUCTION: (ON_OPEN,),
    Phase.PRE_CLOSE: (ON_OPEN,),
    Phase.CLOSING_AUCTION: (ON_CLOSE,),
    Phase.CLOSED: (DAY, IOC, FOK, ON_OPEN, ON_CLOSE),
}
DEFAULTS: dict[str, dict[str, int | str]] = {
    "START": {"invalid_replace": "keep"},
    "CONTINUOUS": {"invalid_replace": "cancel_filled"},
}


class Order:
    """An order for as long as the log lives."""

    def __init__(self, number: int, member: str, book: Book, new: NewOrder, waiting: bool) -> None:
        self.number = number
        self.member = member
        self.book = book
        self.id = new.client_order_id
        self.side = new.side
        self.price = new.price
        self.total = new.quantity
        self.open = new.quantity
        self.type = new.order_type
        self.validity = new.time_in_force
        self.account = new.account
        self.waiting = waiting
        self.gone = False
        self.turn = 0  #: place in the queue: less is earlier
        self.asked = 0  #: sequence of the command that gave it its terms

    @property
    def alive(self) -> bool:
        return self.open > 0 and not self.gone

    def priority(self) -> tuple[bool, int, int]:
        """Sorts one side: without a limit first, then the better price, then the earlier one."""
        return self.price != 0, -self.price if self.side == BUY else self.price, self.turn


class Book:
    """One instrument and its state."""

    def __init__(self, listed: ListInstrument) -> None:
        self.code = listed.instrument
        self.listed = listed
        self.phases = PHASES[listed.profile]
        self.rules = {**DEFAULTS[listed.profile], **listed.rules}
        self.phase = Phase.CLOSED
        self.suspended = False
        self.day = 0
        self.reference = listed.reference_price
        self.base = self.lower = self.upper = 0
        self.last_price = self.last_quantity = 0
        self.settlement_date = 0
        self.ticks = [(0, 1)]
        self.mass_cancels: list[tuple[str, MassCancel, int]] = []

    @property
    def rule(self) -> Rule:
        return self.phases[self.phase]


class Refused(Exception):
    """A command the market declines."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


def need(condition: object, reason: Reason) -> None:
    if not condition:
        raise Refused(reason)


# --- ticks -----------------------------------------------------------------------------------------------------------


def on_grid(rows: list[tuple[int, int]], price: int) -> bool:
    return price > 0 and price % [tick for start, tick in rows if start <= price][-1] == 0


def next_valid(rows: list[tuple[int, int]], price: int, step: int) -> int:
    """The first valid price from ``price`` on, going by ``step`` of 1 or -1; 0: none."""
    while price > 0 and not on_grid(rows, price):
        price += step
    return max(price, 0)


def nearest(rows: list[tuple[int, int]], price: int) -> int:
    """Half up."""
    if price == 0:
        return 0
    up, down = next_valid(rows, price, 1), next_valid(rows, price, -1)
    return down if down and price - down < up - price else up


class Model:
    """The market. ``apply`` answers as ``Engine.apply`` does, with empty texts."""

    def __init__(self) -> None:
        self.books: dict[str, Book] = {}
        self.orders: list[Order] = []
        self.answers: dict[tuple[str, str], tuple[bytes, Event]] = {}
        self.sequence = 0
        self.turns = 0
        self.trades = 0
        self.date = 0
        self.calendar: SetCalendar | None = None
        self.tick_tables: dict[str, list[tuple[int, list[tuple[int, int]]]]] = {"one": [(1, [(0, 1)])]}
        self.limit_tables: dict[str, list[tuple[int, list[tuple[int, int]]]]] = {}

    def apply(self, command: Command, participant: str = "") -> list[Event]:
        self.sequence += 1
        if isinstance(command, NewOrder | CancelOrder | AmendOrder | MassCancel):
            return self.member_command(command, participant)
        code = getattr(command, "instrument", "")
        try:
            need(not participant, Reason.NOT_PERMITTED)
            return self.exchange_command(command)
        except Refused as refused:
            return [Rejected(participant, "", refused.reason, "", code)]

    # --- members -----------------------------------------------------------------------------------------------------

    def member_command(self, command: Any, member: str) -> list[Event]:
        name = command.client_order_id if isinstance(command, NewOrder) else command.request_id
        if not re.fullmatch("[a-z0-9-]{1,16}", member):
            return [Rejected("", name, Reason.BAD_IDENTITY, "")]
        content = msgspec.msgpack.encode(command)
        if (member, name) in self.answers:
            before, answer = self.answers[member, name]
            if before == content:
                return [msgspec.structs.replace(answer, repeat=True)]
            return [Rejected(member, name, Reason.DUPLICATE_CLIENT_ORDER_ID, "")]
        book = self.book_meant(command, member)
        try:
            if isinstance(command, NewOrder):
                answer, events = self.new(command, member, book)
            elif isinstance(command, CancelOrder):
                answer, events = self.cancel(command, member)
            elif isinstance(command, AmendOrder):
                answer, events = self.amend(command, member)
            else:
                answer, events = self.mass_cancel(command, member, book)
        except Refused as refused:
            answer = Rejected(member, name, refused.reason, "", book.code if book else "")
            events = [answer]
        self.answers[member, name] = content, answer
        return events

    def book_meant(self, command: Any, member: str) -> Book | None:
        if isinstance(command, NewOrder | MassCancel):
            return self.books.get(command.instrument)
        order = self.find(member, command.client_order_id)
        return order.book if order else None

    def find(self, member: str, name: str) -> Order | None:
        return next((order for order in self.orders if (order.member, order.id) == (member, name)), None)

    def new(self, new: NewOrder, member: str, book: Book | None) -> tuple[Event, list[Event]]:
        need(book, Reason.UNKNOWN_INSTRUMENT)
        assert book
        need(self.date and book.day == self.date, Reason.NO_DAY)
        need(book.rule.new, Reason.WRONG_PHASE)
        need(not book.suspended or book.rules.get("halt_orders") == "queue", Reason.SUSPENDED)
        need(new.order_type in (OrderType.LIMIT, OrderType.MARKET), Reason.NOT_OFFERED)
        need(new.time_in_force in {v for rule in book.phases.values() for v in rule.new}, Reason.NOT_OFFERED)
        unknown = new.display_quantity or new.stop_price or new.minimum_quantity or new.post_only or new.expire_date
        need(not unknown and new.self_trade in (SelfTrade.DEFAULT, SelfTrade.NONE), Reason.NOT_OFFERED)
        restricted = book.rules.get("restriction_of_market_order")
        need(not (restricted and new.order_type == OrderType.MARKET), Reason.MARKET_ORDERS_RESTRICTED)
        need(new.time_in_force in book.rule.new, Reason.WRONG_PHASE)
        need(not (book.suspended and new.time_in_force in (IOC, FOK)), Reason.WRONG_PHASE)
        self.check_quantity(book, new.quantity)
        self.check_price(book, new.order_type, new.price, new.quantity)

        waiting = new.time_in_force == ON_CLOSE and book.phase in BEFORE_THE_CLOSE
        order = Order(len(self.orders) + 1, member, book, new, waiting)
        order.asked = self.sequence
        self.orders.append(order)
        answer = Accepted(
            member,
            order.id,
            order.number,
            book.code,
            order.side,
            order.total,
            order.price,
            order.type,
            order.validity,
            order.account,
            waiting=waiting,
        )
        return answer, [answer, *([] if waiting else self.enter(order))]

    def check_quantity(self, book: Book, quantity: int) -> None:
        need(1 <= quantity <= QUANTITY_MAX, Reason.BAD_QUANTITY)
        need(quantity % book.listed.lot == 0, Reason.OFF_LOT)

    def check_price(self, book: Book, order_type: OrderType, price: int, quantity: int) -> None:
        if order_type == OrderType.MARKET:
            need(price == 0, Reason.BAD_PRICE)
        else:
            need(1 <= price <= PRICE_MAX, Reason.BAD_PRICE)
            need(on_grid(book.ticks, price), Reason.OFF_TICK)
            need(price >= book.lower, Reason.BELOW_LIMIT)
            need(not book.upper or price <= book.upper, Reason.ABOVE_LIMIT)
        need(max(price, book.upper) * quantity < VALUE_MAX, Reason.VALUE_TOO_LARGE)

    def cancel(self, cancel: CancelOrder, member: str) -> tuple[Event, list[Event]]:
        order = self.open_order(member, cancel.client_order_id)
        need(order.book.rule.cancel, Reason.WRONG_PHASE)
        answer = self.withdraw(order, CancelReason.MEMBER, cancel.request_id)
        return answer, [answer]

    def open_order(self, member: str, name: str) -> Order:
        order = self.find(member, name)
        need(order, Reason.UNKNOWN_ORDER)
        assert order
        need(order.open, Reason.ORDER_FILLED)
        need(order.alive, Reason.ORDER_GONE)
        return order

    def amend(self, amend: AmendOrder, member: str) -> tuple[Event, list[Event]]:
        order = self.open_order(member, amend.client_order_id)
        book = order.book
        need(book.rule.amend, Reason.WRONG_PHASE)
        need(not book.suspended or book.rules.get("halt_orders") == "queue", Reason.SUSPENDED)
        filled = order.total - order.open
        total = amend.quantity or order.total
        price = amend.price or order.price
        ends = total == filled
        try:
            if not ends:
                self.check_quantity(book, total)
                need(total > filled, Reason.BAD_QUANTITY)
                self.check_price(book, order.type, price, total)
                need((total, price) != (order.total, order.price), Reason.NO_CHANGE)
        except Refused as refused:
            mode = book.rules["invalid_replace"]
            if refused.reason == Reason.NO_CHANGE or mode == "keep" or (mode == "cancel_filled" and total > filled):
                raise
            ends = True
        if ends:
            answer: Event = self.withdraw(order, CancelReason.REPLACED, amend.request_id)
            return answer, [answer]
        keeps = price == order.price and total < order.total
        answer = Amended(
            member,
            order.id,
            order.number,
            book.code,
            order.side,
            total,
            price,
            total - filled,
            order.open,
            order.price,
            keeps,
            amend.request_id,
            waiting=order.waiting,
        )
        order.total, order.open, order.price = total, total - filled, price
        if keeps:
            return answer, [answer]
        order.asked = self.sequence
        order.turn = 0
        return answer, [answer, *([] if order.waiting else self.enter(order))]

    def mass_cancel(self, mass: MassCancel, member: str, book: Book | None) -> tuple[Event, list[Event]]:
        need(book or not mass.instrument, Reason.UNKNOWN_INSTRUMENT)
        need(not mass.price_to or mass.price_from <= mass.price_to, Reason.BAD_PRICE)
        newest = len(self.orders)
        now: list[Order] = []
        for each in [book] if book else self.books.values():
            if each.rule.cancel:
                now += self.meant(each, member, mass, newest)
            else:
                each.mass_cancels.append((member, mass, newest))
        now.sort(key=lambda order: order.number)
        events: list[Event] = [self.withdraw(order, CancelReason.MASS_CANCEL, mass.request_id) for order in now]
        answer = MassCancelled(member, mass.request_id, len(now))
        return answer, [*events, answer]

    def meant(self, book: Book, member: str, mass: MassCancel, newest: int) -> list[Order]:
        return [
            order
            for order in self.alive(book)
            if order.member == member
            and order.number <= newest
            and (mass.side is None or order.side == mass.side)
            and (not mass.price_from or order.price >= mass.price_from)
            and (not mass.price_to or 0 < order.price <= mass.price_to)
            and (not mass.account or order.account == mass.account)
        ]

    # --- the book ----------------------------------------------------------------------------------------------------

    def alive(self, book: Book) -> list[Order]:
        """Oldest first, waiting ones included."""
        return [order for order in self.orders if order.book is book and order.alive]

    def side(self, book: Book, side: Side) -> list[Order]:
        """One side of the book in matching priority."""
        resting = [order for order in self.alive(book) if order.side == side and not order.waiting and order.turn]
        return sorted(resting, key=Order.priority)

    def enter(self, order: Order) -> list[Event]:
        """Trade if the book trades; rest."""
        events: list[Event] = []
        book = order.book
        if book.phase == Phase.CONTINUOUS and not book.suspended:
            other = BUY if order.side == SELL else SELL
            makers = [
                maker
                for maker in self.side(book, other)
                if not order.price or (maker.price <= order.price if other == SELL else maker.price >= order.price)
            ]
            enough = sum(maker.open for maker in makers) >= order.open
            for maker in makers if enough or order.validity != FOK else []:
                quantity = min(order.open, maker.open)
                if quantity:
                    buy, sell = (maker, order) if other == BUY else (order, maker)
                    events.append(self.trade(book, buy, sell, maker.price, quantity, other))
                    book.reference = book.last_price = maker.price
                    book.last_quantity = quantity
            if order.open and (order.type == OrderType.MARKET or order.validity in (IOC, FOK)):
                events.append(self.withdraw(order, CancelReason.REMAINDER))
        self.turns += 1
        order.turn = self.turns
        return events

    def trade(self, book: Book, buy: Order, sell: Order, price: int, quantity: int, maker: int) -> Event:
        self.trades += 1
        buy.open -= quantity
        sell.open -= quantity
        return Traded(
            self.trades,
            book.code,
            price,
            quantity,
            buy.member,
            buy.id,
            buy.number,
            buy.open,
            buy.account,
            sell.member,
            sell.id,
            sell.number,
            sell.open,
            sell.account,
            maker,
            self.date,
            book.settlement_date,
            buy.price,
            sell.price,
        )

    def withdraw(self, order: Order, reason: CancelReason, request: str = "") -> Cancelled:
        order.gone = True
        return Cancelled(
            order.member,
            order.id,
            order.number,
            order.book.code,
            order.side,
            order.price,
            order.open,
            reason,
            request,
            waiting=order.waiting,
        )

    # --- auctions ----------------------------------------------------------------------------------------------------

    def price(self, book: Book) -> tuple[int, int, int]:
        """(price, volume, surplus) of an auction held now: market-rules 3.2, every candidate tried."""
        buys, sells = self.side(book, BUY), self.side(book, SELL)

        def demand(price: int) -> int:
            return sum(order.open for order in buys if not order.price or order.price >= price)

        def supply(price: int) -> int:
            return sum(order.open for order in sells if not order.price or order.price <= price)

        def volume(price: int) -> int:
            return min(demand(price), supply(price))

        def surplus(price: int) -> int:
            return demand(price) - supply(price)

        if not buys or not sells:
            return 0, 0, 0
        limits = [order.price for order in buys + sells if order.price]
        if not limits:
            best = min(max(book.reference, book.lower), book.upper or book.reference) if book.reference else 0
        else:
            best = self.best_price(book, limits, volume, surplus)
        must_fill = book.rules.get("market_orders_must_all_fill")
        for side in (buys, sells):
            if best and must_fill and volume(best) < sum(order.open for order in side if not order.price):
                best = 0
        return (best, volume(best), surplus(best)) if best else (0, 0, 0)

    def best_price(self, book: Book, limits: list[int], volume: Any, surplus: Any) -> int:
        rows = book.ticks
        first = next_valid(rows, min(limits) - 1, -1)
        last = next_valid(rows, max(limits) + 1, 1)
        tried = {book.reference, book.lower, book.upper}
        for limit in limits:
            tried |= {limit, next_valid(rows, limit - 1, -1), next_valid(rows, limit + 1, 1)}
        kept = [
            p
            for p in sorted(tried)
            if p and first <= p <= last and book.lower <= p <= (book.upper or p) and on_grid(rows, p)
        ]
        most = max([volume(p) for p in kept], default=0)
        if not most:
            return 0
        kept = [p for p in kept if volume(p) == most]
        least = min(abs(surplus(p)) for p in kept)
        kept = [p for p in kept if abs(surplus(p)) == least]
        if all(surplus(p) < 0 for p in kept):
            return kept[0]
        if all(surplus(p) > 0 for p in kept):
            return kept[-1]
        low, high = kept[0], kept[-1]
        if least:
            low, high = max(p for p in kept if surplus(p) > 0), min(p for p in kept if surplus(p) < 0)
        wanted = book.reference or next_valid(rows, (low + high) // 2, -1)
        return min(max(wanted, low), high)

    def shares(self, book: Book, side: Side, volume: int) -> list[tuple[Order, int]]:
        """Who gets how much of ``volume``, in priority order (market-rules 3.3)."""
        queue = self.side(book, side)
        got = {order.number: 0 for order in queue}
        for price in dict.fromkeys(order.price for order in queue):
            group = [order for order in queue if order.price == price]
            if book.rules.get("allocation") == "SIMULTANEOUS_RR" and sum(order.open for order in group) > volume:
                total = {order.member: 0 for order in group}
                for order in group:
                    total[order.member] += order.open
                turns = sorted(total, key=lambda member: -total[member])  # stable: equals by earliest order
                while volume:
                    for member in turns:
                        left = [order for order in group if order.member == member and got[order.number] < order.open]
                        lot = min(book.listed.lot, volume)
                        if left and lot:
                            got[left[0].number] += lot
                            volume -= lot
            for order in group:
                more = min(volume, order.open - got[order.number])
                got[order.number] += more
                volume -= more
        return [(order, got[order.number]) for order in queue]

    def uncross(self, book: Book) -> list[Event]:
        price, volume, surplus = self.price(book)
        bought = [order for order, share in self.shares(book, BUY, volume) for _ in range(share)]
        sold = [order for order, share in self.shares(book, SELL, volume) for _ in range(share)]
        pairs: dict[tuple[int, int], int] = {}
        for buy, sell in zip(bought, sold, strict=True):  # one unit after the other
            pairs[buy.number, sell.number] = pairs.get((buy.number, sell.number), 0) + 1
        events: list[Event] = [AuctionUncrossed(book.code, book.phase, price, volume, surplus, len(pairs))]
        for (number, other), quantity in pairs.items():
            buy, sell = self.orders[number - 1], self.orders[other - 1]
            events.append(self.trade(book, buy, sell, price, quantity, -1))
        if price:
            book.reference = book.last_price = price
            book.last_quantity = volume
        for order in self.alive(book):
            if not order.price and not order.waiting:
                events.append(self.withdraw(order, CancelReason.REMAINDER))
        return events

    # --- the exchange ------------------------------------------------------------------------------------------------

    def exchange_command(self, command: Command) -> list[Event]:
        if isinstance(command, ListInstrument):
            return self.list_instrument(command)
        if isinstance(command, StartDay):
            return self.start_day(command.date)
        if isinstance(command, SetCalendar):
            need(command.first <= command.last, Reason.BAD_REFERENCE_DATA)
            self.calendar = command
            return [ReferenceDataSet("calendar", "", command.first)]
        if isinstance(command, SetTickTable):
            rows = [(row.start, row.tick) for row in command.rows]
            self.tick_tables.setdefault(command.table, []).append((command.effective, rows))
            return [ReferenceDataSet("tick_table", command.table, command.effective)]
        if isinstance(command, SetLimitTable):
            rows = [(row.below, row.width) for row in command.rows]
            self.limit_tables.setdefault(command.table, []).append((command.effective, rows))
            return [ReferenceDataSet("limit_table", command.table, command.effective)]
        assert isinstance(command, SetPhase | SetReferencePrice | SuspendInstrument | ResumeInstrument)
        need(command.instrument in self.books, Reason.UNKNOWN_INSTRUMENT)
        book = self.books[command.instrument]
        if isinstance(command, SetPhase):
            return self.set_phase(book, command.phase)
        if isinstance(command, SetReferencePrice):
            need(1 <= command.price <= PRICE_MAX, Reason.BAD_PRICE)
            need(not book.day or on_grid(book.ticks, command.price), Reason.OFF_TICK)
            book.reference = command.price
            return [ReferencePriceSet(book.code, command.price)]
        suspend = isinstance(command, SuspendInstrument)
        need(book.suspended != suspend, Reason.BAD_TRANSITION)
        need(suspend or book.phase != Phase.CONTINUOUS or not self.crossed(book), Reason.BAD_TRANSITION)
        book.suspended = suspend
        return [TradingStateChanged(book.code, suspend)]

    def list_instrument(self, listed: ListInstrument) -> list[Event]:
        need(listed.instrument not in self.books, Reason.ALREADY_LISTED)
        need(listed.profile in PHASES and listed.tick_table in self.tick_tables, Reason.BAD_REFERENCE_DATA)
        need(listed.limit_table in (*self.limit_tables, "none"), Reason.BAD_REFERENCE_DATA)
        self.books[listed.instrument] = Book(listed)
        return [
            InstrumentListed(
                listed.instrument,
                listed.profile,
                listed.lot,
                listed.price_decimals,
                listed.reference_price,
                listed.settlement_days,
                listed.ledger,
            )
        ]

    def start_day(self, date: int) -> list[Event]:
        need(date > self.date, Reason.BAD_TRANSITION)
        need(all(book.phase == Phase.CLOSED for book in self.books.values()), Reason.BAD_TRANSITION)
        need(self.is_business_day(date), Reason.DATE_OUTSIDE_CALENDAR)
        for tables in (self.tick_tables, self.limit_tables):
            for name, versions in tables.items():  # what had no date has one now
                tables[name] = [(effective or date, rows) for effective, rows in versions]
        self.date = date
        events: list[Event] = [DayStarted(date)]
        for book in self.books.values():
            book.day = date
            book.settlement_date = self.settlement_date(date, book.listed.settlement_days)
            book.ticks = self.table(self.tick_tables[book.listed.tick_table])
            book.reference = book.base = nearest(book.ticks, book.reference)
            book.lower = book.upper = 0
            if book.base and book.listed.limit_table != "none":
                widths = self.table(self.limit_tables[book.listed.limit_table])
                width = next(width for below, width in widths if below == 0 or book.base < below)
                book.lower = next_valid(book.ticks, max(book.base - width, 1), 1)
                book.upper = next_valid(book.ticks, book.base + width, -1)
            events.append(DayLimitsSet(book.code, book.base, book.lower, book.upper))
            for order in self.alive(book):
                beyond = order.price < book.lower or (book.upper and order.price > book.upper)
                if beyond or not on_grid(book.ticks, order.price):
                    events.append(self.withdraw(order, CancelReason.LIMITS))
        return events

    def table(self, versions: list[tuple[int, list[tuple[int, int]]]]) -> list[tuple[int, int]]:
        """The latest version that holds today; of equal dates the one that came last."""
        holding = [(effective, i) for i, (effective, _) in enumerate(versions) if effective <= self.date]
        return versions[max(holding)[1]][1]

    def is_business_day(self, date: int) -> bool:
        day = as_day(date)
        if self.calendar is None:
            return True
        year_end = (day.month, day.day) in ((12, 31), (1, 1), (1, 2), (1, 3))
        covered = self.calendar.first <= date <= self.calendar.last
        return covered and day.weekday() < 5 and not year_end and date not in self.calendar.holidays

    def settlement_date(self, date: int, days: int) -> int:
        if self.calendar is None:
            return 0
        following = (as_day(date) + datetime.timedelta(n) for n in range(366))
        business = (day for day in following if self.is_business_day(as_number(day)))
        return as_number([next(business) for _ in range(days + 1)][-1])

    def set_phase(self, book: Book, phase: Phase) -> list[Event]:
        need(self.date and book.day == self.date, Reason.NO_DAY)
        need(phase in book.rule.following, Reason.BAD_TRANSITION)
        need(phase != Phase.CONTINUOUS or not self.crossed(book), Reason.BAD_TRANSITION)
        events: list[Event] = [PhaseChanged(book.code, phase, book.phase)]
        book.phase = phase
        held = phase in AUCTIONS and not book.suspended
        if held:
            events += self.uncross(book)
        if held or phase not in AUCTIONS:
            for order in self.alive(book):
                if order.validity in EXPIRES.get(phase, ()) or (phase == Phase.CLOSED and not order.price):
                    events.append(self.withdraw(order, CancelReason.EXPIRED))
        if phase == Phase.PRE_CLOSE:
            waiting = [order for order in self.alive(book) if order.waiting]
            for order in sorted(waiting, key=lambda order: (order.asked, order.number)):
                order.waiting = False
                self.turns += 1
                order.turn = self.turns
                name = order.member, order.id, order.number
                events.append(Activated(*name, book.code, order.side, order.price, order.open))
        if book.rule.cancel:
            for member, mass, newest in book.mass_cancels:
                for order in self.meant(book, member, mass, newest):
                    events.append(self.withdraw(order, CancelReason.MASS_CANCEL, mass.request_id))
            book.mass_cancels = []
        return events

    def crossed(self, book: Book) -> bool:
        """Whether orders rest that could trade with one another, or that only a call can hold."""
        buys, sells = self.side(book, BUY), self.side(book, SELL)
        if any(not order.price for order in buys + sells):
            return True
        return bool(buys and sells) and buys[0].price >= sells[0].price

    # --- what it shows -----------------------------------------------------------------------------------------------

    def depth(self, code: str) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        return self.ladder(code, BUY), self.ladder(code, SELL)

    def ladder(self, code: str, side: Side) -> list[tuple[int, int]]:
        levels: dict[int, int] = {}
        for order in self.side(self.books[code], side):
            levels[order.price] = levels.get(order.price, 0) + order.open
        return list(levels.items())

    def queue(self, code: str, side: Side) -> list[int]:
        return [order.number for order in self.side(self.books[code], side)]

    def indicative(self, code: str) -> tuple[int, int, int]:
        book = self.books[code]
        return self.price(book) if book.rule.indicative else (0, 0, 0)

    def open_orders(self, member: str) -> Iterable[Order]:
        return [order for order in self.orders if order.member == member and order.alive]


def as_day(date: int) -> datetime.date:
    return datetime.date(date // 10000, date // 100 % 100, date % 100)


def as_number(day: datetime.date) -> int:
    return int(day.strftime("%Y%m%d"))
