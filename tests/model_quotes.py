"""What the plain model knows of TSE_HYBRID and of imbalance-only orders: market-rules 6 and 7, told once more.

The engine asks which side presses on a range of prices. Here every price of the range is tried against the three
conditions of the cash market, so that the two have nothing in common but the rule.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.events import (
    Accepted,
    Activated,
    Amended,
    AuctionUncrossed,
    Cancelled,
    DayLimitsSet,
    Event,
    PhaseChanged,
    QuoteChanged,
    Traded,
    TradingStateChanged,
)
from engine.types import CancelReason, OrderType, Phase, QuoteKind, Reason, SelfTrade, Side, TimeInForce

if TYPE_CHECKING:
    from tests.model import Book, Order

BUY, SELL = Side.BUY, Side.SELL
SECOND = 1_000_000_000
COLLECTING = (
    *(Phase.PRE_OPEN, Phase.PRE_OPEN_NCP, Phase.BREAK, Phase.PRE_CLOSE, Phase.PRE_CLOSE_NCP),
    *(Phase.CALL, Phase.CALL_NCP, Phase.CLOSED),
)
CLOSING = (Phase.PRE_CLOSE, Phase.CLOSING_AUCTION)


class Quote:
    def __init__(self, kind: QuoteKind, side: Side, price: int, base: int, due: int, expires: tuple[Any, ...]) -> None:
        self.kind, self.side, self.price, self.base, self.due, self.expires = kind, side, price, base, due, expires


class Quotes:
    """Part of ``tests.model.Model``."""

    # --- which prices, and who presses -------------------------------------------------------------------------------

    def reaching(self, book: Book, side: Side, price: int) -> int:
        """Who would trade at ``price``."""
        return sum(
            order.open
            for order in self.side(book, side)
            if not order.price or (order.price >= price if side == BUY else order.price <= price)
        )

    def fits(self, book: Book, price: int) -> bool:
        """The three conditions of market-rules 3.1, and that somebody trades."""
        demand, supply = self.reaching(book, BUY, price), self.reaching(book, SELL, price)
        better = [
            sum(o.open for o in self.side(book, BUY) if not o.price or o.price > price),
            sum(o.open for o in self.side(book, SELL) if not o.price or o.price < price),
        ]
        return bool(demand and supply) and better[0] <= supply and better[1] <= demand

    def near(self, book: Book, price: int, count: int) -> list[int]:
        """Every price within ``count`` widths and the day's limits."""
        width = count * next(width for below, width in book.widths if below == 0 or price < below)
        prices = [p for p in range(max(price - width, 1), price + width + 1) if self.on_grid(book.ticks, p)]
        return [min(max(p, book.lower), book.upper or p) for p in prices]

    def range(self, book: Book) -> list[int]:
        quote = book.quote
        if quote is None:
            return self.near(book, book.reference, 2 if book.phase in CLOSING else 1)
        around = [*self.near(book, quote.base, 1), quote.price]
        if quote.side == BUY:
            return [p for p in range(min(around), quote.price + 1) if self.on_grid(book.ticks, p)]
        return [p for p in range(quote.price, max(around) + 1) if self.on_grid(book.ticks, p)]

    def quoted_price(self, book: Book) -> tuple[int, str, Side | None]:
        """(price, how those at it share, who presses) of an auction held now."""
        buys, sells = self.side(book, BUY), self.side(book, SELL)
        limits = [[o.price for o in orders if o.price] for orders in (buys, sells)]
        markets = any(not order.price for order in buys + sells)
        if not markets and not (limits[0] and limits[1] and max(limits[0]) >= min(limits[1])):
            return 0, "", None
        prices = self.range(book)
        low, high = prices[0], prices[-1]
        closing = book.phase in CLOSING
        fitting = [price for price in prices if self.fits(book, price)]
        if fitting:
            found = self.five_conditions(book, low, high)
            if not found:
                found = low if max(limits[0] + limits[1]) < low else high
            assert found in fitting, (found, fitting)
            surplus = self.reaching(book, BUY, found) - self.reaching(book, SELL, found)
            at_limit = surplus and found == (book.upper if surplus > 0 else book.lower)
            return found, "SIMULTANEOUS_RR" if closing and at_limit else "", None
        above = sum(order.open for order in buys if not order.price or order.price > high)
        presses = BUY if above > self.reaching(book, SELL, high) else SELL
        edge = high if presses == BUY else low
        if not closing:
            return 0, "", presses
        if not self.reaching(book, BUY, edge) or not self.reaching(book, SELL, edge):
            return 0, "", presses
        at_limit = edge == (book.upper if presses == BUY else book.lower)
        return edge, "SIMULTANEOUS_RR" if at_limit else "PRICE_TIME", presses

    def five_conditions(self, book: Book, low: int, high: int) -> int:
        limits = [o.price for o in self.side(book, BUY) + self.side(book, SELL) if o.price]
        if not limits:
            return min(max(book.reference, low), high)
        bounds = book.lower, book.upper
        book.lower, book.upper = low, high
        try:
            return int(
                self.best_price(
                    book,
                    limits,
                    lambda p: min(self.reaching(book, BUY, p), self.reaching(book, SELL, p)),
                    lambda p: self.reaching(book, BUY, p) - self.reaching(book, SELL, p),
                )
            )
        finally:
            book.lower, book.upper = bounds

    # --- zaraba ------------------------------------------------------------------------------------------------------

    def trade_quoted(self, order: Order) -> list[Event]:
        """An order comes to a book that has widths and a last price, while it trades."""
        book = order.book
        events: list[Event] = []
        other = SELL if order.side == BUY else BUY
        kind = QuoteKind.NONE
        quote = book.quote
        if quote:
            at_once = quote.kind == QuoteKind.SEQUENTIAL and book.rules.get("sequential_opposite") == "at_once"
            sign = 1 if quote.side == BUY else -1
            reaches = not order.price or sign * order.price <= sign * quote.price
            while at_once and order.alive and order.side != quote.side and reaches:
                makers = [m for m in self.side(book, quote.side) if not m.price or sign * m.price >= sign * quote.price]
                if not makers:
                    break
                events += self.meet(order, makers[0], quote.price)
        while not quote and order.alive:
            makers = self.side(book, other)
            if (
                makers
                and makers[0].price
                and makers[0].price != min(max(makers[0].price, book.lower), book.upper or 10**15)
            ):
                makers = []  # beyond limits that came with the day's first price
            if not makers:
                kind = QuoteKind.NONE if order.price else QuoteKind.SPECIAL
                break
            price = makers[0].price
            if order.price and (price > order.price if order.side == BUY else price < order.price):
                break
            if price not in self.wide(book, book.reference, 1):
                kind = QuoteKind.SPECIAL
                break
            seconds = int(book.rules.get("sequential_quote_seconds", 60))
            if not book.run_base or self.time_ns - book.run_since >= seconds * SECOND:
                book.run_base, book.run_since = book.reference, self.time_ns
            run = self.wide(book, book.run_base, 2)
            if price > run[-1] if order.side == BUY else price < run[0]:
                kind = QuoteKind.SEQUENTIAL
                break
            events += self.meet(order, makers[0], price)
        if not order.alive:
            return events
        if order.validity == TimeInForce.IOC:
            return [*events, self.withdraw(order, CancelReason.REMAINDER)]
        self.turns += 1
        order.turn = self.turns
        if kind == QuoteKind.SEQUENTIAL:
            prices = self.near(book, book.run_base, 2)
            seconds = int(book.rules.get("sequential_quote_seconds", 60))
            shown = prices[-1] if order.side == BUY else prices[0]
            due = self.time_ns + seconds * SECOND
            return [*events, *self.show_quote(book, Quote(kind, order.side, shown, book.run_base, due, ()))]
        if kind == QuoteKind.SPECIAL:
            events += self.attempt(book)
        return events

    def wide(self, book: Book, price: int, count: int) -> list[int]:
        """Every number within ``count`` widths, limits or not."""
        width = count * next(width for below, width in book.widths if below == 0 or price < below)
        return list(range(price - width, price + width + 1))

    def meet(self, order: Order, maker: Order, price: int) -> list[Event]:
        if order.book.rules["allocation"] == "SIMULTANEOUS_RR":
            group = self.first_group(maker)
            maker = group[self.deal(order.book, group, 1)[0][0][0]][0]
        if order.mode > SelfTrade.NONE and maker.group() and maker.group() == order.group():
            return list(self.prevent(order, maker, price))
        order.book.moved = True
        if order.book.rules["allocation"] == "SIMULTANEOUS_RR":
            return self.fill_in_turn(order, maker, price)
        return list(self.fill(order, maker, price, min(order.open, maker.open)))

    # --- turns -------------------------------------------------------------------------------------------------------

    def note_periods(self, events: list[Event]) -> None:
        """When the books began and ceased to collect, read from what was said."""
        for i, event in enumerate(events):
            book = self.books.get(getattr(event, "instrument", ""))
            if book is None:
                continue
            trades = book.phase == Phase.CONTINUOUS and not book.suspended and book.quote is None
            if isinstance(event, PhaseChanged) and event.phase in (Phase.CLOSED, Phase.BREAK):
                book.collects_since = 0
            elif event.phase in COLLECTING if isinstance(event, PhaseChanged) else getattr(event, "suspended", False):
                book.collects_since = self.sequence - 1 if book.collects_since is None else book.collects_since
            elif isinstance(event, PhaseChanged | TradingStateChanged) and trades:
                book.collects_since = None
            elif isinstance(event, AuctionUncrossed) and (event.price or not book.quote):
                self.end_period(book, event.price > 0)
            elif isinstance(event, QuoteChanged) and event.kind == QuoteKind.NONE and not book.suspended:
                interrupted = any(isinstance(later, PhaseChanged) for later in events[i:])
                if not interrupted:
                    self.end_period(book, False)

    def end_period(self, book: Book, remembers: bool) -> None:
        if book.collects_since == 0:
            book.periods = []
            book.rota = book.rota if remembers else {}
        if book.collects_since is not None:
            book.periods.append((book.collects_since, self.sequence))
        book.collects_since = None

    def forget_turns(self, book: Book) -> None:
        """An opening makes new groups."""
        if book.collects_since == 0:
            book.rota = {}

    def period(self, order: Order) -> int | None:
        """With which command the period ends, or would end now, in which an order came to the book; None: zaraba."""
        came = order.asked
        if order.validity == TimeInForce.ON_CLOSE or (order.validity == TimeInForce.FUNARI and not order.price):
            came = max(came, order.book.joined)
        since = order.book.collects_since
        if (since is not None and came > since) or came == order.book.joined == self.sequence:
            return self.sequence
        return next((end for start, end in order.book.periods if start < came <= end), None)

    def groups(self, book: Book, entries: list[tuple[Order, int]]) -> list[list[tuple[Order, int]]]:
        """Neighbours of one period; who came in zaraba stands alone."""
        groups: list[list[tuple[Order, int]]] = []
        for order, share in entries:
            if groups and self.period(order) and self.period(order) == self.period(groups[-1][-1][0]):
                groups[-1].append((order, share))
            else:
                groups.append([(order, share)])
        return groups

    def first_group(self, maker: Order) -> list[tuple[Order, int]]:
        """Who comes first where ``maker`` rests, with what they show."""
        level = [order for order in self.side(maker.book, maker.side) if order.price == maker.price]
        return self.groups(maker.book, [(order, order.open - order.hidden) for order in level])[0]

    def deal(
        self, book: Book, group: list[tuple[Order, int]], volume: int, fresh: bool = False
    ) -> tuple[list[tuple[int, int]], list[str]]:
        """One lot after the other to one member after the other: (place in the group, quantity), and who comes next."""
        totals: dict[str, int] = {}
        for order, share in group:
            totals[order.member] = totals.get(order.member, 0) + share
        first = group[0][0]
        period, before = book.rota.get((first.side, first.price), (None, []))
        before = [] if fresh or period is None or period != self.period(first) else before
        others = sorted(totals, key=lambda member: -totals[member])  # stable: equals by earliest order
        rota = [member for member in before if member in totals]
        rota += [member for member in others if member not in before]
        left = [share for _, share in group]
        dealt: list[tuple[int, int]] = []
        while volume and any(left):
            member = rota.pop(0)
            rota.append(member)
            for i, (order, _) in enumerate(group):
                if order.member == member and left[i]:
                    lot = min(book.listed.lot, volume, left[i])
                    dealt.append((i, lot))
                    left[i] -= lot
                    volume -= lot
                    break
        return dealt, [one for one in rota if any(left[i] for i, (o, _) in enumerate(group) if o.member == one)]

    def remember(self, order: Order, rota: list[str]) -> None:
        period = self.period(order)
        if period is not None and rota:
            order.book.rota[order.side, order.price] = period, rota
        elif period is not None:
            order.book.rota.pop((order.side, order.price), None)

    def fill_in_turn(self, order: Order, maker: Order, price: int) -> list[Event]:
        """Trade with all of the first group that have a turn before the order's own firm has one."""
        group = self.first_group(maker)

        def own(i: int) -> bool:
            return bool(order.mode > SelfTrade.NONE and order.group() and group[i][0].group() == order.group())

        wanted = min(order.open, sum(share for _, share in group))
        volume = 0
        for i, lot in self.deal(order.book, group, wanted)[0]:
            if own(i):
                break
            volume += lot
        dealt, rota = self.deal(order.book, group, volume)
        self.remember(group[0][0], rota)
        events: list[Event] = []
        for i, (one, _) in enumerate(group):
            share = sum(lot for j, lot in dealt if j == i)
            if share:
                events += self.fill(order, one, price, share)
        return events

    # --- quotes ------------------------------------------------------------------------------------------------------

    def show_quote(self, book: Book, quote: Quote) -> list[Event]:
        book.quote = quote
        return [QuoteChanged(book.code, quote.kind, quote.side, quote.price, quote.due)]

    def special(self, book: Book, side: Side, price: int, base: int, expires: tuple[Any, ...]) -> Quote:
        at_limit = price == (book.upper if side == BUY else book.lower)
        seconds = int(book.rules.get("special_quote_seconds", 180))
        due = 0 if at_limit else self.time_ns + seconds * SECOND
        return Quote(QuoteKind.SPECIAL, side, price, base, due, expires)

    def attempt(self, book: Book) -> list[Event]:
        price, _, presses = self.quoted_price(book)
        if price:
            return [] if book.in_window else list(self.uncross(book))
        return self.follow(book, presses)

    def follow(self, book: Book, presses: Side | None) -> list[Event]:
        quote = book.quote
        if presses is None:
            events = self.drop_quote(book)
            for order in self.alive(book) if quote else []:
                if order.validity in quote.expires:
                    events += self.leave(order, CancelReason.EXPIRED)
            return events
        if quote is not None and quote.side == presses:
            return []
        base = quote.base if quote else book.reference
        prices = self.near(book, base, 1)
        price = prices[-1] if presses == BUY else prices[0]
        return self.show_quote(book, self.special(book, presses, price, base, quote.expires if quote else ()))

    def drop_quote(self, book: Book, stands_for_the_last_price: bool = False) -> list[Event]:
        quote, book.quote = book.quote, None
        if quote is None:
            return []
        if stands_for_the_last_price:
            book.reference = quote.price
        return [QuoteChanged(book.code, QuoteKind.NONE, quote.side, 0, 0)]

    def renew_quote(self, book: Book) -> list[Event]:
        quote = book.quote
        if quote is None or not quote.due or self.time_ns < quote.due:
            self.need(False, Reason.BAD_TRANSITION)
        if book.in_window:
            special = quote.kind == QuoteKind.SPECIAL
            name, usual = ("special_quote_seconds", 180) if special else ("sequential_quote_seconds", 60)
            quote.due = self.time_ns + int(book.rules.get(name, usual)) * SECOND
            return self.show_quote(book, quote)
        prices = self.near(book, quote.price, 1)
        price = prices[-1] if quote.side == BUY else prices[0]
        base = quote.price if quote.kind == QuoteKind.SEQUENTIAL else quote.base
        book.quote = self.special(book, quote.side, price, base, quote.expires)
        found, _, presses = self.quoted_price(book)
        if not found and presses == quote.side:
            return self.show_quote(book, book.quote)
        return self.attempt(book)

    def review(self, events: list[Event]) -> list[Event]:
        """After a command: quotes whose books it has changed."""
        more: list[Event] = []
        for book in self.books.values():
            touched = [
                event
                for event in events
                if isinstance(event, Accepted | Cancelled | Amended | Activated | Traded)
                and event.instrument == book.code
            ]
            if book.quote is None or not touched:
                continue
            if book.quote.kind == QuoteKind.SPECIAL:
                more += self.attempt(book)
            elif self.quoted_price(book)[0] == 0 and self.quoted_price(book)[2] is None:
                more += self.follow(book, None)
        return more

    # --- auctions ----------------------------------------------------------------------------------------------------

    def after_auction(self, book: Book, price: int, sharing: str) -> list[Event]:
        events: list[Event] = []
        if price:
            book.run_base = 0
            book.moved = book.moved or sharing != "SIMULTANEOUS_RR"
            events += self.first_limits(book, price)
        book.pressed = 0
        for side, limit, answer in ((SELL, book.lower, -1), (BUY, book.upper, 1)):
            mine = [order for order in self.side(book, side) if not order.price or order.price == limit]
            if limit and mine and not self.reaching(book, SELL if side == BUY else BUY, limit):
                book.pressed = answer
        if self.waits_for_price(book) and book.phase != Phase.CLOSING_AUCTION:
            events += self.follow(book, self.quoted_price(book)[2])
        return events

    def waits_for_price(self, book: Book) -> bool:
        return bool(book.widths and book.reference)

    def imbalance(self, book: Book, price: int, surplus: int, joins: tuple[Any, ...]) -> list[tuple[Order, int]]:
        """Imbalance-only orders that take part, and with how much."""
        side, other = (SELL, BUY) if surplus > 0 else (BUY, SELL)
        left = abs(surplus)

        def group(order: Order) -> Any:
            return order.group() if order.mode > SelfTrade.NONE else None

        opposite = {
            group(order)
            for order in self.side(book, other)
            if not order.price or (order.price >= price if other == BUY else order.price <= price)
        }
        ready = [
            order
            for order in self.alive(book)
            if order.type == OrderType.IMBALANCE_ONLY
            and order.side == side
            and (order.takes_part or order.validity in joins)
            and (order.price <= price if side == SELL else order.price >= price)
            and not (group(order) and group(order) in opposite)
        ]
        ready.sort(key=lambda order: (order.price if side == SELL else -order.price, order.asked, order.number))
        added: list[tuple[Order, int]] = []
        for order in ready if price else []:
            share = min(left, order.open)
            if share:
                added.append((order, share))
                left -= share
        return added

    # --- limits ------------------------------------------------------------------------------------------------------

    def close_day(self, book: Book) -> None:
        if book.moved:
            book.stuck = 0
        elif book.pressed:
            book.stuck = book.stuck + book.pressed if book.stuck * book.pressed > 0 else book.pressed
        elif -2 < book.stuck < 2:
            book.stuck = 0

    def set_limits(self, book: Book, base: int) -> list[Event]:
        book.base, book.lower, book.upper = base, 0, 0
        if base and book.limits:
            width = next(width for below, width in book.limits if below == 0 or base < below)
            factor = int(book.rules.get("limit_widening", 1))
            down = width * factor if book.stuck <= -2 else width
            up = width * factor if book.stuck >= 2 else width
            book.lower = self.next_valid(book.ticks, max(base - down, 1), 1)
            book.upper = self.next_valid(book.ticks, base + up, -1)
        return [DayLimitsSet(book.code, base, book.lower, book.upper)]

    def first_limits(self, book: Book, price: int) -> list[Event]:
        rule = book.rules.get("first_price_limits", "none")
        if book.base or not book.limits or rule == "none":
            return []
        events = self.set_limits(book, price)
        for order in self.alive(book):
            limit = min(max(order.price, book.lower), book.upper) if order.price else 0
            if limit == order.price:
                continue
            if rule == "lapse":
                events += self.leave(order, CancelReason.LIMITS)
            elif (order.price > limit) == (order.side == BUY):
                before, order.price = order.price, limit
                if not order.waiting:
                    self.turns += 1
                    order.turn = self.turns
                events.append(self.changed(order, order.open, before))
        return events
