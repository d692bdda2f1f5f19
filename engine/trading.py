"""What happens to an order once it is in the market: it trades, rests, waits, leaves, and every step becomes an event.

``Engine`` adds to this what members and the exchange may ask for. Here nothing is refused any more.

Most orders are plain, and pay only for that. What a few carry besides (a peak, a stop price, a mode of self-trade
prevention …) lies in ``Options``, beside the columns of the order table and keyed by the order's number. The loop of
``continuous.take`` runs until something needs a decision: an own order is next, or an iceberg has shown all it showed.

* An *iceberg* stands in the book with what it shows; ``Instrument.reserves`` has the rest. When its peak has traded it
  shows a fresh one, behind all others at its price. Whoever wants the whole of it shows it whole first.
* *Self-trade prevention* acts on the two orders that meet, by the mode of the incoming one (market-rules 7).
* A *stop* waits outside the book until a trade reaches its price. The stops that one command triggers come one after
  the other, each behind the trades that triggered it: by the trade, then by stop price in the direction of the market,
  then by time of entry. What they trade may trigger more.
* A *volatility band* lies around the last price as an order finds it. Where its next trade would lie outside, nothing
  more trades: a call opens, and what is left of the order takes part in it like any other.
* A *market order* rests only where the rule ``market_rests`` says so, before every limit. It trades at the last price
  or at a better one of the limits present, so that no limit in the book is passed over.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from typing import Any, Final, cast, final

from librt.vecs import append, vec
from mypy_extensions import i64

from engine.events import (
    Activated,
    Amended,
    AuctionUncrossed,
    Cancelled,
    DisplayChanged,
    Event,
    InstrumentSetAside,
    PhaseChanged,
    PhaseTimed,
    SelfTradePrevented,
    Traded,
    TradingStateChanged,
    VolatilityInterrupted,
)
from engine.faults import InvariantBroken
from engine.identities import Identities, Member
from engine.market import ASIDE, FUNDED, Instrument, Options
from engine.matching import auction, continuous
from engine.matching.auction import PAIR
from engine.matching.book import (
    ALL,
    BUY,
    FILL,
    GONE,
    GONE_WAITING,
    IN_BOOK,
    PARTICIPANT_SHIFT,
    SELL,
    WAITING,
    Fills,
    OrderTable,
)
from engine.matching.itayose import Equilibrium, Rotation
from engine.names import Name
from engine.profiles import FOK, IMMEDIATE, TRADE, PhaseRules
from engine.rebuild import is_sound, queue_of, rows_of
from engine.tape import Tape
from engine.ticket import SELF_TRADE_NONE
from engine.types import PRICE_MAX, SIDES, CancelReason, OrderType, Phase, SelfTrade, TimeInForce
from engine.wire import EventWriter

_NO_OPTIONS: Final = Options()
# Names of another module are looked up at every use; these are not.
_Cancelled: Final = Cancelled
_Traded: Final = Traded
_Sides: Final = SIDES
_REMAINDER: Final = CancelReason.REMAINDER
_IMMEDIATE: Final[i64] = IMMEDIATE
_PRICE_BITS: Final = 49  # PRICE_MAX is 2**48
SECOND_NS: Final = 1_000_000_000
#: Integers of the matches of an auction that are looked up together: what that fetches fits the fast part of a cache.
_AT_ONCE: Final = 256 * PAIR


@final
class Party:
    """Who stands on one side of the matches of an auction, as prints tell of it, one match after the other.

    All of them are looked up before the first is printed (``Column.of``). An order that goes on in the next match is
    told of by the same objects: where a quarter of a million trades are printed, to make one of each number, and to
    find the memory, would be much of the work.
    """

    def __init__(self, table: OrderTable, members: list[Member], matches: vec[i64], side: i64) -> None:
        orders = vec[i64]()
        last: i64 = 0
        for at in range(0, len(matches), PAIR):
            if matches[at + side] != last:
                last = matches[at + side]
                orders = append(orders, last)
        self._limits: Final = table.price.of(orders)
        self._terms: Final = table.terms.of(orders)
        self._client_order_ids: Final = table.client_order_id.of(orders)
        self._accounts: Final = table.account.of(orders)
        self._members: Final = members
        self._next: i64 = 0  #: place of the next order
        self._order: i64 = 0
        self._limit: i64 = 0
        self.order: Any = 0  #: a number as an object; so is the limit
        self.limit: Any = 0
        self.name: str = ""
        self.client_order_id: str = ""
        self.account: str = ""

    def turn_to(self, order: i64) -> None:
        """Tell of the next match, in which it is ``order``."""
        if order == self._order:
            return
        place = self._next
        self._next = place + 1
        self._order = order
        self.order = order
        if self._limits[place] != self._limit:
            self._limit = self._limits[place]
            self.limit = self._limit
        self.name = self._members[self._terms[place] >> PARTICIPANT_SHIFT].name
        self.client_order_id = self._client_order_ids[place]
        self.account = self._accounts[place]


class Trading:
    """The orders, the books, and the rules by which orders meet."""

    def __init__(self) -> None:
        self.sequence: int = 0  #: commands applied, refused ones included
        self.time_ns: int = 0  #: stamp of the last command
        self.date: int = 0  #: trading day, YYYYMMDD; 0 before the first
        self.trades: int = 0  #: number of the last trade
        self._orders: Final = OrderTable()
        self._options: Final[dict[int, Options]] = {}  #: by order; most have none
        self._instruments: Final[list[Instrument]] = []
        self._identities: Final = Identities(self._orders.client_order_id)
        self._tape: Final = Tape()
        #: Quantity and price of orders as they were accepted, of those that have changed since (see ``_original``).
        self._originals: Final[dict[int, int]] = {}
        #: Stops that this command's trades have triggered and that have not yet had their turn.
        self._triggered: Final[deque[int]] = deque()
        self._planned: Final = Fills()  #: of the order that trades
        #: For whoever wants the bytes of events, see ``Engine.tell`` and ``carry_out``.
        self._writer: EventWriter | None = None

    def _writer_for(self, instrument: Instrument) -> EventWriter | None:
        """What writes events of ``instrument`` as they are made; None: they have to be objects.

        They have to where somebody within the engine reads them: funding does, and quotes do.
        """
        return None if instrument.guards & FUNDED or instrument.special else self._writer

    # --- entering ----------------------------------------------------------------------------------------------------

    def _enter(self, instrument: Instrument, order: int, events: list[Event]) -> None:
        """An order that is in no queue trades where the book trades, and joins its queue where it does not."""
        if instrument.phase_rules.matching == TRADE and not instrument.suspended:
            if instrument.special:
                self._trade_special(instrument, order, events)
            elif self._meets_nobody(instrument, order):
                instrument.book.add(order)
                return
            else:
                self._trade(instrument, order, events)
            if self._triggered:
                self._run_triggered(instrument, events)
        elif order in self._options:
            self._rest(instrument, order, 0, events)
        else:
            instrument.book.add(order)

    def _meets_nobody(self, instrument: Instrument, order: i64) -> bool:
        """Whether all that ``_trade`` would do is let a plain order rest: most orders do, and pay for no more."""
        table = self._orders
        limit: i64 = table.price[order]
        if limit == 0 or instrument.volatile or instrument.rules.market_rests:
            return False
        if _IMMEDIATE >> table.validity(order) & 1 or (self._options and order in self._options):
            return False
        side = table.side(order)
        best = instrument.book.best(side ^ 1)
        return best == 0 or (best > limit if side == BUY else best < limit)

    def _trade_special(self, instrument: Instrument, order: int, events: list[Event]) -> None:
        """The same where more rules than zaraba's apply; ``Quoting`` has them."""
        self._trade(instrument, order, events)

    def _trade(self, instrument: Instrument, order: int, events: list[Event]) -> None:
        """Zaraba: ``order``, in no queue, trades; what is left rests or goes."""
        table = self._orders
        rules = instrument.rules
        options = self._options.get(order) if self._options else None
        mode = rules.self_trade if options is None or options.self_trade == 0 else options.self_trade
        own = table.terms[order] >> PARTICIPANT_SHIFT if mode > SELF_TRADE_NONE else -1
        limit = table.price[order]
        to_limit = False
        if limit == 0:
            to_limit = table.order_type(order) == OrderType.MARKET_TO_LIMIT
            if instrument.upper:  # limits that came with the day's first price leave orders beyond them in the book
                limit = instrument.upper if table.side(order) == BUY else instrument.lower
        wanted = table.open[order]
        validity = 1 << table.validity(order)
        needed = wanted if validity & FOK else (options.minimum if options is not None else 0)
        bound = self._bound(instrument, order, limit) if instrument.volatile else limit
        if needed and self._reachable(instrument, order, bound, needed, mode, own) < needed:
            table.state[order] = GONE
            events.append(self._cancelled(order, CancelReason.REMAINDER, "", False))
            return
        if to_limit:
            best = instrument.book.best(table.side(order) ^ 1)
            if best == 0 or limit == 0 or (best < limit if table.side(order) == BUY else best > limit):
                limit = best
        if instrument.volatile:
            last = self._match_in_band(instrument, order, limit, mode, own, events)
        else:
            last = self._match(instrument, order, limit, mode, own, events)
        left = table.open[order]
        if left == 0 or table.state[order] == GONE:
            return
        if validity & IMMEDIATE == 0:
            if to_limit and (last or limit):
                self._give_limit(instrument, order, last or limit, events)
            if table.price[order] or rules.market_rests or instrument.phase_rules.matching != TRADE:
                if options is None:
                    instrument.book.add(order)
                else:
                    self._rest(instrument, order, wanted - left, events)
                return
        table.state[order] = GONE
        self._say_cancelled(instrument, order, _REMAINDER, None, events)

    def _match(self, instrument: Instrument, order: int, limit: int, mode: int, own: int, events: list[Event]) -> int:
        """Trade ``order`` until nothing more can; the last price, or 0."""
        table = self._orders
        book = instrument.book
        other = table.side(order) ^ 1
        reserves = instrument.reserves
        last = 0
        fills = self._planned
        while True:
            if instrument.rules.chooses and table.open[order]:
                # Orders without a limit come first. They are in no ladder, so ``take`` does not see them.
                level = 0
                price = 0
                if instrument.rules.market_rests and book.head(other, 0):
                    price = self._market_price(instrument, other, limit)
                    if price == 0:
                        break
                elif instrument.turns is not None and instrument.turns.periods:
                    level = price = book.best(other)
                    if price == 0 or (limit and (price > limit if other else price < limit)):
                        break
                if price:
                    if self._meet(instrument, order, level, price, mode, own, events):
                        last = price
                    if table.state[order] == GONE:
                        break
                    continue
            before = table.open[order]
            fills.count = 0
            stopped = continuous.take(table, book, order, limit, fills, own, reserves)
            if fills.count:
                cells = fills.cells
                quantity = 0
                for i in range(0, fills.count, FILL):
                    last = cells[i + 2]
                    quantity = cells[i + 3]
                    before -= quantity
                    self._traded(instrument, order, before, cells[i], last, quantity, events)
                instrument.last_price = last
                instrument.last_quantity = quantity
                instrument.reference = last
            if stopped == 0:
                break
            if table.open[stopped] == 0:
                self._replenish(instrument, stopped, events)
            elif self._is_own(instrument, order, stopped, own):
                self._prevent(instrument, order, stopped, table.price[stopped], mode, events)
                if table.state[order] == GONE or table.open[order] == 0:
                    break
            else:  # of the same firm, but of another group
                self._trade_one(instrument, order, stopped, table.price[stopped], events)
                last = table.price[stopped]
        if instrument.rules.market_rests and last:
            self._match_markets(instrument, events)
        return last

    # --- whose turn it is --------------------------------------------------------------------------------------------

    def _meet(
        self, instrument: Instrument, order: int, level: int, price: int, mode: int, own: int, events: list[Event]
    ) -> bool:
        """Trade ``order``, in no queue, at ``price`` with whoever comes first at ``level`` (0: those without a limit).

        That is one order, or a group whose members take turns; up to one of its own group, which gives way or does not.
        False: nothing has traded.
        """
        table = self._orders
        other = table.side(order) ^ 1
        group = self._first_group(instrument, other, level)
        mine = [i for i in range(len(group)) if self._is_own(instrument, order, group[i], own)]
        volume = min(table.open[order], sum([table.open[maker] for maker in group]))
        if mine:
            volume = self._before_own(instrument, other, level, group, mine, volume)
        if volume == 0:
            first = self._in_turn(instrument, other, level, group).take(1)
            maker = group[first.index(1)]
            self._prevent(instrument, order, maker, price, mode, events)
            return False
        rotation = self._in_turn(instrument, other, level, group)
        fills = rotation.take(volume)
        turns = instrument.turns
        period = self._period(instrument, group[0], 0)
        if turns is not None and period:
            turns.keep(other, level, period, rotation.turns)
        for i in range(len(group)):
            if fills[i]:
                self._trade_one(instrument, order, group[i], price, events, quantity=fills[i])
        return True

    def _period(self, instrument: Instrument, order: int, now: int) -> int:
        """In which period an order in the book was entered, on-close orders when they joined; see ``Turns.period``."""
        turns = instrument.turns
        if turns is None:
            return 0
        table = self._orders
        entered: int = table.priority[order]
        validity = table.validity(order)
        if validity == TimeInForce.ON_CLOSE or (validity == TimeInForce.FUNARI and table.price[order] == 0):
            entered = max(entered, turns.joined)
        return turns.period(entered, now)

    def _first_group(self, instrument: Instrument, side: int, level: int, behind: int = 0) -> list[int]:
        """The orders at a price, from the one behind ``behind`` on, that are of the period of the first; or only it.

        Raises ``InvariantBroken`` where queue and rows do not say the same.
        """
        table = self._orders
        order = table.behind(behind) if behind else instrument.book.head(side, level)
        group: list[int] = []
        period = 0
        while order:
            continuous.verify(table, side, level, order, behind, instrument.index)
            if group and (period == 0 or self._period(instrument, order, 0) != period):
                break
            if not group:
                period = self._period(instrument, order, 0)
            group.append(order)
            behind = order
            order = table.behind(order)
        return group

    def _in_turn(self, instrument: Instrument, side: int, level: int, group: list[int]) -> Rotation:
        table = self._orders
        turns = instrument.turns
        period = self._period(instrument, group[0], 0)
        return Rotation(
            [table.participant(maker) for maker in group],
            [table.open[maker] for maker in group],
            instrument.lot,
            turns.resume(side, level, period) if turns is not None and period else None,
        )

    def _before_own(
        self, instrument: Instrument, side: int, level: int, group: list[int], mine: list[int], volume: int
    ) -> int:
        """How much of ``volume`` a group trades before the turn comes to one of the orders at the places ``mine``."""
        low = 0
        while low < volume:  # what an order gets grows with the volume, so halving finds it
            middle = (low + volume + 1) // 2
            fills = self._in_turn(instrument, side, level, group).take(middle)
            if any(fills[i] for i in mine):
                volume = middle - 1
            else:
                low = middle
        return volume

    def _reach(
        self, instrument: Instrument, side: int, level: int, wanted: int, member: int, account: str
    ) -> tuple[int, bool]:
        """How much of ``wanted`` an order can trade at a price, and whether it then meets one of its own group.

        For books where members take turns; of an order's group are those of ``member``, or of an ``account`` of it.
        """
        table = self._orders
        by_account = instrument.rules.self_trade_by_account
        total = 0
        group = self._first_group(instrument, side, level)
        while group and total < wanted:
            shown = sum([table.open[maker] for maker in group])
            mine: list[int] = []
            for i in range(len(group)):
                if table.participant(group[i]) == member and (not by_account or table.account[group[i]] == account):
                    mine.append(i)
            if mine and (account or not by_account):
                most = min(shown, wanted - total)
                before = self._before_own(instrument, side, level, group, mine, most)
                if before < most:
                    return total + before, True
            total += shown
            group = self._first_group(instrument, side, level, group[-1])
        return total, False

    def _collect(self, instrument: Instrument) -> None:
        """The book does not trade any more: what is entered from now on, until an itayose is held, is simultaneous.

        So is what a session leaves when it ends, with all that comes before the next opening.
        """
        if instrument.turns is not None:
            over = instrument.phase in (Phase.CLOSED, Phase.BREAK)
            instrument.turns.collect(0 if over else self.sequence - 1)

    def _trade_on(self, instrument: Instrument) -> None:
        """The book trades, and no itayose was held before."""
        if instrument.turns is not None:
            instrument.turns.since = -1

    # --- the volatility band -----------------------------------------------------------------------------------------

    def _band(self, instrument: Instrument) -> tuple[int, int]:
        """The lowest and the highest price at which an order may trade now; without a last price any."""
        last = instrument.reference
        if last == 0:
            return 1, PRICE_MAX
        width = last * instrument.rules.volatility_band
        return -(-(last * 10_000 - width) // 10_000), (last * 10_000 + width) // 10_000

    def _bound(self, instrument: Instrument, order: int, limit: int) -> int:
        """The worst price at which ``order`` may trade: its limit, or the edge of the band."""
        if instrument.reference == 0:
            return limit
        lower, upper = self._band(instrument)
        if self._orders.side(order) == BUY:
            return min(limit, upper) if limit else upper
        return max(limit, lower, 1)

    def _next_price(self, instrument: Instrument, order: int, limit: int) -> int:
        """The price of the trade that ``order`` would make next; 0: none."""
        side = self._orders.side(order)
        if instrument.rules.market_rests and instrument.book.head(side ^ 1, 0):
            return self._market_price(instrument, side ^ 1, limit)
        best = instrument.book.best(side ^ 1)
        if best == 0 or (limit and (best > limit if side == BUY else best < limit)):
            return 0
        return best

    def _match_in_band(
        self, instrument: Instrument, order: int, limit: int, mode: int, own: int, events: list[Event]
    ) -> int:
        """``_match`` as far as the band lets it; where the next trade lies outside, a call opens."""
        lower, upper = self._band(instrument)
        reference = instrument.reference
        price = self._next_price(instrument, order, limit)
        last = 0
        if price and lower <= price <= upper:
            last = self._match(instrument, order, self._bound(instrument, order, limit), mode, own, events)
            price = 0
            if self._orders.open[order] and self._orders.state[order] != GONE:
                price = self._next_price(instrument, order, limit)
        if price and not lower <= price <= upper:
            events.append(VolatilityInterrupted(instrument.code, price, reference, lower, upper))
            until_ns = self.time_ns + instrument.rules.volatility_call_seconds * SECOND_NS
            self._open_call(instrument, until_ns, events)
        return last

    def _open_call(self, instrument: Instrument, until_ns: int, events: list[Event]) -> None:
        """A rule, and no ``SetPhase``, opens a call."""
        before = instrument.phase
        self._collect(instrument)
        instrument.enter(Phase.CALL, until_ns)
        events.append(PhaseChanged(instrument.code, Phase.CALL, before))
        events.append(PhaseTimed(instrument.code, Phase.CALL, until_ns))

    # --- fills -------------------------------------------------------------------------------------------------------

    def _trade_one(
        self,
        instrument: Instrument,
        order: int,
        maker: int,
        price: int,
        events: list[Event],
        queued: bool = False,
        quantity: int = 0,
    ) -> None:
        """One fill with the resting ``maker``: of ``quantity``, or of all that both have.

        ``order`` is in no queue, or it is ``queued`` and keeps its place.
        """
        table = self._orders
        quantity = quantity or min(table.open[order], table.open[maker])
        instrument.book.fill(maker, quantity)
        if queued:
            instrument.book.fill(order, quantity)
        else:
            table.open[order] -= quantity
        self._traded(instrument, order, table.open[order], maker, price, quantity, events)
        instrument.last_price = price
        instrument.last_quantity = quantity
        instrument.reference = price
        if table.open[maker] == 0 and maker in instrument.reserves:
            self._replenish(instrument, maker, events)

    def _reachable(self, instrument: Instrument, order: int, limit: int, wanted: int, mode: int, own: int) -> int:
        """How much ``order`` could trade at once, counted no further than ``wanted``.

        Own orders are no counterparty: passed over where they would be cancelled, the end of it where they would not.
        Where members take turns the end may come earlier; then less is said than could trade.
        """
        table = self._orders
        book = instrument.book
        side = table.side(order) ^ 1
        hidden = sum(instrument.reserves.values())
        available = book.available(side, limit, wanted)
        if instrument.rules.market_rests and book.head(side, 0):
            if self._market_price(instrument, side, limit) == 0:
                return 0
            available += book.level_quantity(side, 0)
        if available + hidden < wanted or (own < 0 and available >= wanted):
            return available
        total = 0
        prices = [0] if instrument.rules.market_rests else []
        book.levels(side, prices, [])
        for price in prices:
            if total >= wanted or (limit and price and (price > limit if side else price < limit)):
                break
            behind = 0  # what icebergs show only after everybody at the price has had a turn
            maker = book.head(side, price)
            if instrument.turns is not None and own >= 0 and mode != SelfTrade.CANCEL_OLDEST:
                reach, met = self._reach(instrument, side, price, wanted - total, own, table.account[order])
                total += reach
                if met:
                    return total
                total += self._hidden(instrument, maker)
                continue
            while maker:
                if not self._is_own(instrument, order, maker, own):
                    total += table.open[maker]
                    behind += instrument.reserves.get(maker, 0)
                elif mode != SelfTrade.CANCEL_OLDEST:
                    return total
                maker = table.behind(maker)
            total += behind
        return total

    def _would_meet_own(
        self, instrument: Instrument, side: int, limit: int, wanted: int, member: int, account: str
    ) -> bool:
        """Whether an order that is not yet there would come to trade with its own group."""
        table = self._orders
        book = instrument.book
        by_account = instrument.rules.self_trade_by_account
        if by_account and not account:
            return False
        other = side ^ 1
        prices = [0]
        book.levels(other, prices, [])
        total = 0
        for price in prices:
            if total >= wanted or (limit and price and (price > limit if other else price < limit)):
                return False
            maker = book.head(other, price)
            if instrument.turns is not None:
                reach, met = self._reach(instrument, other, price, wanted - total, member, account)
                if met:
                    return True
                total += reach + self._hidden(instrument, maker)
                continue
            while maker:
                if total >= wanted:
                    return False
                if table.participant(maker) == member and (not by_account or table.account[maker] == account):
                    return True
                total += table.open[maker]
                maker = table.behind(maker)
            total += self._hidden(instrument, book.head(other, price))
        return False

    def _hidden(self, instrument: Instrument, maker: int) -> int:
        """What ``maker`` and those behind it at its price do not show."""
        total = 0
        if instrument.reserves:
            while maker:
                total += instrument.reserves.get(maker, 0)
                maker = self._orders.behind(maker)
        return total

    # --- self-trade prevention ---------------------------------------------------------------------------------------

    def _mode(self, instrument: Instrument, order: int) -> int:
        """By which mode an order gives way to others of its own group."""
        options = self._options.get(order)
        return options.self_trade if options is not None and options.self_trade else instrument.rules.self_trade

    def _is_own(self, instrument: Instrument, order: int, maker: int, own: int) -> bool:
        """Whether two orders are of one group: a firm, or an account of a firm."""
        table = self._orders
        if table.terms[maker] >> PARTICIPANT_SHIFT != own:
            return False
        if not instrument.rules.self_trade_by_account:
            return True
        account = table.account[order]
        return account != "" and account == table.account[maker]

    def _prevent(
        self,
        instrument: Instrument,
        order: int,
        maker: int,
        price: int,
        mode: int,
        events: list[Event],
        queued: bool = False,
    ) -> None:
        """``order``, in no queue or ``queued``, would trade with ``maker`` of its own group: one or both give way."""
        table = self._orders
        maker_open = self._whole(instrument, maker)
        quantity = min(table.open[order], maker_open)
        events.append(
            SelfTradePrevented(
                self._identities.members[table.participant(order)].name,
                instrument.code,
                price,
                min(table.open[order], table.open[maker]),
                table.client_order_id[order],
                order,
                table.client_order_id[maker],
                maker,
            )
        )
        if mode == SelfTrade.DECREMENT:
            cancel_maker = maker_open == quantity
            cancel_order = table.open[order] == quantity
            if not cancel_maker:
                self._reduce(instrument, maker, quantity, events)
            elif not cancel_order and queued:
                self._reduce(instrument, order, quantity, events)
            elif not cancel_order:
                self._keep_original(order)
                before = table.open[order]
                table.open[order] -= quantity
                table.quantity[order] -= quantity
                events.append(self._changed(instrument, order, before, table.price[order]))
        else:
            cancel_maker = mode == SelfTrade.CANCEL_OLDEST or mode == SelfTrade.CANCEL_BOTH
            cancel_order = mode != SelfTrade.CANCEL_OLDEST
        if cancel_maker:
            self._withdraw(maker, CancelReason.SELF_TRADE, "", events)
        if cancel_order and queued:
            self._withdraw(order, CancelReason.SELF_TRADE, "", events)
        elif cancel_order:
            table.state[order] = GONE
            events.append(self._cancelled(order, CancelReason.SELF_TRADE, "", False))

    def _keep_original(self, order: int) -> None:
        """Remember what was accepted, ahead of a change: one integer, quantity above price."""
        if order not in self._originals:
            table = self._orders
            self._originals[order] = int(table.quantity[order]) << _PRICE_BITS | int(table.price[order])

    def _original(self, order: int) -> tuple[int, int]:
        """Quantity and price of an order as it was accepted."""
        kept = self._originals.get(order)
        if kept is None:
            return self._orders.quantity[order], self._orders.price[order]
        return kept >> _PRICE_BITS, kept & (1 << _PRICE_BITS) - 1

    def _changed(self, instrument: Instrument, order: int, before: int, price_before: int) -> Amended:
        """The market itself has changed an order: no request asked for it, and its place is kept."""
        table = self._orders
        return Amended(
            self._identities.members[table.participant(order)].name,
            table.client_order_id[order],
            order,
            instrument.code,
            SIDES[table.side(order)],
            table.quantity[order],
            table.price[order],
            self._whole(instrument, order),
            before,
            price_before,
            True,
            "",
            False,
            table.state[order] == WAITING,
        )

    def _reduce(self, instrument: Instrument, order: int, quantity: int, events: list[Event]) -> None:
        """Take ``quantity`` off a resting order of more; it keeps its place."""
        table = self._orders
        hides = order in instrument.reserves
        if hides:
            self._show_whole(instrument, order, events)
        self._keep_original(order)
        before = table.open[order]
        table.quantity[order] -= quantity
        instrument.book.fill(order, quantity)
        events.append(self._changed(instrument, order, before, table.price[order]))
        if hides:
            self._show_peak(instrument, order, events)

    # --- icebergs ----------------------------------------------------------------------------------------------------

    def _whole(self, instrument: Instrument, order: int) -> int:
        """All that is open of an order, shown or not."""
        if instrument.reserves:
            return self._orders.open[order] + instrument.reserves.get(order, 0)
        return self._orders.open[order]

    def _rest(self, instrument: Instrument, order: int, traded: int, events: list[Event]) -> None:
        """An order that may be an iceberg joins its queue, of which ``traded`` has traded on the way."""
        table = self._orders
        whole = table.open[order]
        options = self._options.get(order, _NO_OPTIONS)
        shown = options.display
        if shown and instrument.rules.rest_of_peak:
            shown -= traded % shown
        if shown and shown < whole:
            instrument.reserves[order] = whole - shown
            options.shown = shown
            table.open[order] = shown
            instrument.book.add(order)
            events.append(self._displayed(instrument, order, shown, whole))
        else:
            instrument.book.add(order)

    def _replenish(self, instrument: Instrument, order: int, events: list[Event]) -> None:
        """All that an iceberg showed has traded: a fresh peak shows, behind all others at its price."""
        table = self._orders
        hidden = instrument.reserves.pop(order)
        shown = min(self._options[order].display, hidden)
        if hidden > shown:
            instrument.reserves[order] = hidden - shown
        table.open[order] = shown
        table.priority[order] = self.sequence
        instrument.book.add(order)
        events.append(self._displayed(instrument, order, shown, 0))

    def _show_whole(self, instrument: Instrument, order: int, events: list[Event]) -> None:
        """An order in the book shows all it has, in its place. ``_show_peak`` goes back."""
        if order not in self._options:
            return
        shown = self._orders.open[order]
        self._options[order].shown = shown
        hidden = instrument.reserves.pop(order, 0)
        if hidden:
            instrument.book.fill(order, -hidden)
            events.append(self._displayed(instrument, order, shown + hidden, shown))

    def _show_peak(self, instrument: Instrument, order: int, events: list[Event]) -> None:
        """An iceberg in the book, shown whole, shows what it did before; less if it has less."""
        options = self._options.get(order, _NO_OPTIONS)
        whole = self._orders.open[order]
        if options.display and options.shown < whole:
            instrument.reserves[order] = whole - options.shown
            instrument.book.fill(order, whole - options.shown)
            events.append(self._displayed(instrument, order, options.shown, whole))

    def _displayed(self, instrument: Instrument, order: int, displayed: int, before: int) -> DisplayChanged:
        table = self._orders
        return DisplayChanged(
            self._identities.members[table.participant(order)].name,
            table.client_order_id[order],
            order,
            instrument.code,
            SIDES[table.side(order)],
            table.price[order],
            displayed,
            before,
        )

    # --- orders without a limit --------------------------------------------------------------------------------------

    def _market_price(self, instrument: Instrument, resting: int, limit: int) -> int:
        """At what price an order without a limit on side ``resting`` trades with an incoming one; 0: there is none.

        The last price, or a better one for the incoming side's counterpart: no limit, of the incoming order or in the
        book, may be left with a better claim (Xetra's principles for continuous trading).
        """
        prices = [price for price in (instrument.reference, instrument.book.best(resting), limit) if price]
        if not prices:
            return 0
        return min(prices) if resting == SELL else max(prices)

    def _match_markets(self, instrument: Instrument, events: list[Event]) -> None:
        """Orders without a limit that rested on both sides for want of any price trade now that there is one.

        Of two of one group the newer is taken for the one that comes: one or both give way by its mode.
        """
        table = self._orders
        book = instrument.book
        while True:
            buy = book.head(BUY, 0)
            sell = book.head(SELL, 0)
            if buy == 0 or sell == 0:
                return
            order = max(buy, sell)
            maker = min(buy, sell)
            price = instrument.reference
            mode = self._mode(instrument, order)
            own: int = table.terms[order] >> PARTICIPANT_SHIFT if mode > SelfTrade.NONE else -1
            if self._is_own(instrument, order, maker, own):
                self._prevent(instrument, order, maker, price, mode, events, queued=True)
            else:
                self._trade_one(instrument, order, maker, price, events, queued=True)

    def _give_limit(self, instrument: Instrument, order: int, price: int, events: list[Event]) -> None:
        """A market-to-limit order, in no queue, takes over a price as its limit."""
        self._keep_original(order)
        self._orders.price[order] = price
        events.append(self._changed(instrument, order, self._orders.open[order], 0))

    # --- stops -------------------------------------------------------------------------------------------------------

    def _is_through(self, instrument: Instrument, side: int, stop_price: int) -> bool:
        """Whether the market is at a stop price already. Nothing is triggered while orders only collect."""
        price = instrument.reference
        if price == 0 or instrument.phase_rules.matching != TRADE or instrument.suspended:
            return False
        return price >= stop_price if side == BUY else price <= stop_price

    def _wait(self, instrument: Instrument, order: int) -> None:
        """Keep a stop outside the book until its price is reached."""
        table = self._orders
        table.state[order] = WAITING
        instrument.stops[order] = True
        stop_price = self._options[order].stop_price
        if table.side(order) == BUY:
            heappush(instrument.buy_stops, (stop_price, table.priority[order], order))
        else:
            heappush(instrument.sell_stops, (-stop_price, table.priority[order], order))

    def _reached(self, instrument: Instrument, price: int) -> None:
        """There was a trade at ``price``: the stops it reaches are triggered and wait for their turn."""
        for heap, reached in ((instrument.buy_stops, price), (instrument.sell_stops, -price)):
            while heap and heap[0][0] <= reached:
                _, priority, order = heappop(heap)
                # What was cancelled or changed meanwhile has left its entry behind.
                if order in instrument.stops and self._orders.priority[order] == priority:
                    self._triggered.append(order)

    def _run_triggered(self, instrument: Instrument, events: list[Event]) -> None:
        """Triggered stops enter the book one after the other; what they trade may trigger more."""
        table = self._orders
        while self._triggered:
            order = self._triggered.popleft()
            if table.state[order] != WAITING or order not in instrument.stops:
                continue
            del instrument.stops[order]
            table.state[order] = IN_BOOK
            table.priority[order] = self.sequence
            events.append(self._activated(instrument, order))
            if instrument.phase_rules.matching == TRADE:
                try:
                    self._trade(instrument, order, events)
                except InvariantBroken as fault:
                    self._give_up(order, events)
                    self._set_aside(instrument, fault, events)
            elif 1 << table.validity(order) & IMMEDIATE:  # one before it has opened a call
                table.state[order] = GONE
                events.append(self._cancelled(order, CancelReason.REMAINDER, "", False))
            else:
                self._rest(instrument, order, 0, events)

    def _resume_stops(self, instrument: Instrument, events: list[Event]) -> None:
        """Trading begins or goes on: what the last price reaches by now is triggered."""
        if instrument.stops and instrument.reference and not self._is_closed(instrument):
            self._reached(instrument, instrument.reference)
            self._run_triggered(instrument, events)

    def _activated(self, instrument: Instrument, order: int, quantity: int = 0) -> Activated:
        """``order`` takes part from now on, with ``quantity`` of it or with all."""
        table = self._orders
        return Activated(
            self._identities.members[table.participant(order)].name,
            table.client_order_id[order],
            order,
            instrument.code,
            SIDES[table.side(order)],
            table.price[order],
            quantity or table.open[order],
        )

    # --- failure inside ----------------------------------------------------------------------------------------------

    def _set_aside(self, instrument: Instrument, fault: InvariantBroken, events: list[Event]) -> None:
        """Take an instrument whose book contradicts itself out of the market; see ``engine/rebuild.py``."""
        self._collect(instrument)
        instrument.set_aside = True
        instrument.frozen = not is_sound(instrument.book)
        instrument.guards |= ASIDE
        self._triggered.clear()  # they still wait, and are looked at again when the book trades again
        if not instrument.suspended:
            instrument.suspended = True
            events.append(TradingStateChanged(instrument.code, True))
        events.append(InstrumentSetAside(instrument.code, str(fault), instrument.frozen))

    def _give_up(self, order: int, events: list[Event]) -> None:
        """An order in no queue goes; what it has traded so far stays."""
        self._orders.state[order] = GONE
        events.append(self._cancelled(order, CancelReason.SET_ASIDE, "", False))

    # --- leaving -----------------------------------------------------------------------------------------------------

    def _release(self, order: int, events: list[Event]) -> None:
        """Take an open order off the market. Its row keeps what was open."""
        table = self._orders
        instrument = self._instruments[table.instrument(order)]
        if table.state[order] == WAITING:
            table.state[order] = GONE_WAITING
            if instrument.stops:
                instrument.stops.pop(order, False)
            if instrument.imbalance:
                instrument.imbalance.pop(order, False)
        else:
            if instrument.reserves:
                self._show_whole(instrument, order, events)
            continuous.withdraw(table, instrument.book, order)

    def _withdraw(self, order: int, reason: CancelReason, request_id: str, events: list[Event]) -> None:
        """Take an open order off the market and say so."""
        self._release(order, events)
        events.append(self._cancelled(order, reason, request_id, False))

    def _expire(self, instrument: Instrument, validities: int, events: list[Event]) -> None:
        """End the orders of ``validities``; at Closed also whatever has no limit: it never rests overnight."""
        table = self._orders
        closed = instrument.phase == Phase.CLOSED
        for order in sorted(self._open_orders(instrument) if closed else instrument.bound):
            if table.is_open(order) and (
                1 << table.validity(order) & validities
                or (closed and table.price[order] == 0 and table.state[order] != WAITING)
                or (closed and self._last_day(order) <= self.date)
            ):
                self._withdraw(order, CancelReason.EXPIRED, "", events)

    def _last_day(self, order: int) -> int:
        """The last day of a good-till-date order, YYYYMMDD; later than all days for the others."""
        options = self._options.get(order)
        return options.expire_date if options is not None and options.expire_date else 99991231

    def _cancelled(self, order: i64, reason: CancelReason, request_id: str, repeat: bool) -> Cancelled:
        table = self._orders
        return _Cancelled(
            self._identities.members[table.participant(order)].name,
            table.client_order_id[order],
            order,
            self._instruments[table.instrument(order)].code,
            _Sides[table.side(order)],
            table.price[order],
            table.open[order],
            reason,
            request_id,
            repeat,
            table.state[order] == GONE_WAITING,
        )

    def _say_cancelled(
        self,
        instrument: Instrument,
        order: i64,
        reason: CancelReason,
        request: Name | None,
        events: list[Event],
    ) -> None:
        writer = self._writer_for(instrument)
        if writer is None:
            events.append(self._cancelled(order, reason, request.text if request is not None else "", False))
            return
        table = self._orders
        written = writer.cancelled(
            self._identities.members[table.participant(order)].name,
            table.client_order_id,
            order,
            instrument.code,
            table.side(order),
            table.price[order],
            table.open[order],
            reason,
            request,
            False,
            table.state[order] == GONE_WAITING,
        )
        events.append(cast("Event", written))

    def _queue(self, instrument: Instrument, side: int, most: int = ALL) -> list[int]:
        """The orders of one side in matching priority, no more than the first ``most``."""
        if instrument.frozen:
            return queue_of(self._orders, instrument, side)
        return instrument.book.orders(self._orders, side, most)

    def _open_orders(self, instrument: Instrument) -> list[int]:
        """Every open order of an instrument, in the book or waiting."""
        if instrument.frozen:
            return rows_of(self._orders, instrument)
        orders = instrument.book.orders(self._orders, BUY)
        orders.extend(instrument.book.orders(self._orders, SELL))
        for order in instrument.bound:
            if self._orders.state[order] == WAITING and order not in instrument.imbalance:
                orders.append(order)
        orders.extend(instrument.stops)
        orders.extend(instrument.imbalance)
        return orders

    # --- trades ------------------------------------------------------------------------------------------------------

    def _traded(
        self,
        instrument: Instrument,
        taker: int,
        taker_open: int,
        maker: int,
        price: int,
        quantity: int,
        events: list[Event],
    ) -> None:
        """A trade in zaraba. ``taker`` has ``taker_open`` left; the resting order is as the trade has left it."""
        maker_open = self._whole(instrument, maker)
        if self._orders.side(maker) == SELL:
            self._print(instrument, taker, taker_open, maker, maker_open, price, quantity, SELL, events)
        else:
            self._print(instrument, maker, maker_open, taker, taker_open, price, quantity, BUY, events)
        if instrument.stops:
            self._reached(instrument, price)

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
        self._tape.append(buy, sell, price, quantity)
        ids = table.client_order_id
        buyer = self._identities.members[table.participant(buy)].name
        seller = self._identities.members[table.participant(sell)].name
        buy_account = table.account[buy]
        sell_account = table.account[sell]
        buy_limit = table.price[buy]
        sell_limit = table.price[sell]
        writer = self._writer_for(instrument)
        if writer is not None and not writer.keeps:
            written = writer.traded(
                ids, self.trades, instrument.code, price, quantity,
                buyer, buy, buy_open, buy_account, seller, sell, sell_open, sell_account,
                maker, self.date, instrument.settlement_date, buy_limit, sell_limit,
            )  # fmt: skip
            events.append(cast("Event", written))
            return
        events.append(
            _Traded(
                self.trades, instrument.code, price, quantity,
                buyer, ids[buy], buy, buy_open, buy_account, seller, ids[sell], sell, sell_open, sell_account,
                maker, self.date, instrument.settlement_date, buy_limit, sell_limit,
            )
        )  # fmt: skip

    # --- auctions ----------------------------------------------------------------------------------------------------

    def _equilibrium(self, instrument: Instrument) -> Equilibrium:
        """What an auction held now would give, imbalance-only orders apart; icebergs take part whole."""
        return self._price_book(instrument, instrument.lower, instrument.upper)

    def _price_book(self, instrument: Instrument, lower: int, upper: int) -> Equilibrium:
        table = self._orders
        hidden: list[tuple[int, int, int]] = [
            (table.side(order), table.price[order], quantity) for order, quantity in instrument.reserves.items()
        ]
        return auction.price(
            instrument.book,
            instrument.ticks,
            lower,
            upper,
            instrument.reference,
            instrument.rules.auction_price,
            self._must_fill(instrument),
            hidden,
        )

    def _must_fill(self, instrument: Instrument) -> bool:
        """Whether an auction that leaves a market order has no price.

        Special quotes decide that themselves; and where they lack a last price, a market order could wait for ever.
        """
        return instrument.rules.market_orders_must_all_fill and instrument.widths is None

    def _uncross(self, instrument: Instrument, events: list[Event]) -> None:
        """Hold one itayose: freeze, price, allocate, check; then print, and what has no place afterwards leaves."""
        if not instrument.in_window:
            self._carry_out(instrument, self._plan_auction(instrument, instrument.phase_rules), events)

    def _plan_auction(self, instrument: Instrument, rules: PhaseRules) -> auction.Plan:
        """What an auction held now, in a phase of these rules, does; checked, and nothing is changed.

        What joins the book with that phase takes part. Raises ``InvariantBroken``.
        """
        table = self._orders
        reserves = instrument.reserves
        plan = self._freeze(instrument, rules)
        bids = plan.bids
        asks = plan.asks
        for order in self._joining(instrument, rules.joins) if rules.joins else []:
            if order in plan.leaving:
                continue
            frozen = bids if table.side(order) == BUY else asks
            price = table.price[order]
            if table.validity(order) == TimeInForce.FUNARI:
                frozen.take_off(price, order, table.open[order])
                plan.turned[order] = True
                price = 0
            frozen.join(table.side(order), price, order, table.open[order])
        groups: dict[int, int] | None = None
        try:
            plan.result = self._price_plan(instrument, plan)
            if plan.result.price:
                plan.icebergs = sorted([order for order in reserves if order not in plan.leaving])
                if instrument.prevents:
                    self._plan_cuts(instrument, plan)
            if plan.result.price:
                if instrument.imbalance:
                    self._plan_imbalance(instrument, plan, rules.joins)
                buys: list[int] = []
                sells: list[int] = []
                buyers = self._simultaneous(instrument, plan, BUY)
                sellers = self._simultaneous(instrument, plan, SELL)
                buy_fills = self._fills(instrument, plan, BUY, buys, buyers)
                sell_fills = self._fills(instrument, plan, SELL, sells, sellers)
                for side, cut in ((BUY, buyers), (SELL, sellers)):
                    if cut is not None and cut.period:
                        plan.turns.append((side, cut.price, cut.period, cut.turns))
                groups = self._groups(instrument, buys + sells) if instrument.prevents else None
                plan.matches = auction.matches(buys, buy_fills, sells, sell_fills, groups)
                if instrument.rules.remainder_first:
                    plan.matches = auction.remainder_first(plan, table)
        except ValueError as error:  # arithmetic that was handed what cannot be
            raise InvariantBroken(f"The auction of {instrument.code} cannot be worked out: {error}") from error
        auction.verify(
            plan,
            table,
            instrument.ticks,
            instrument.lower,
            instrument.upper,
            self._must_fill(instrument),
            groups,
        )
        return plan

    def _freeze(self, instrument: Instrument, rules: PhaseRules) -> auction.Plan:
        bids = auction.freeze(self._orders, instrument.book, BUY, instrument.index, instrument.reserves)
        asks = auction.freeze(self._orders, instrument.book, SELL, instrument.index, instrument.reserves)
        plan = auction.Plan(bids, asks, rules.widths, rules.closes)
        plan.leaving = self._leaving(instrument)
        for order in plan.leaving:
            if self._orders.state[order] == IN_BOOK:
                price = self._orders.price[order]
                frozen = bids if self._orders.side(order) == BUY else asks
                frozen.take_off(price, order, frozen.amount(price, order))
        return plan

    def _joining(self, instrument: Instrument, validities: int) -> list[int]:
        """Orders that take their place in the book with a phase: those that wait for it, and funari orders, which lose
        their limits. By time of entry; imbalance-only orders never have a place.
        """
        table = self._orders
        joining: list[tuple[int, int]] = []
        for order in instrument.bound:
            if table.is_open(order) and 1 << table.validity(order) & validities and order not in instrument.imbalance:
                funari = table.validity(order) == TimeInForce.FUNARI and table.price[order]
                if table.state[order] == WAITING or funari:
                    joining.append((table.priority[order], order))
        return [order for _, order in sorted(joining)]

    def _leaving(self, instrument: Instrument) -> list[int]:
        """Open orders that may not take part in an auction (``engine/eligibility.py``)."""
        return []

    def _is_closed(self, instrument: Instrument) -> bool:
        """Whether nothing may trade, whatever the phase says (``engine/eligibility.py``)."""
        return False

    def _price_plan(self, instrument: Instrument, plan: auction.Plan) -> Equilibrium:
        return self._price_frozen(instrument, plan, instrument.lower, instrument.upper)

    def _price_frozen(self, instrument: Instrument, plan: auction.Plan, lower: int, upper: int) -> Equilibrium:
        return auction.price_frozen(
            plan.bids,
            plan.asks,
            instrument.ticks,
            lower,
            upper,
            instrument.reference,
            instrument.rules.auction_price,
            self._must_fill(instrument),
        )

    def _plan_imbalance(self, instrument: Instrument, plan: auction.Plan, joins: int) -> None:
        """Let imbalance-only orders take what the other side has left over at the price, which stays as it is.

        Better limits come first, then earlier orders; all of them come behind the book. Where self-trades are
        prevented, an order whose group stands on the other side, anywhere in reach, is passed over: with it, what was
        cut and priced would have to be done again.
        """
        table = self._orders
        price = plan.result.price
        left = abs(plan.result.surplus)
        side = SELL if plan.result.surplus > 0 else BUY
        ranked: list[tuple[int, int, int]] = []
        for order, joined in instrument.imbalance.items():
            takes_part = joined or 1 << table.validity(order) & joins != 0
            away = table.price[order] - price if side == SELL else price - table.price[order]
            takes_part = takes_part and order not in plan.leaving
            if left and takes_part and table.side(order) == side and away <= 0:
                ranked.append((away, table.priority[order], order))
        if not ranked:
            return
        groups: dict[int, int] = {}
        opposite: set[int] = set()
        if instrument.prevents:
            others: list[int] = []
            frozen = plan.asks if side == BUY else plan.bids
            for place in range(len(frozen.prices)):
                level = frozen.prices[place]
                if level == 0 or (level >= price if side == SELL else level <= price):
                    others.extend(frozen.queues[place])
            groups = self._groups(instrument, [*others, *[order for _, _, order in ranked]])
            opposite = {groups[order] for order in others if order in groups}
        for _, _, order in sorted(ranked):
            fill = min(left, table.open[order])
            if fill and not (order in groups and groups[order] in opposite):
                plan.added.append((order, fill))
                left -= fill
        if plan.added:
            orders = [order for order, _ in plan.added]
            (plan.bids if side == BUY else plan.asks).let_in(side, price, orders, [fill for _, fill in plan.added])
            more = abs(plan.result.surplus) - left
            surplus = left if plan.result.surplus > 0 else -left
            plan.result = Equilibrium(price, plan.result.volume + more, surplus, plan.result.sharing)

    def _outlook(self, instrument: Instrument) -> Equilibrium:
        """What an auction held now would give, imbalance-only orders included."""
        result = self._equilibrium(instrument)
        if not instrument.imbalance or not result.price:
            return result
        plan = self._freeze(instrument, instrument.phase_rules)
        plan.result = result
        self._plan_imbalance(instrument, plan, 0)
        return plan.result

    def _carry_out(self, instrument: Instrument, plan: auction.Plan, events: list[Event]) -> None:
        """Do what was planned and checked."""
        table = self._orders
        book = instrument.book
        result = plan.result
        icebergs = plan.icebergs
        for order in plan.leaving:
            self._withdraw(order, CancelReason.INELIGIBLE, "", events)
        for order in icebergs:
            self._show_whole(instrument, order, events)
        for cut in plan.cuts:
            self._cut(instrument, cut, events)
        for order, quantity in plan.added:
            events.append(self._activated(instrument, order, quantity))
        events.append(
            AuctionUncrossed(
                instrument.code,
                instrument.phase,
                result.price,
                result.volume,
                result.surplus,
                len(plan.matches) // PAIR,
            )
        )
        for start in range(0, len(plan.matches), _AT_ONCE):
            self._print_auction(instrument, plan.matches[start : start + _AT_ONCE], result.price, events)
        if result.price:
            instrument.reference = result.price
            instrument.last_price = result.price
            instrument.last_quantity = result.volume
        if icebergs:
            bought = auction.Totals(plan.matches, BUY)
            sold = auction.Totals(plan.matches, SELL)
            for order in icebergs:
                if table.is_open(order):
                    traded = (bought if table.side(order) == BUY else sold).of(order)
                    self._rest_after_auction(instrument, order, traded, events)
        for order in sorted([*book.queue(table, BUY, 0), *book.queue(table, SELL, 0)]):
            if result.price and table.order_type(order) == OrderType.MARKET_TO_LIMIT:
                book.remove(order)
                self._give_limit(instrument, order, result.price, events)
                book.add(order)
            elif not instrument.rules.market_rests and not self._waits_for_price(instrument):
                self._withdraw(order, CancelReason.REMAINDER, "", events)
        self._after_auction(instrument, result, events)
        turns = instrument.turns
        if turns is not None and (result.price or instrument.quote is None):
            turns.end(self.sequence)
            for side, price, period, members in plan.turns:
                turns.keep(side, price, period, members)

    def _print_auction(self, instrument: Instrument, matches: vec[i64], price: int, events: list[Event]) -> None:
        """Fill and print some matches of an auction: ``_print`` for many, whose orders are looked up together."""
        table = self._orders
        book = instrument.book
        buyer = Party(table, self._identities.members, matches, BUY)
        seller = Party(table, self._identities.members, matches, SELL)
        opens = table.open
        # Typed so that an object is made of each number once.
        paid: Any = price
        date: Any = self.date
        settles: Any = instrument.settlement_date
        for at in range(0, len(matches), PAIR):
            buy = matches[at]
            sell = matches[at + 1]
            quantity = matches[at + 2]
            if instrument.imbalance:
                self._fill(instrument, buy, quantity)
                self._fill(instrument, sell, quantity)
            else:
                book.fill(buy, quantity)
                book.fill(sell, quantity)
            buyer.turn_to(buy)
            seller.turn_to(sell)
            self.trades += 1
            self._tape.append(buy, sell, price, quantity)
            events.append(
                _Traded(
                    self.trades,
                    instrument.code,
                    paid,
                    quantity,
                    buyer.name,
                    buyer.client_order_id,
                    buyer.order,
                    opens[buy],
                    buyer.account,
                    seller.name,
                    seller.client_order_id,
                    seller.order,
                    opens[sell],
                    seller.account,
                    -1,
                    date,
                    settles,
                    buyer.limit,
                    seller.limit,
                )
            )

    def _fill(self, instrument: Instrument, order: int, quantity: int) -> None:
        """Take what trades off an order in the book, or off one for the imbalance, which never was in it."""
        if order not in instrument.imbalance:
            instrument.book.fill(order, quantity)
            return
        table = self._orders
        table.open[order] -= quantity
        if table.open[order] == 0:
            table.state[order] = IN_BOOK  # filled: it waits no more
            del instrument.imbalance[order]

    def _waits_for_price(self, instrument: Instrument) -> bool:
        """Whether a market order that finds no price waits for one under a quote; ``Quoting`` knows."""
        return False

    def _after_auction(self, instrument: Instrument, result: Equilibrium, events: list[Event]) -> None:
        """What a price, or that there is none, brings besides trades; ``Quoting`` knows."""

    def _rest_after_auction(self, instrument: Instrument, order: int, traded: int, events: list[Event]) -> None:
        """An iceberg that took part whole shows a peak again.

        With ``iceberg_uncross`` ``peak`` its peaks traded one after the other, each from the end of the queue, as they
        would have in zaraba. Otherwise it keeps its place.
        """
        options = self._options[order]
        if traded < options.shown:
            options.shown -= traded
        else:
            if instrument.rules.peak_priority:
                instrument.book.remove(order)
                instrument.book.add(order)
            options.shown = options.display
            if instrument.rules.peak_priority or instrument.rules.rest_of_peak:
                options.shown -= (traded - options.shown) % options.display
        self._show_peak(instrument, order, events)

    def _fills(
        self,
        instrument: Instrument,
        plan: auction.Plan,
        side: int,
        orders: list[int],
        simultaneous: auction.Simultaneous | None,
    ) -> list[int]:
        """Fills of one side, parallel to ``orders``, which is filled with the orders that the volume can reach."""
        peaks: dict[int, tuple[int, int]] = {}
        if instrument.rules.peak_priority:
            for order in plan.icebergs:
                peaks[order] = (self._orders.open[order], self._options[order].display)
        return auction.fills(
            plan.bids if side == BUY else plan.asks,
            self._orders,
            plan.result.volume,
            plan.result.sharing or instrument.rules.allocation,
            instrument.lot,
            orders,
            peaks,
            self._alike(plan, side),
            simultaneous,
        )

    def _simultaneous(self, instrument: Instrument, plan: auction.Plan, side: int) -> auction.Simultaneous | None:
        """Among whom members take turns on one side, where they do and not all are alike."""
        turns = instrument.turns
        if turns is None or plan.result.sharing:
            return None
        table = self._orders
        periods: dict[int, int] = {}
        for queue in (plan.bids if side == BUY else plan.asks).queues:
            for order in queue:
                joins = order in plan.turned or table.state[order] == WAITING
                periods[order] = self.sequence if joins else self._period(instrument, order, self.sequence)
        begun = {price: kept for (kept_side, price), kept in turns.rotations.items() if kept_side == side}
        return auction.Simultaneous(periods, begun)

    def _alike(self, plan: auction.Plan, side: int) -> int:
        """How many of a side's prices make one group: all that can trade, where the result says so.

        Imbalance-only orders come behind them as ever.
        """
        if not plan.result.sharing:
            return 0
        price = plan.result.price
        count = 0 if plan.added and self._orders.side(plan.added[0][0]) == side else 1
        for level in (plan.bids if side == BUY else plan.asks).prices[1:]:
            if level >= price if side == BUY else level <= price:
                count += 1
        return count

    def _groups(self, instrument: Instrument, orders: list[int]) -> dict[int, int]:
        """The self-trade group of each order, as a number; orders of no group are left out."""
        table = self._orders
        default = instrument.rules.self_trade
        numbers: dict[tuple[int, str], int] = {}
        groups: dict[int, int] = {}
        for order in orders:
            mode = default
            if order in self._options and self._options[order].self_trade:
                mode = self._options[order].self_trade
            if mode <= SelfTrade.NONE:
                continue
            account = ""
            if instrument.rules.self_trade_by_account:
                account = table.account[order]
                if not account:
                    continue
            key = (table.participant(order), account)
            groups[order] = numbers.setdefault(key, len(numbers))
        return groups

    def _plan_cuts(self, instrument: Instrument, plan: auction.Plan) -> None:
        """Take out orders until nobody has to trade with its own group, and price the book without them.

        Pairs that avoid self-trades exist exactly when no group has more fills, on both sides together, than volume
        trades (market-rules 7). Of a group that has, one order after the other gives way: the newest that would trade,
        the oldest, or the newest of each side; DECREMENT takes only the excess off the newest of each side.
        """
        table = self._orders
        while plan.result.price:
            volume = plan.result.volume
            buys: list[int] = []
            sells: list[int] = []
            buy_fills = self._fills(instrument, plan, BUY, buys, self._simultaneous(instrument, plan, BUY))
            sell_fills = self._fills(instrument, plan, SELL, sells, self._simultaneous(instrument, plan, SELL))
            groups = self._groups(instrument, buys + sells)
            totals: dict[int, int] = {}
            for orders, fills in ((buys, buy_fills), (sells, sell_fills)):
                for i in range(len(orders)):
                    group = groups.get(orders[i], -1)
                    if group >= 0:
                        totals[group] = totals.get(group, 0) + fills[i]
            over = [group for group, total in totals.items() if total > volume]
            if not over:
                return
            excess = totals[over[0]] - volume
            group = over[0]
            buying = [order for order, fill in zip(buys, buy_fills, strict=True) if fill and groups.get(order) == group]
            selling = [o for o, fill in zip(sells, sell_fills, strict=True) if fill and groups.get(o) == group]
            buy = max([(table.priority[order], order) for order in buying])[1]
            sell = max([(table.priority[order], order) for order in selling])[1]
            both = sorted([(table.priority[order], order) for order in (buy, sell)])
            other = both[0][1]
            newest = both[1][1]
            mode = self._mode(instrument, newest)
            cut = auction.Cut(plan.result.price, excess, newest, other)
            plan.cuts.append(cut)
            if mode == SelfTrade.DECREMENT:
                quantity = min(excess, self._taking_part(plan, buy), self._taking_part(plan, sell))
                self._take_off(plan, cut, buy, quantity)
                self._take_off(plan, cut, sell, quantity)
            elif mode == SelfTrade.CANCEL_OLDEST:
                oldest = min([(table.priority[order], order) for order in buying + selling])[1]
                self._take_off(plan, cut, oldest, self._taking_part(plan, oldest))
            else:
                self._take_off(plan, cut, newest, self._taking_part(plan, newest))
                if mode == SelfTrade.CANCEL_BOTH:
                    self._take_off(plan, cut, other, self._taking_part(plan, other))
            plan.result = self._price_plan(instrument, plan)

    def _taking_part(self, plan: auction.Plan, order: int) -> int:
        frozen = plan.bids if self._orders.side(order) == BUY else plan.asks
        return frozen.amount(0 if order in plan.turned else self._orders.price[order], order)

    def _take_off(self, plan: auction.Plan, cut: auction.Cut, order: int, quantity: int) -> None:
        frozen = plan.bids if self._orders.side(order) == BUY else plan.asks
        frozen.take_off(0 if order in plan.turned else self._orders.price[order], order, quantity)
        cut.taken.append((order, quantity))

    def _cut(self, instrument: Instrument, cut: auction.Cut, events: list[Event]) -> None:
        """Orders give way so that nobody trades with its own group."""
        table = self._orders
        events.append(
            SelfTradePrevented(
                self._identities.members[table.participant(cut.newest)].name,
                instrument.code,
                cut.price,
                cut.quantity,
                table.client_order_id[cut.newest],
                cut.newest,
                table.client_order_id[cut.other],
                cut.other,
            )
        )
        for order, quantity in cut.taken:
            if quantity == table.open[order]:
                self._withdraw(order, CancelReason.SELF_TRADE, "", events)
            else:
                self._reduce(instrument, order, quantity, events)
