"""What protects a market from errors: kill switch, pre-trade limits, lost connections, trade busts.

All of it is set by commands of the exchange, for a *pair* of member and instrument in which "" means every one. An
order falls under up to four pairs: its member in its instrument, its member, its instrument, the whole market. Kill and
limits of all of them count; nobody gets past the market's cap by having one of his own.

Most members and books have none of this. ``Member.guards`` and ``Instrument.guards`` say whether a new order or an
amend has to come here at all: the first where a pair names the member or the whole market, the second where one names
the instrument alone. That test is all that the others pay.

* *Kill* cancels at once, in every phase: an operator who stops a member or a book does not wait for an auction.
* *Limits* look at one order at a time, but for open orders and messages. Whoever only reduces what is open is never
  stopped: cancels are neither counted nor refused, nor are amends to a smaller quantity at the same price.
* A *bust* voids a trade on paper only. Its orders stay filled, last price and reference stay; the exchange sets another
  reference price if it wants one. Nothing is busted by itself: that an execution was larger than 20 % of the units
  outstanding is for the operator to weigh (market-rules 7), and the event says how many there are.
"""

from __future__ import annotations

from typing import Final

from engine.checks import Refusal, is_participant, number, plain, unknown_instrument
from engine.commands import BustTrade, Disconnected, Kill, Restore, SetRiskLimits
from engine.events import (
    ConnectionLost,
    Event,
    KillSwitched,
    LargeOrderAlerted,
    RiskLimitsSet,
    TradeBusted,
)
from engine.faults import InvariantBroken
from engine.identities import Member, newest
from engine.market import PROTECTED, DeferredMassCancel, Instrument
from engine.trading import Trading
from engine.types import QUANTITY_MAX, CancelReason, Phase, Reason, Side

_YEN_MAX: Final = 2**53
_COUNT_MAX: Final = 2**31
_BASIS_POINTS: Final = 10_000  #: the whole
_BASIS_POINTS_MAX: Final = 1_000_000
_MILLISECOND_NS: Final = 1_000_000


class _Interval:
    """How many messages of one member a limit has let through in its latest interval."""

    def __init__(self, number: int, count: int) -> None:
        self.number: Final = number  #: of the interval since the epoch
        self.count: Final = count


class Protection(Trading):
    """The operator's hand on the market. ``Engine`` asks it about orders whose member or book has guards."""

    def __init__(self) -> None:
        super().__init__()
        self._by_code: Final[dict[str, Instrument]] = {}
        #: By pair: which are killed, which limits hold.
        self._killed: Final[dict[tuple[str, str], bool]] = {}
        self._limits: Final[dict[tuple[str, str], SetRiskLimits]] = {}
        #: By member and by the pair whose limit counts.
        self._intervals: Final[dict[tuple[str, str, str], _Interval]] = {}
        self._busted: Final[dict[int, bool]] = {}

    # --- who has to pass ---------------------------------------------------------------------------------------------

    def _guards_member(self, name: str) -> bool:
        """Whether the orders of a member have to pass, in whatever instrument."""
        for pairs in (list(self._killed), list(self._limits)):
            for participant, instrument in pairs:
                if participant == name or (participant == "" and instrument == ""):
                    return True
        return False

    def _set_guards(self) -> None:
        for member in self._identities.members:
            member.guards = self._guards_member(member.name)
        for instrument in self._instruments:
            pair = ("", instrument.code)
            instrument.guards &= ~PROTECTED
            if pair in self._killed or pair in self._limits:
                instrument.guards |= PROTECTED

    def _pairs(self, participant: str, instrument: str) -> list[tuple[str, str]]:
        """All that an order falls under, the narrowest first."""
        return [(participant, instrument), (participant, ""), ("", instrument), ("", "")]

    def _check_pair(self, participant: str, instrument: str) -> Refusal | None:
        if participant and not is_participant(participant):
            text = f"Expected a participant of 1 to 16 characters a-z, 0-9, -, or none, got {plain(participant)}"
            return Refusal(Reason.BAD_IDENTITY, f"{text} - at `$.participant`")
        if instrument and instrument not in self._by_code:
            return unknown_instrument(instrument)
        return None

    # --- new orders and amends ---------------------------------------------------------------------------------------

    def _check_limits(
        self,
        member: Member,
        instrument: Instrument,
        request_id: str,
        side: int,
        quantity: int,
        price: int,
        stop_price: int,
        confirmed: bool,
        is_new: bool,
        events: list[Event],
    ) -> Refusal | None:
        """Kill switch and limits, of an order or of an amend that makes one larger or moves it, in their order.

        See ``engine/checks.py``. The operator is told of a large order that nobody has confirmed.
        """
        pairs = self._pairs(member.name, instrument.code)
        for pair in pairs:
            if pair in self._killed:
                return _killed(pair)
        limits = self._limits_of(pairs)
        value = _value(instrument, side, quantity, price, stop_price)
        for limit in limits:
            if limit.value_max and (value > limit.value_max or value == 0):
                got = f"{number(value)} yen" if value else "one without a price to value it by"
                text = f"Expected an order worth at most {limit.value_max} yen{_whose(limit)}, got {got}"
                return Refusal(Reason.VALUE_CAP, f"{text} - at `$.quantity`")
        for limit in limits:
            if limit.quantity_max and quantity > limit.quantity_max:
                text = f"Expected a quantity of at most {limit.quantity_max}{_whose(limit)}, got {quantity}"
                return Refusal(Reason.QUANTITY_CAP, f"{text} - at `$.quantity`")
        units = instrument.units_outstanding
        for limit in limits:
            if _is_share(quantity, units, limit.share_max):
                text = f"Expected at most {_percent(limit.share_max)} of the {units} units of {instrument.code}"
                return Refusal(Reason.SHARE_CAP, f"{text}{_whose(limit)}, got {quantity} - at `$.quantity`")
        for limit in limits:
            if not confirmed and _is_share(quantity, units, limit.share_alert):
                events.append(LargeOrderAlerted(member.name, request_id, instrument.code, quantity, units, False))
                text = f"Expected more than {_percent(limit.share_alert)} of the {units} units of {instrument.code}"
                text = f"{text}{_whose(limit)} to be confirmed, got {quantity} without: send it under a new id with"
                return Refusal(Reason.NEEDS_CONFIRMATION, f"{text} confirmed set - at `$.confirmed`")
        last = instrument.reference
        for limit in limits:
            if limit.collar and price and last and abs(price - last) * _BASIS_POINTS > last * limit.collar:
                text = f"Expected a price within {_percent(limit.collar)} of the last price {last}{_whose(limit)}"
                return Refusal(Reason.PRICE_COLLAR, f"{text}, got {price} - at `$.price`")
        for limit in limits:
            if is_new and limit.open_orders_max and self._has_open(member, limit):
                text = f"Expected at most {limit.open_orders_max} open orders{_whose(limit)}, got one more"
                return Refusal(Reason.TOO_MANY_ORDERS, text)
        for limit in limits:
            if limit.messages_max and self._passed(member, limit) >= limit.messages_max:
                text = f"Expected at most {limit.messages_max} orders and amends in {limit.interval_ms} ms"
                return Refusal(Reason.TOO_MANY_MESSAGES, f"{text}{_whose(limit)}, got one more")
        return None

    def _pass_limits(
        self, member: Member, instrument: Instrument, request_id: str, quantity: int, events: list[Event]
    ) -> None:
        """An order or amend has passed every check: it counts as a message, and a large one is told to the operator."""
        large = False
        for limit in self._limits_of(self._pairs(member.name, instrument.code)):
            if limit.messages_max:
                self._count(member, limit)
            large = large or _is_share(quantity, instrument.units_outstanding, limit.share_alert)
        if large:
            units = instrument.units_outstanding
            events.append(LargeOrderAlerted(member.name, request_id, instrument.code, quantity, units, True))

    def _limits_of(self, pairs: list[tuple[str, str]]) -> list[SetRiskLimits]:
        return [self._limits[pair] for pair in pairs if pair in self._limits]

    def _has_open(self, member: Member, limit: SetRiskLimits) -> bool:
        """Whether a member has all the open orders that a limit allows. Walks through them only where it may."""
        if not member.may_have(limit.open_orders_max):
            return False
        orders = member.open_orders(self._orders)
        if not limit.instrument:
            return len(orders) >= limit.open_orders_max
        index = self._by_code[limit.instrument].index
        return sum([self._orders.instrument(order) == index for order in orders]) >= limit.open_orders_max

    def _passed(self, member: Member, limit: SetRiskLimits) -> int:
        """How many messages of a member a limit has let through in the interval of this command's stamp."""
        interval = self._intervals.get((member.name, limit.participant, limit.instrument))
        if interval is None or interval.number != self._interval_of(limit):
            return 0
        return interval.count

    def _count(self, member: Member, limit: SetRiskLimits) -> None:
        """One more."""
        count = self._passed(member, limit) + 1
        key = (member.name, limit.participant, limit.instrument)
        self._intervals[key] = _Interval(self._interval_of(limit), count)

    def _interval_of(self, limit: SetRiskLimits) -> int:
        return self.time_ns // (limit.interval_ms * _MILLISECOND_NS)

    def _set_risk_limits(self, command: SetRiskLimits, events: list[Event]) -> Refusal | None:
        refusal = self._check_pair(command.participant, command.instrument)
        if refusal is not None:
            return refusal
        bounds: list[tuple[str, int, int]] = [
            ("quantity_max", command.quantity_max, QUANTITY_MAX),
            ("value_max", command.value_max, _YEN_MAX),
            ("share_alert", command.share_alert, _BASIS_POINTS_MAX),
            ("share_max", command.share_max, _BASIS_POINTS_MAX),
            ("collar", command.collar, _BASIS_POINTS_MAX),
            ("open_orders_max", command.open_orders_max, _COUNT_MAX),
            ("messages_max", command.messages_max, _COUNT_MAX),
            ("interval_ms", command.interval_ms - 1, _COUNT_MAX - 1),
        ]
        for name, value, most in bounds:
            if not 0 <= value <= most:
                least = 1 if name == "interval_ms" else 0
                text = f"Expected {least} to {most + least}, got {number(value + least)} - at `$.{name}`"
                return Refusal(Reason.BAD_REFERENCE_DATA, text)
        pair = (command.participant, command.instrument)
        limits = any(value for name, value, _ in bounds if name != "interval_ms")
        if limits or command.cancel_on_disconnect is not None:
            self._limits[pair] = command
        else:
            self._limits.pop(pair, None)
        for key in [key for key in self._intervals if (key[1], key[2]) == pair]:
            del self._intervals[key]
        self._set_guards()
        events.append(
            RiskLimitsSet(
                command.participant,
                command.instrument,
                command.quantity_max,
                command.value_max,
                command.share_alert,
                command.share_max,
                command.collar,
                command.open_orders_max,
                command.messages_max,
                command.interval_ms,
                command.cancel_on_disconnect,
            )
        )
        return None

    # --- the kill switch ---------------------------------------------------------------------------------------------

    def _kill(self, command: Kill, events: list[Event]) -> Refusal | None:
        refusal = self._check_pair(command.participant, command.instrument)
        if refusal is not None:
            return refusal
        pair = (command.participant, command.instrument)
        if pair in self._killed:
            return Refusal(Reason.BAD_TRANSITION, f"Expected a kill switch that is off, got one that is on{_of(pair)}")
        orders = self._killable(pair)
        self._killed[pair] = True
        self._set_guards()
        events.append(KillSwitched(command.participant, command.instrument, True, len(orders)))
        for order in orders:
            self._withdraw(order, CancelReason.KILL, "", events)
        return None

    def _restore(self, command: Restore, events: list[Event]) -> Refusal | None:
        refusal = self._check_pair(command.participant, command.instrument)
        if refusal is not None:
            return refusal
        pair = (command.participant, command.instrument)
        if pair not in self._killed:
            return Refusal(Reason.BAD_TRANSITION, f"Expected a kill switch that is on, got one that is off{_of(pair)}")
        del self._killed[pair]
        self._set_guards()
        events.append(KillSwitched(command.participant, command.instrument, False, 0))
        return None

    def _killable(self, pair: tuple[str, str]) -> list[int]:
        """The open orders that a kill switch takes out; those of a frozen book go when it is rebuilt."""
        orders = self._open_of(pair[0], pair[1])
        return [order for order in orders if not self._instruments[self._orders.instrument(order)].frozen]

    def _open_of(self, participant: str, instrument: str) -> list[int]:
        """The open orders that fall under a pair, oldest first."""
        only = self._by_code[instrument] if instrument else None
        orders: list[int] = []
        if participant:
            member = self._identities.by_name.get(participant)
            if member is not None:
                for order in member.open_orders(self._orders):
                    if only is None or self._orders.instrument(order) == only.index:
                        orders.append(order)
            return orders
        for each in self._instruments:
            if only is None or each is only:
                orders.extend(self._open_orders(each))
        return sorted(orders)

    # --- lost connections --------------------------------------------------------------------------------------------

    def _disconnected(self, command: Disconnected, events: list[Event]) -> Refusal | None:
        """Cancel what goes with a member's last connection; where a non-cancel period forbids it, afterwards.

        A book that is closed is left alone: no session ends there, and what rests in it is meant to outlive the night.
        """
        if not is_participant(command.participant):
            text = f"Expected a participant of 1 to 16 characters a-z, 0-9, -, got {plain(command.participant)}"
            return Refusal(Reason.BAD_IDENTITY, f"{text} - at `$.participant`")
        orders: list[int] = []
        held: dict[int, bool] = {}  #: books in which orders have to wait
        for order in self._open_of(command.participant, ""):
            instrument = self._instruments[self._orders.instrument(order)]
            if instrument.phase == Phase.CLOSED or not self._goes_on_disconnect(command.participant, instrument):
                continue
            if instrument.cancels:
                orders.append(order)
            else:
                held[instrument.index] = True
        events.append(ConnectionLost(command.participant, len(orders), len(held)))
        for order in orders:
            self._withdraw(order, CancelReason.DISCONNECT, "", events)
        for index in held:
            self._defer_disconnect(self._instruments[index], self._identities.by_name[command.participant].index)
        return None

    def _goes_on_disconnect(self, participant: str, instrument: Instrument) -> bool:
        """The narrowest limit that says anything decides; then the instrument's own rule."""
        for pair in self._pairs(participant, instrument.code):
            limit = self._limits.get(pair)
            if limit is not None and limit.cancel_on_disconnect is not None:
                return limit.cancel_on_disconnect
        return instrument.rules.cancel_on_disconnect

    def _defer_disconnect(self, instrument: Instrument, member: int) -> None:
        """Once for a member and book: a later loss of connection means the later orders too."""
        deferred = instrument.deferred
        for i in range(len(deferred)):
            if deferred[i].participant == member and deferred[i].reason == CancelReason.DISCONNECT:
                del deferred[i]
                break
        deferred.append(
            DeferredMassCancel(member, "", -1, 0, 0, "", self._orders.count, reason=CancelReason.DISCONNECT)
        )

    # --- trade busts -------------------------------------------------------------------------------------------------

    def _bust(self, command: BustTrade, events: list[Event]) -> Refusal | None:
        trade = command.trade_id
        if not 1 <= trade <= self.trades:
            text = f"Expected the number of a trade, 1 to {self.trades}, got {number(trade)} - at `$.trade_id`"
            return Refusal(Reason.UNKNOWN_TRADE, text)
        if trade in self._busted:
            text = f"Expected a trade that stands, got {trade}, which has been busted - at `$.trade_id`"
            return Refusal(Reason.TRADE_BUSTED, text)
        self._busted[trade] = True
        table = self._orders
        buy, sell, price, quantity = self._tape.trade(trade)
        instrument = self._instruments[table.instrument(buy)]
        events.append(
            TradeBusted(
                trade,
                instrument.code,
                price,
                quantity,
                self._identities.members[table.participant(buy)].name,
                table.client_order_id[buy],
                buy,
                table.account[buy],
                self._identities.members[table.participant(sell)].name,
                table.client_order_id[sell],
                sell,
                table.account[sell],
                self._tape.date(trade),
                instrument.units_outstanding,
            )
        )
        return None

    # --- for whoever asks --------------------------------------------------------------------------------------------

    def is_killed(self, participant: str, instrument: str) -> bool:
        """Whether the kill switch keeps a member out of an instrument."""
        return any(pair in self._killed for pair in self._pairs(participant, instrument))

    def _protection_key(self, most: int) -> list[object]:
        """All of this, for the digest; at most ``most`` of what can be many, and how many there are."""
        intervals = [[*key, each.number, each.count] for key, each in newest(self._intervals, most)]
        return [
            [len(self._killed), newest(self._killed, most)],
            [len(self._limits), newest(self._limits, most)],
            [len(self._intervals), intervals],
            [len(self._busted), newest(self._busted, most)],
            self._tape.digest(),
        ]

    def _check_protection(self) -> None:
        """Raise ``InvariantBroken`` where an order stands that the kill switch should have taken out."""
        for pair in self._killed:
            if self._killable(pair):
                raise InvariantBroken(f"Orders are open although the kill switch is on{_of(pair)}")
        for member in self._identities.members:
            if member.guards != self._guards_member(member.name):
                raise InvariantBroken(f"The guards of {member.name} are not those that were set")
        if self._tape.count() != self.trades or any(not 1 <= trade <= self.trades for trade in self._busted):
            raise InvariantBroken(f"The tape holds {self._tape.count()} trades, {self.trades} were made")


def _value(instrument: Instrument, side: int, quantity: int, price: int, stop_price: int) -> int:
    """What an order may come to at the worst price it can get, in yen, fractions counted as a whole; 0: nobody knows.

    A seller can get more than its limit, so a sell is worth the last price at least: one at a limit far too low is the
    very error that a cap is for. Without a limit the day's highest price counts, or the last where there is none.
    """
    last = instrument.reference
    worst = instrument.upper or max(stop_price, last)
    if price:
        worst = price if side == Side.BUY else max(price, last)
    unit: int = 10**instrument.price_decimals
    return -(-worst * quantity // unit)


def _is_share(quantity: int, units: int, basis_points: int) -> bool:
    """Whether it is more than that share of all units. Never where nobody has said how many there are, or a share."""
    return quantity * _BASIS_POINTS > units * basis_points > 0


def _percent(basis_points: int) -> str:
    whole, part = divmod(basis_points, 100)
    return f"{whole}.{part:02} %" if part else f"{whole} %"


def _of(pair: tuple[str, str]) -> str:
    """Whom a kill switch is for, to go behind what it is."""
    participant, instrument = pair
    return f" for {participant or 'every member'} in {instrument or 'every instrument'}"


def _whose(limit: SetRiskLimits) -> str:
    """Whose limit it is, to go behind what it allows."""
    if limit.participant and limit.instrument:
        return f" for {limit.participant} in {limit.instrument}"
    if limit.participant or limit.instrument:
        return f" for {limit.participant or limit.instrument}"
    return ""


def _killed(pair: tuple[str, str]) -> Refusal:
    return Refusal(Reason.KILLED, f"Expected an order where none is stopped, got the kill switch on{_of(pair)}")
