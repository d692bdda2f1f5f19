"""Special and sequential trade quotes: a price may not run away from the last one (market-rules 6).

Zaraba trades as long as the next price lies within one width of the last. Where it would not, nothing trades: the
order joins the book, a *special quote* is shown at the edge, and the book collects. The quote moves on by one width
whenever its time has passed (``RenewQuote``; the engine has no clock), until the book matches inside by itayose. An
opening auction that finds its price too far away becomes such a quote too, and its market orders wait under it. Where
one order, or several within a minute, would run more than two widths from where they began, they trade that far; then a
*sequential trade quote* stands for a minute, and an itayose within one width of it decides, or a special quote follows.

Who presses is a question about four sums. Above the range stand buyers (and those without a limit) for whom not enough
is offered up to its upper edge: then the next price lies above. Below it, the same with sellers. Neither, and orders
meet: then there is a price inside that fills all market orders and all better limits, as the three conditions of the
cash market ask; the five choose among several. So a market order that cannot fill needs no rule of its own.

While a quote stands, every command that changes its book is followed by that question. The closing auction asks it of
two widths, and has no later: what meets only outside trades at the edge, by time of entry, market orders and limits
alike; where the edge is the day's limit, by turns of the participants, a market order being read as one at the limit.

Everything here is switched by data: ``quote_width_table`` of the instrument's rules, ``widths`` and ``closes`` of a
phase. Instruments with such widths have no icebergs and no stops (their profile offers none).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final

from engine.checks import Refusal, number, unknown_instrument
from engine.eligibility import Eligibility
from engine.events import Accepted, Activated, Amended, Cancelled, DayLimitsSet, Event, QuoteChanged, Traded
from engine.faults import InvariantBroken
from engine.market import Instrument, Quote
from engine.matching import auction
from engine.matching.book import BUY, GONE, PARTICIPANT_SHIFT, SELL, WAITING, Book
from engine.matching.itayose import PRICE_TIME, SIMULTANEOUS_RR, Equilibrium
from engine.profiles import IMMEDIATE
from engine.types import PRICE_MAX, SIDES, CancelReason, QuoteKind, Reason, SelfTrade

#: More than any book holds.
_ALL: Final = 2**62

# What presses on a range of prices, besides BUY and SELL.
NOBODY: Final = -1  #: no two orders meet
MATCH: Final = 2  #: orders meet inside


class Claims(ABC):
    """Who would trade at a price, of a book or of what an auction has frozen of it."""

    @abstractmethod
    def reaching(self, side: int, price: int) -> int:
        """All of a side that could trade at ``price``; 0: only what has no limit."""

    @abstractmethod
    def best(self, side: int) -> int:
        """The best limit; 0: none."""


class BookClaims(Claims):
    def __init__(self, book: Book) -> None:
        self._book: Final = book

    def reaching(self, side: int, price: int) -> int:
        total: int = self._book.level_quantity(side, 0)
        return total + self._book.available(side, price, _ALL) if price > 0 else total

    def best(self, side: int) -> int:
        return self._book.best(side)


class FrozenClaims(Claims):
    def __init__(self, plan: auction.Plan) -> None:
        self._plan: Final = plan

    def reaching(self, side: int, price: int) -> int:
        return (self._plan.bids if side == BUY else self._plan.asks).reaching(side, price)

    def best(self, side: int) -> int:
        frozen = self._plan.bids if side == BUY else self._plan.asks
        for place in range(1, len(frozen.prices)):
            if len(frozen.queues[place]):
                return frozen.prices[place]
        return 0


def pressing(claims: Claims, low: int, high: int) -> int:
    """Which side drives the next price out of the range from ``low`` to ``high``; else ``MATCH`` or ``NOBODY``."""
    bid = claims.best(BUY)
    ask = claims.best(SELL)
    if not (claims.reaching(BUY, 0) or claims.reaching(SELL, 0) or (bid and ask and bid >= ask)):
        return NOBODY
    if claims.reaching(BUY, high + 1) > claims.reaching(SELL, high):
        return BUY
    if claims.reaching(SELL, low - 1) > claims.reaching(BUY, low):
        return SELL
    return MATCH


class Quoting(Eligibility):
    """Trading with what keeps its prices from running away."""

    def __init__(self) -> None:
        super().__init__()
        #: Instruments under a quote, by index: what a command may have to look at again.
        self._quoted: Final[dict[int, bool]] = {}

    # --- ranges ------------------------------------------------------------------------------------------------------

    def _waits_for_price(self, instrument: Instrument) -> bool:
        return instrument.widths is not None and instrument.reference != 0

    def _around(self, instrument: Instrument, price: int, count: int) -> tuple[int, int]:
        """The prices within ``count`` widths of ``price``, on the grid and within the day's limits."""
        assert instrument.widths is not None
        width = instrument.widths.width(price) * count
        low = instrument.ticks.ceil(max(price - width, 1))
        high = instrument.ticks.floor(min(price + width, PRICE_MAX))
        return self._within_limits(instrument, low), self._within_limits(instrument, high)

    def _within_limits(self, instrument: Instrument, price: int) -> int:
        if instrument.lower and price < instrument.lower:
            return instrument.lower
        if instrument.upper and price > instrument.upper:
            return instrument.upper
        return price

    def _range(self, instrument: Instrument, widths: int) -> tuple[int, int]:
        """Where the book may trade by itayose: ``widths`` around the last price, or up to its quote."""
        quote = instrument.quote
        if quote is None:
            return self._around(instrument, instrument.reference, widths)
        low, high = self._around(instrument, quote.base, 1)
        return (low, quote.price) if quote.side == BUY else (quote.price, high)

    def _pressing(self, instrument: Instrument) -> int:
        low, high = self._range(instrument, instrument.phase_rules.widths)
        return pressing(BookClaims(instrument.book), low, high)

    # --- prices ------------------------------------------------------------------------------------------------------

    def _equilibrium(self, instrument: Instrument) -> Equilibrium:
        if not self._waits_for_price(instrument):
            return super()._equilibrium(instrument)
        rules = instrument.phase_rules
        low, high = self._range(instrument, rules.widths)
        claims = BookClaims(instrument.book)
        side = pressing(claims, low, high)
        if side == MATCH:
            return self._inside(instrument, claims, self._price_book(instrument, low, high), low, high, rules.closes)
        return self._at_the_close(instrument, claims, side, low, high) if rules.closes else Equilibrium(0, 0, 0)

    def _price_plan(self, instrument: Instrument, plan: auction.Plan) -> Equilibrium:
        if not self._waits_for_price(instrument):
            return super()._price_plan(instrument, plan)
        low, high = self._range(instrument, plan.widths)
        claims = FrozenClaims(plan)
        side = pressing(claims, low, high)
        if side == MATCH:
            result = self._price_frozen(instrument, plan, low, high)
            return self._inside(instrument, claims, result, low, high, plan.closes)
        return self._at_the_close(instrument, claims, side, low, high) if plan.closes else Equilibrium(0, 0, 0)

    def _inside(
        self, instrument: Instrument, claims: Claims, result: Equilibrium, low: int, high: int, closes: bool
    ) -> Equilibrium:
        """Orders meet inside: at ``result``, or at an edge, since candidates end one tick beyond the limits."""
        if not result.price:
            bid = claims.best(BUY)
            all_below = bid < low if bid else claims.best(SELL) < low
            return self._at(claims, low if all_below else high, "")
        limit = instrument.upper if result.surplus > 0 else instrument.lower
        if closes and result.surplus and result.price == limit:
            return Equilibrium(result.price, result.volume, result.surplus, SIMULTANEOUS_RR)
        return result

    def _at(self, claims: Claims, price: int, sharing: str) -> Equilibrium:
        """What trades at ``price``."""
        demand = claims.reaching(BUY, price)
        supply = claims.reaching(SELL, price)
        if not demand or not supply:
            return Equilibrium(0, 0, 0)
        return Equilibrium(price, min(demand, supply), demand - supply, sharing)

    def _at_the_close(self, instrument: Instrument, claims: Claims, side: int, low: int, high: int) -> Equilibrium:
        """Special execution at the edge of the closing range, or allocation at the day's limit."""
        if side == NOBODY:
            return Equilibrium(0, 0, 0)
        at_limit = high == instrument.upper if side == BUY else low == instrument.lower
        return self._at(claims, high if side == BUY else low, SIMULTANEOUS_RR if at_limit else PRICE_TIME)

    # --- zaraba ------------------------------------------------------------------------------------------------------

    def _trade_special(self, instrument: Instrument, order: int, events: list[Event]) -> None:
        if instrument.quote is not None:
            self._join_quoted(instrument, instrument.quote, order, events)
        elif self._waits_for_price(instrument):
            self._trade_in_range(instrument, order, events)
        else:
            self._trade(instrument, order, events)
        if not instrument.base and instrument.last_price:
            self._set_first_limits(instrument, instrument.last_price, events)

    def _trade_in_range(self, instrument: Instrument, order: int, events: list[Event]) -> None:
        """Trade price by price, each within a width of the one before and within two of where the run began."""
        assert instrument.widths is not None
        table = self._orders
        book = instrument.book
        side = table.side(order)
        limit = table.price[order]
        mode = self._mode(instrument, order)
        own: int = table.terms[order] >> PARTICIPANT_SHIFT if mode > SelfTrade.NONE else -1
        kind = QuoteKind.NONE
        while table.open[order] and table.state[order] != GONE:
            price = book.best(side ^ 1)
            if price == 0 or self._within_limits(instrument, price) != price:  # see ``_set_first_limits``
                kind = QuoteKind.NONE if limit else QuoteKind.SPECIAL
                break
            if limit and (price > limit if side == BUY else price < limit):
                break
            last = instrument.reference
            if (price - last if price > last else last - price) > instrument.widths.width(last):
                kind = QuoteKind.SPECIAL
                break
            age_ns = self.time_ns - instrument.run_since_ns
            if not instrument.run_base or age_ns >= instrument.rules.sequential_quote_ns:
                instrument.run_base = last
                instrument.run_since_ns = self.time_ns
            away = price - instrument.run_base if side == BUY else instrument.run_base - price
            if away > 2 * instrument.widths.width(instrument.run_base):
                kind = QuoteKind.SEQUENTIAL
                break
            if self._match(instrument, order, price, mode, own, events):
                instrument.moved = True
        if not table.open[order] or table.state[order] == GONE:
            return
        if 1 << table.validity(order) & IMMEDIATE:
            table.state[order] = GONE
            events.append(self._cancelled(order, CancelReason.REMAINDER, "", False))
            return
        self._rest(instrument, order, 0, events)
        if kind == QuoteKind.SEQUENTIAL:
            low, high = self._around(instrument, instrument.run_base, 2)
            price = high if side == BUY else low
            due_ns = self.time_ns + instrument.rules.sequential_quote_ns
            self._show(instrument, Quote(kind, side, price, instrument.run_base, due_ns, 0), events)
        elif kind == QuoteKind.SPECIAL:
            self._attempt(instrument, events)

    def _join_quoted(self, instrument: Instrument, quote: Quote, order: int, events: list[Event]) -> None:
        """The book collects. Where the rule has it so, orders against a sequential trade quote trade at its price."""
        table = self._orders
        book = instrument.book
        if (
            quote.kind == QuoteKind.SEQUENTIAL
            and instrument.rules.sequential_at_once
            and table.side(order) != quote.side
            and (not table.price[order] or self._reaches(table.price[order], quote))
        ):
            mode = self._mode(instrument, order)
            own: int = table.terms[order] >> PARTICIPANT_SHIFT if mode > SelfTrade.NONE else -1
            while table.open[order] and table.state[order] != GONE:
                maker = book.head(quote.side, 0) or book.first(quote.side)
                if not maker or (table.price[maker] and not self._reaches(quote.price, quote, table.price[maker])):
                    break
                if self._meet(instrument, order, table.price[maker], quote.price, mode, own, events):
                    instrument.moved = True
        if not table.open[order] or table.state[order] == GONE:
            return
        if 1 << table.validity(order) & IMMEDIATE:
            table.state[order] = GONE
            events.append(self._cancelled(order, CancelReason.REMAINDER, "", False))
        else:
            self._rest(instrument, order, 0, events)

    def _reaches(self, price: int, quote: Quote, limit: int = 0) -> bool:
        """Whether ``price`` is as good for the pressing side as ``limit``, or as the quote's price."""
        limit = limit or quote.price
        return price <= limit if quote.side == BUY else price >= limit

    # --- quotes ------------------------------------------------------------------------------------------------------

    def _show(self, instrument: Instrument, quote: Quote, events: list[Event]) -> None:
        instrument.quote = quote
        self._quoted[instrument.index] = True
        events.append(
            QuoteChanged(instrument.code, QuoteKind(quote.kind), SIDES[quote.side], quote.price, quote.due_ns)
        )

    def _special(self, instrument: Instrument, side: int, price: int, base: int, expires: int) -> Quote:
        """A special quote from now on. At the day's limit it is never renewed."""
        at_limit = price == (instrument.upper if side == BUY else instrument.lower)
        due_ns = 0 if at_limit else self.time_ns + instrument.rules.special_quote_ns
        return Quote(QuoteKind.SPECIAL, side, price, base, due_ns, expires)

    def _attempt(self, instrument: Instrument, events: list[Event]) -> None:
        """Hold an itayose if the next price lies in the range; else a quote begins, goes on, changes sides or ends."""
        side = self._pressing(instrument)
        if side == MATCH:
            self._uncross(instrument, events)
        else:
            self._follow(instrument, side, events)

    def _follow(self, instrument: Instrument, side: int, events: list[Event]) -> None:
        """``side`` presses, or ``NOBODY``: what that makes of the quote."""
        quote = instrument.quote
        if side in (NOBODY, MATCH):
            self._end_quote(instrument, events)
        elif quote is None or quote.side != side:
            base = instrument.reference if quote is None else quote.base
            low, high = self._around(instrument, base, 1)
            expires = 0 if quote is None else quote.expires
            price = high if side == BUY else low
            self._show(instrument, self._special(instrument, side, price, base, expires), events)

    def _end_quote(self, instrument: Instrument, events: list[Event]) -> None:
        """Nobody presses any more: zaraba goes on, and so does what the quote had held up."""
        quote = instrument.quote
        if quote is None:
            return
        self._drop_quote(instrument, events)
        if instrument.turns is not None:
            instrument.turns.end(self.sequence)
        if quote.expires:
            self._expire(instrument, quote.expires, events)

    def _drop_quote(self, instrument: Instrument, events: list[Event]) -> None:
        quote = instrument.quote
        if quote is not None:
            instrument.quote = None
            del self._quoted[instrument.index]
            events.append(QuoteChanged(instrument.code, QuoteKind.NONE, SIDES[quote.side], 0, 0))

    def _interrupt_quote(self, instrument: Instrument, events: list[Event]) -> None:
        """The phase ends, or the book is halted. The quote stands for the last price: the next range lies around it."""
        if instrument.quote is not None:
            instrument.reference = instrument.quote.price
            self._drop_quote(instrument, events)

    def _renew_quote(self, code: str, instrument: Instrument | None, events: list[Event]) -> Refusal | None:
        """The time of a quote has passed: one width further, unless the book matches there."""
        if instrument is None:
            return unknown_instrument(code)
        quote = instrument.quote
        if quote is None or not quote.due_ns:
            text = f"Expected a quote that can be renewed in {instrument.code}, got "
            return Refusal(Reason.BAD_TRANSITION, text + ("none" if quote is None else "one at the day's limit"))
        if self.time_ns < quote.due_ns:
            text = f"Expected the quote of {instrument.code} to be renewed from {quote.due_ns} on"
            return Refusal(Reason.BAD_TRANSITION, f"{text}, got {number(self.time_ns)}")
        if instrument.in_window:  # nothing trades, and no price moves: it stands for another turn
            rules = instrument.rules
            turn_ns = rules.special_quote_ns if quote.kind == QuoteKind.SPECIAL else rules.sequential_quote_ns
            due_ns = self.time_ns + turn_ns
            self._show(
                instrument, Quote(quote.kind, quote.side, quote.price, quote.base, due_ns, quote.expires), events
            )
            return None
        low, high = self._around(instrument, quote.price, 1)
        base = quote.price if quote.kind == QuoteKind.SEQUENTIAL else quote.base
        price = high if quote.side == BUY else low
        renewed = self._special(instrument, quote.side, price, base, quote.expires)
        instrument.quote = renewed
        try:
            side = self._pressing(instrument)
            if side == quote.side:
                self._show(instrument, renewed, events)
            elif side == MATCH:
                self._uncross(instrument, events)
            else:
                self._follow(instrument, side, events)
        except InvariantBroken as fault:
            self._set_aside(instrument, fault, events)
        return None

    def _review_quotes(self, events: list[Event]) -> None:
        """Look again at the quotes whose books this command has changed."""
        for index in list(self._quoted):
            instrument = self._instruments[index]
            quote = instrument.quote
            if quote is None or not self._touches(events, instrument.code):
                continue
            try:
                if quote.kind == QuoteKind.SPECIAL:
                    self._attempt(instrument, events)
                elif self._pressing(instrument) == NOBODY:
                    self._end_quote(instrument, events)
            except InvariantBroken as fault:
                self._set_aside(instrument, fault, events)

    def _set_aside(self, instrument: Instrument, fault: InvariantBroken, events: list[Event]) -> None:
        super()._set_aside(instrument, fault, events)
        self._interrupt_quote(instrument, events)

    def _touches(self, events: list[Event], code: str) -> bool:
        return any(
            isinstance(event, Accepted | Cancelled | Amended | Activated | Traded) and event.instrument == code
            for event in events
        )

    # --- after an auction --------------------------------------------------------------------------------------------

    def _after_auction(self, instrument: Instrument, result: Equilibrium, events: list[Event]) -> None:
        if result.price:
            instrument.run_base = 0
            instrument.moved = instrument.moved or result.sharing != SIMULTANEOUS_RR
            if not instrument.base:
                self._set_first_limits(instrument, result.price, events)
        instrument.pressed = self._pressed(instrument)
        if self._waits_for_price(instrument) and not instrument.phase_rules.closes:
            side = self._pressing(instrument)
            self._follow(instrument, side, events)

    # --- limits ------------------------------------------------------------------------------------------------------

    def _pressed(self, instrument: Instrument) -> int:
        """1: buyers stand at the upper limit, and nobody sells. -1: sellers at the lower one, nobody buys. Else 0."""
        book = instrument.book
        for side, limit, answer in ((BUY, instrument.upper, 1), (SELL, instrument.lower, -1)):
            if limit and (book.head(side, 0) or book.best(side) == limit):
                other = BookClaims(book).reaching(side ^ 1, limit)
                if not other:
                    return answer
        return 0

    def _close_day(self, instrument: Instrument) -> None:
        """Count the days in a row that an instrument is stuck at a limit: no volume, or only what was allocated there.

        Once its limit is widened it stays so until it has traded otherwise.
        """
        if instrument.moved:
            instrument.stuck_days = 0
        elif instrument.pressed:
            same = instrument.stuck_days * instrument.pressed > 0
            instrument.stuck_days = instrument.stuck_days + instrument.pressed if same else instrument.pressed
        elif abs(instrument.stuck_days) < 2:
            instrument.stuck_days = 0

    def _set_limits(self, instrument: Instrument, base: int, events: list[Event]) -> None:
        """The day's base price, on the grid, and its limits, rounded inwards (market-rules 2 and 5).

        From the third day on, the limit at which the two days before were stuck is wider; the other one is not.
        """
        ticks = instrument.ticks
        instrument.base = base
        instrument.lower = 0
        instrument.upper = 0
        limits = instrument.limits
        if base and limits is not None:
            width = limits.width(base)
            factor = instrument.rules.limit_widening
            below = width * factor if instrument.stuck_days <= -2 else width
            above = width * factor if instrument.stuck_days >= 2 else width
            instrument.lower = ticks.ceil(max(base - below, 1))
            instrument.upper = ticks.floor(min(base + above, PRICE_MAX))
        awaited = not base and limits is not None and instrument.rules.first_price_limits != "none"
        instrument.special = instrument.widths is not None or awaited
        events.append(DayLimitsSet(instrument.code, base, instrument.lower, instrument.upper))

    def _set_first_limits(self, instrument: Instrument, price: int, events: list[Event]) -> None:
        """A new listing has its first price: from now on there are limits.

        An order that would pay more than the upper limit, or take less than the lower one, counts as at the limit. One
        that asks for more than the upper limit stays as it is: nobody trades at a price worse than his own.
        """
        rule = instrument.rules.first_price_limits
        if rule == "none" or instrument.limits is None:
            return
        self._set_limits(instrument, price, events)
        table = self._orders
        for order in sorted(self._open_orders(instrument)):
            own = table.price[order]
            limit = self._within_limits(instrument, own) if own else own
            if limit == own:
                continue
            if rule == "lapse":
                self._withdraw(order, CancelReason.LIMITS, "", events)
            elif (own > limit) == (table.side(order) == BUY):
                self._keep_original(order)
                waits = table.state[order] == WAITING
                if not waits:
                    instrument.book.remove(order)
                table.price[order] = limit
                if not waits:
                    instrument.book.add(order)
                events.append(self._changed(instrument, order, table.open[order], own))
