"""What a log tells: the market in numbers, and the life of one order.

Both are folds over what ``replay`` hands to ``on_events``. They hold values; how a person is shown them is the
command line's business.
"""

from __future__ import annotations

from typing import Final, NamedTuple, TypeGuard

from engine.commands import AmendOrder, CancelOrder, Command, NewOrder, SetPhase
from engine.events import (
    Accepted,
    Activated,
    Amended,
    AuctionUncrossed,
    CancelFrozen,
    Cancelled,
    DayStarted,
    Event,
    InstrumentListed,
    InstrumentRebuilt,
    InstrumentSetAside,
    LargeOrderAlerted,
    OrderMarked,
    PhaseChanged,
    QuoteChanged,
    Rejected,
    SelfTradePrevented,
    TradeBusted,
    Traded,
    TradingStateChanged,
    VolatilityInterrupted,
    WindowBegan,
)
from engine.types import CancelReason, OrderType, Phase, QuoteKind, Side, TimeInForce

AUCTION_MAKER: Final = -1  #: ``Traded.maker`` of a trade in an auction


# --- the market in numbers -------------------------------------------------------------------------------------------


class AuctionLine(NamedTuple):
    """One auction of one instrument."""

    date: int  #: trading day, YYYYMMDD
    time_ns: int
    phase: Phase
    price: int  #: in price units; 0: no price, nothing traded
    volume: int
    surplus: int
    trades: int


class InstrumentSummary:
    """One instrument. Prices in its price units (10**-price_decimals yen), money in whole yen."""

    def __init__(self, price_decimals: int) -> None:
        self.price_decimals = price_decimals
        self.orders = 0  #: accepted
        self.trades = 0
        self.volume = 0
        self.value = 0  #: yen
        self.last_price = 0
        self.auctions: list[AuctionLine] = []


class Summary:
    """Counts over a whole log. Give ``fold`` to ``replay`` as ``on_events``."""

    def __init__(self) -> None:
        self.commands: dict[str, int] = {}  #: how many of each kind, by the tag on the wire
        self.events: dict[str, int] = {}
        self.rejections: dict[str, int] = {}  #: by reason; repeats of an earlier answer not counted
        self.repeats = 0  #: commands that came again and had no effect
        self.participants: set[str] = set()
        self.days: list[int] = []
        self.trades = 0  #: those that were busted later included, as in volume and value
        self.volume = 0
        self.value = 0  #: yen
        self.busted_trades = 0
        self.busted_volume = 0
        self.busted_value = 0  #: yen
        self.first_ns = 0
        self.last_ns = 0
        self.instruments: dict[str, InstrumentSummary] = {}

    def fold(self, sequence: int, time_ns: int, participant: str, command: Command, events: list[Event]) -> None:
        kind = str(command.__struct_config__.tag)
        self.commands[kind] = self.commands.get(kind, 0) + 1
        if participant:
            self.participants.add(participant)
        self.first_ns = self.first_ns or time_ns
        self.last_ns = time_ns
        repeated = False
        for event in events:
            tag = str(event.__struct_config__.tag)
            self.events[tag] = self.events.get(tag, 0) + 1
            if getattr(event, "repeat", False):
                repeated = True
            elif isinstance(event, Accepted):
                self.instruments[event.instrument].orders += 1
            elif isinstance(event, Rejected):
                self.rejections[event.reason.name] = self.rejections.get(event.reason.name, 0) + 1
            elif isinstance(event, Traded):
                self._trade(event)
            elif isinstance(event, TradeBusted):
                self.busted_trades += 1
                self.busted_volume += event.quantity
                self.busted_value += self._yen(event)
            elif isinstance(event, AuctionUncrossed):
                self.instruments[event.instrument].auctions.append(
                    AuctionLine(
                        self.days[-1] if self.days else 0,
                        time_ns,
                        event.phase,
                        event.price,
                        event.volume,
                        event.surplus,
                        event.trades,
                    )
                )
            elif isinstance(event, DayStarted):
                self.days.append(event.date)
            elif isinstance(event, InstrumentListed):
                self.instruments[event.instrument] = InstrumentSummary(event.price_decimals)
        self.repeats += repeated

    def _trade(self, event: Traded) -> None:
        instrument = self.instruments[event.instrument]
        value = self._yen(event)
        instrument.trades += 1
        instrument.volume += event.quantity
        instrument.value += value
        instrument.last_price = event.price
        self.trades += 1
        self.volume += event.quantity
        self.value += value

    def _yen(self, event: Traded | TradeBusted) -> int:
        # The engine lists no instrument of which this would not be whole yen.
        unit: int = 10 ** self.instruments[event.instrument].price_decimals
        return event.price * event.quantity // unit


# --- the life of one order -------------------------------------------------------------------------------------------


class Step(NamedTuple):
    """Something that happened to an order, or around it and matters to it."""

    sequence: int
    time_ns: int
    phase: Phase | None  #: of its book; None while the instrument is not known
    what: str  #: accepted, refused, fill, amended, cancelled, repeat, phase, auction, …
    text: str  #: why, in a sentence
    open_quantity: int  #: of the order, after it


_WHY_CANCELLED: Final = {
    CancelReason.MEMBER: "its member asked for it",
    CancelReason.MASS_CANCEL: "its member asked for a mass cancel",
    CancelReason.REMAINDER: "what could not trade at once does not rest",
    CancelReason.EXPIRED: "its validity ended",
    CancelReason.SELF_TRADE: "it would have traded with an order of its own group",
    CancelReason.OPERATOR: "the exchange's operator took it out",
    CancelReason.DISCONNECT: "its member's connection was lost",
    CancelReason.REPLACED: "it was amended to no more than what had already traded",
    CancelReason.LIMITS: "the new day's ticks, limits or rules do not allow it",
    CancelReason.KILL: "the exchange's operator put the kill switch on",
    CancelReason.HALT: "the book was halted, and its rule is that a halt voids what is in it",
    CancelReason.INELIGIBLE: "its member, its account or the token itself may not trade any more",
    CancelReason.WINDOW: "a record date, a distribution or a freeze begins, and the book is emptied for it",
    CancelReason.UNFUNDED: "the new day's limits ask for more cash than its account has",
    CancelReason.SET_ASIDE: "it was on its way when the instrument was set aside",
}


def _delayed(command: Command) -> TypeGuard[SetPhase]:
    return isinstance(command, SetPhase) and command.delay_ms > 0


class OrderLife:
    """Follows one order, by its member's id or by the engine's number. Give ``fold`` to ``replay`` as ``on_events``."""

    def __init__(self, participant: str = "", client_order_id: str = "", order_id: int = 0) -> None:
        """Either ``participant`` and ``client_order_id``, or ``order_id``."""
        self.participant = participant
        self.client_order_id = client_order_id
        self.order_id = order_id
        self.steps: list[Step] = []
        self.accepted: Accepted | None = None
        self.order: NewOrder | None = None  #: as its member sent it
        self.open_quantity = 0
        self.filled = 0
        self.seen: dict[str, str] = {}  #: some ids of orders of the same member, to help with a wrong one
        self._phases: dict[str, Phase] = {}
        self._decimals: dict[str, int] = {}
        self._price = 0
        self._waiting = False
        self._now = (0, 0)

    @property
    def found(self) -> bool:
        return self.order is not None

    def fold(self, sequence: int, time_ns: int, participant: str, command: Command, events: list[Event]) -> None:
        mine = self._concerns(participant, command, events)
        self._now = (sequence, time_ns)
        if mine and isinstance(command, NewOrder) and self.order is None:
            self.order = command
        if isinstance(command, NewOrder) and participant == self.participant and len(self.seen) < 5:
            self.seen.setdefault(command.client_order_id, command.instrument)
        auction: AuctionUncrossed | None = None
        filled_before = self.filled
        for event in events:
            if isinstance(event, PhaseChanged):
                self._phases[event.instrument] = event.phase
                # An auction speaks for its phase.
                held = any(isinstance(other, AuctionUncrossed) for other in events)
                if self._in_its_book(event.instrument) and not held:
                    late = f", {command.delay_ms:,} ms late by its random end" if _delayed(command) else ""
                    self._add("phase", f"the book goes from {event.before.label} to {event.phase.label}{late}")
            elif isinstance(event, InstrumentListed):
                self._decimals[event.instrument] = event.price_decimals
            elif isinstance(event, DayStarted):
                if self.open_quantity:
                    self._add("day", f"trading day {date_text(event.date)} begins")
            elif isinstance(event, TradingStateChanged):
                if self._in_its_book(event.instrument):
                    self._add("halt", "the book is suspended" if event.suspended else "the book trades again")
            elif isinstance(event, InstrumentSetAside):
                if self._in_its_book(event.instrument):
                    self._add("set aside", f"the instrument is set aside: {event.text}")
            elif isinstance(event, InstrumentRebuilt):
                if self._in_its_book(event.instrument):
                    self._add("rebuilt", "the instrument is back, with a book made anew")
            elif isinstance(event, VolatilityInterrupted):
                if self._in_its_book(event.instrument):
                    self._add("volatility", self._interrupted(event))
            elif isinstance(event, TradeBusted):
                if self.order_id in (event.buy_order_id, event.sell_order_id):
                    self._add(
                        "bust",
                        f"trade {event.trade_id} of {event.quantity:,} at {self._yen(event.price)} was an error and is "
                        "void; the order does not come back",
                    )
            elif isinstance(event, CancelFrozen):
                if mine:
                    self._add("frozen", f"cancels are taken again from {event.until.label} on")
            elif isinstance(event, LargeOrderAlerted):
                if mine:
                    meant = "its member confirmed it" if event.confirmed else "its member did not confirm it"
                    self._add(
                        "large",
                        f"{event.quantity:,} of {event.units_outstanding:,} units are more than the operator lets pass "
                        f"without a word: {meant}",
                    )
            elif isinstance(event, QuoteChanged):
                if self._in_its_book(event.instrument):
                    self._add("quote", self._quote(event))
            elif isinstance(event, AuctionUncrossed):
                if self._in_its_book(event.instrument):
                    auction = event
                    self._add("auction", self._auction(event))
            elif isinstance(event, Traded):
                self._traded(event)
            elif isinstance(event, Accepted):
                if event.order_id == self.order_id or (mine and event.repeat):
                    self._was_accepted(event, command)
            elif isinstance(event, Rejected):
                if mine and event.participant == self.participant:
                    self._refused(event, command)
            elif isinstance(event, Cancelled):
                if event.order_id == self.order_id:
                    self._cancelled(event, command)
            elif isinstance(event, Amended):
                if event.order_id == self.order_id:
                    self._amended(event)
            elif isinstance(event, Activated):
                if event.order_id == self.order_id:
                    self._activated(event)
            elif isinstance(event, SelfTradePrevented):
                self._prevented(event)
            elif isinstance(event, WindowBegan):
                if self._in_its_book(event.instrument):
                    kind = event.kind.name.lower().replace("_", " ")
                    self._add("window", f"a {kind} begins; no orders are taken up to {date_text(event.last)}")
            elif isinstance(event, OrderMarked) and event.order_id == self.order_id:
                self._add("marked", "what it trades needs the issuer's approval before it settles")
        if auction is not None and self.filled == filled_before:
            self._not_in_auction(auction)

    def _concerns(self, participant: str, command: Command, events: list[Event]) -> bool:
        """Is this command about the order? Learns the order's other name on the way."""
        if self.order_id and not self.client_order_id:
            for event in events:
                if isinstance(event, Accepted) and event.order_id == self.order_id and not event.repeat:
                    self.participant, self.client_order_id = event.participant, event.client_order_id
        if not self.client_order_id or participant != self.participant:
            return False
        if isinstance(command, NewOrder | CancelOrder | AmendOrder) and command.client_order_id == self.client_order_id:
            for event in events:
                if isinstance(event, Accepted) and not self.order_id:
                    self.order_id = event.order_id
            return True
        return False

    def _in_its_book(self, instrument: str) -> bool:
        return self.open_quantity > 0 and self.accepted is not None and instrument == self.accepted.instrument

    def _add(self, what: str, text: str) -> None:
        instrument = self.order.instrument if self.order is not None else ""
        self.steps.append(Step(*self._now, self._phases.get(instrument), what, text, self.open_quantity))

    # --- what happened to it -----------------------------------------------------------------------------------------

    def _was_accepted(self, event: Accepted, command: Command) -> None:
        if event.repeat:
            self._add("repeat", "the same order came again; it was answered as before and had no effect")
            return
        self.accepted = event
        self.open_quantity = event.quantity
        self._price = event.price
        self._waiting = event.waiting
        text = f"accepted as order {event.order_id}: {self._describe(event)}"
        if event.waiting:
            stops = isinstance(command, NewOrder) and command.stop_price
            text += f"; it waits outside the book for its {'stop price' if stops else 'time'}"
        self._add("accepted", text)

    def _refused(self, event: Rejected, command: Command) -> None:
        if isinstance(command, NewOrder):
            asked = "the order" if command == self.order else "another order under the same id"
        elif isinstance(command, CancelOrder):
            asked = f"cancel request {command.request_id}"
        elif isinstance(command, AmendOrder):
            asked = f"amend request {command.request_id} ({self._amend(command)})"
        else:
            asked = "a request"
        again = ", again, as before" if event.repeat else ""
        self._add(
            "repeat" if event.repeat else "refused", f"{asked} is refused{again}: {event.reason.name}: {event.text}"
        )

    def _traded(self, event: Traded) -> None:
        if event.buy_order_id == self.order_id:
            side, self.open_quantity = Side.BUY, event.buy_open
            other = f"order {event.sell_order_id} of {event.seller}"
        elif event.sell_order_id == self.order_id:
            side, self.open_quantity = Side.SELL, event.sell_open
            other = f"order {event.buy_order_id} of {event.buyer}"
        else:
            return
        self.filled += event.quantity
        if event.maker == AUCTION_MAKER:
            how = "in the auction"
        elif event.maker == side:
            how = f"at its own price, from the book; {event.seller if side == Side.BUY else event.buyer} came in"
        else:
            how = "on entry, at the price of the resting order"
        verb = "buys" if side == Side.BUY else "sells"
        settles = f", settles {date_text(event.settlement_date)}" if event.settlement_date else ""
        self._add(
            "fill",
            f"{verb} {event.quantity:,} at {self._yen(event.price)} with {other}, {how}: "
            f"trade {event.trade_id}{settles}",
        )

    def _cancelled(self, event: Cancelled, command: Command) -> None:
        if event.repeat:
            self._add("repeat", "the same cancel came again; it was answered as before and had no effect")
            return
        self.open_quantity = 0
        why = _WHY_CANCELLED[event.reason]
        if event.request_id:
            why += f" (request {event.request_id})"
        if isinstance(command, SetPhase) and event.reason == CancelReason.EXPIRED:
            why += f": the book went to {Phase(command.phase).label}"
        elif isinstance(command, SetPhase) and event.reason == CancelReason.REMAINDER:
            why = "the auction left this part of a market order unfilled"
        elif isinstance(command, SetPhase) and event.reason == CancelReason.MASS_CANCEL:
            why += ", which had to wait until orders could be cancelled"
        self._add("cancelled", f"{event.quantity:,} open are withdrawn: {why}")

    def _amended(self, event: Amended) -> None:
        if event.repeat:
            self._add("repeat", "the same amend came again; it was answered as before and had no effect")
            return
        self.open_quantity = event.open_quantity
        place = "keeps its place in the queue" if event.kept_priority else "goes to the back of the queue"
        price = (
            f"price {self._yen(event.price_before)} to {self._yen(event.price) if event.price else 'any'}, "
            if event.price != event.price_before
            else ""
        )
        self._price = event.price
        by = f"request {event.request_id}" if event.request_id else "by a rule of the market, no request"
        self._add(
            "amended",
            f"amended: {price}open {event.open_before:,} to {event.open_quantity:,}; it {place} ({by})",
        )

    def _activated(self, event: Activated) -> None:
        if self.order is not None and self.order.order_type == OrderType.IMBALANCE_ONLY:
            text = f"takes part with {event.open_quantity:,}: so much does the other side leave over at the price"
            self._add("activated", text)
            return
        self._waiting = False
        if self.order is not None and self.order.stop_price:
            why = f"the last price reached its stop price {self._yen(self.order.stop_price)}: it takes part from now on"
        else:
            why = "it joins the book, behind what rests at its price"
        self._add("activated", why)

    def _prevented(self, event: SelfTradePrevented) -> None:
        if event.order_id == self.order_id:
            other = event.other_client_order_id
        elif event.other_order_id == self.order_id:
            other = event.client_order_id
        else:
            return
        self._add(
            "self-trade",
            f"a trade of {event.quantity:,} at {self._yen(event.price)} with the same member's order {other} "
            "is prevented",
        )

    def _not_in_auction(self, auction: AuctionUncrossed) -> None:
        """The order was open and got nothing. Say why, as far as the price says it."""
        order = self.accepted
        if order is None or not auction.price or self._waiting:
            return
        if self._price and (self._price < auction.price if order.side == Side.BUY else self._price > auction.price):
            relation = "below" if order.side == Side.BUY else "above"
            text = f"nothing for this order: its limit {self._yen(self._price)} is {relation} the price"
        else:
            text = "nothing for this order: at this price others came before it"
        self._add("unfilled", text)

    # --- in words ----------------------------------------------------------------------------------------------------

    def _quote(self, event: QuoteChanged) -> str:
        if event.kind == QuoteKind.NONE:
            return "the quote is over"
        what = "special" if event.kind == QuoteKind.SPECIAL else "sequential trade"
        side = "bid" if event.side == Side.BUY else "ask"
        why = "the next price would lie beyond it: nothing trades"
        return f"a {what} {side} quote stands at {self._yen(event.price)}; {why} until orders meet or it is renewed"

    def _yen(self, price: int) -> str:
        return price_text(price, self._decimals.get(self.order.instrument, 0) if self.order is not None else 0)

    def _describe(self, order: Accepted) -> str:
        price = f"at {self._yen(order.price)}" if order.price else "at any price"
        kind = "" if order.order_type in (OrderType.LIMIT, OrderType.MARKET) else f" {order.order_type.name}"
        validity = "" if order.time_in_force == TimeInForce.DAY else f", {order.time_in_force.name}"
        verb = "buy" if order.side == Side.BUY else "sell"
        return f"{verb} {order.quantity:,} {order.instrument} {price}{kind}{validity}"

    def _amend(self, command: AmendOrder) -> str:
        wishes = [
            f"quantity {command.quantity:,}" if command.quantity else "",
            f"price {self._yen(command.price)}" if command.price else "",
        ]
        return ", ".join(wish for wish in wishes if wish) or "no change"

    def _interrupted(self, event: VolatilityInterrupted) -> str:
        return (
            f"the next trade would be at {self._yen(event.price)}, outside {self._yen(event.lower)} to "
            f"{self._yen(event.upper)} around {self._yen(event.reference)}: trading stops and a call follows"
        )

    def _auction(self, event: AuctionUncrossed) -> str:
        if not event.price:
            return "the auction finds no price: nothing trades"
        left = f"{abs(event.surplus):,} to {'buy' if event.surplus > 0 else 'sell'} are left at the price"
        return (
            f"the auction trades {event.volume:,} at {self._yen(event.price)}, "
            f"{left if event.surplus else 'nothing is left at the price'}"
        )


def date_text(date: int) -> str:
    """A date given as YYYYMMDD."""
    return f"{date // 10000}-{date // 100 % 100:02}-{date % 100:02}"


def price_text(price: int, price_decimals: int) -> str:
    """A price in yen, from price units of 10**-price_decimals yen; exact."""
    if not price_decimals:
        return f"{price:,}"
    whole, part = divmod(price, 10**price_decimals)
    return f"{whole:,}.{part:0{price_decimals}}"
