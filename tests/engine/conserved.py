"""What no command may create or lose, counted from the events alone.

Whoever has every event can keep these books without knowing one rule of the market, and holds the engine to them after
every command: what was ordered is open, traded or cancelled; cash and units are what was deposited, moved by trades
alone; what is locked is what the open orders of an account need, and nothing of an order that is done. Beside them:
that numbers which sum up others (of an auction, of a mass cancel) say what follows them.
"""

from __future__ import annotations

from typing import Any

from engine.commands import Command, ListInstrument
from engine.core import Engine
from engine.events import (
    Accepted,
    Activated,
    Amended,
    AuctionUncrossed,
    BalanceChanged,
    Cancelled,
    ConnectionLost,
    DayLimitsSet,
    DisplayChanged,
    Event,
    InstrumentListed,
    KillSwitched,
    MassCancelled,
    TradeBusted,
    Traded,
)
from engine.types import CancelReason, OrderType, Side, TimeInForce

#: An account's yen (code "") or units: code, member, account.
Place = tuple[str, str, str]


class Row:
    """One order, as its events tell."""

    def __init__(self, accepted: Accepted) -> None:
        self.id = accepted.client_order_id
        self.code = accepted.instrument
        self.side = accepted.side
        self.member = accepted.participant
        self.account = accepted.account
        self.type = accepted.order_type
        self.validity = accepted.time_in_force
        self.price = accepted.price
        self.total = accepted.quantity
        self.waiting = accepted.waiting
        self.traded = 0
        self.cancelled = 0
        self.is_cancelled = False

    @property
    def open(self) -> int:
        return self.total - self.traded - self.cancelled


class Terms:
    """What an instrument asks to be there before an order is taken, and today's limits."""

    def __init__(self, listed: ListInstrument) -> None:
        funding = listed.rules.get("funding", "off")
        self.cash = funding in ("cash", "both")
        self.units = funding in ("units", "both")
        self.unit = 10**listed.price_decimals
        self.lower = self.upper = 0


class Conserved:
    """The books. ``tell`` them of every command; they raise ``AssertionError`` where something does not add up."""

    def __init__(self) -> None:
        self.rows: dict[int, Row] = {}
        self.trades: list[Traded] = []
        self.busted: set[int] = set()
        self.instruments: dict[str, Terms] = {}
        self.held: dict[Place, int] = {}
        self.locked: dict[Place, int] = {}
        self.deposited: dict[str, int] = {}  #: less what was withdrawn
        self._locks: dict[int, tuple[Place, int]] = {}  #: of orders that lock something
        self._touched: set[int] = set()

    # --- taking in ---------------------------------------------------------------------------------------------------

    def tell(self, command: Command, events: list[Event]) -> None:
        self._touched = set()
        for number, event in enumerate(events):
            if getattr(event, "repeat", False):
                continue
            if isinstance(event, InstrumentListed):
                assert isinstance(command, ListInstrument)
                self.instruments[event.instrument] = Terms(command)
            elif isinstance(event, Accepted):
                assert event.order_id == len(self.rows) + 1
                assert event.quantity > 0
                self.rows[event.order_id] = Row(event)
                self._touched.add(event.order_id)
            elif isinstance(event, Amended):
                self._amend(event)
            elif isinstance(event, Cancelled):
                self._cancel(event)
            elif isinstance(event, Activated):
                row = self._living(event)
                assert row.waiting
                assert 0 < event.open_quantity <= row.open
                if row.type != OrderType.IMBALANCE_ONLY:  # of which the rest still waits
                    assert event.open_quantity == row.open
                    row.waiting = False
            elif isinstance(event, DisplayChanged):
                assert 0 <= event.displayed_before <= self._living(event).open
                assert 0 < event.displayed <= self._living(event).open
            elif isinstance(event, Traded):
                self._trade(event)
            elif isinstance(event, TradeBusted):
                self._bust(event)
            elif isinstance(event, BalanceChanged):
                place = event.instrument, event.participant, event.account
                self.held[place] = self.held.get(place, 0) + event.quantity
                self.deposited[place[0]] = self.deposited.get(place[0], 0) + event.quantity
                assert (event.balance, event.locked) == (self.held[place], self.locked.get(place, 0))
            elif isinstance(event, DayLimitsSet):
                terms = self.instruments[event.instrument]
                terms.lower, terms.upper = event.lower_limit, event.upper_limit
                self._touched |= {
                    order for order, row in self.rows.items() if row.code == event.instrument and row.open
                }
            else:
                self._sum_up(event, events, number)
        for order in self._touched:
            self._lock(order)

    def _living(self, event: Any) -> Row:
        """The order that an event speaks of, which is not done and is what the event says it is."""
        row = self.rows[event.order_id]
        assert row.open > 0
        assert (row.member, row.id, row.code) == (event.participant, event.client_order_id, event.instrument)
        assert row.side == event.side
        self._touched.add(event.order_id)
        return row

    def _amend(self, event: Amended) -> None:
        row = self._living(event)
        assert (row.open, row.price, row.waiting) == (event.open_before, event.price_before, event.waiting)
        row.total, row.price = event.quantity, event.price
        assert row.open == event.open_quantity > 0

    def _cancel(self, event: Cancelled) -> None:
        row = self._living(event)
        assert (row.open, row.price, row.waiting) == (event.quantity, event.price, event.waiting)
        row.cancelled = event.quantity
        row.is_cancelled = True

    def _trade(self, event: Traded) -> None:
        self.trades.append(event)
        terms = self.instruments[event.instrument]
        assert event.trade_id == len(self.trades)
        assert event.quantity > 0
        assert not event.buy_limit or event.price <= event.buy_limit
        assert event.price >= max(event.sell_limit, terms.lower)
        assert not terms.upper or event.price <= terms.upper
        buy, sell = self.rows[event.buy_order_id], self.rows[event.sell_order_id]
        for row, side in ((buy, Side.BUY), (sell, Side.SELL)):
            row.traded += event.quantity
            assert row.open >= 0
            assert (row.side, row.code) == (side, event.instrument)
        assert (buy.open, buy.price) == (event.buy_open, event.buy_limit)
        assert (sell.open, sell.price) == (event.sell_open, event.sell_limit)
        assert (buy.member, buy.id, buy.account) == (event.buyer, event.buy_client_order_id, event.buy_account)
        assert (sell.member, sell.id, sell.account) == (event.seller, event.sell_client_order_id, event.sell_account)
        self._touched |= {event.buy_order_id, event.sell_order_id}
        self._move(event, 1)

    def _bust(self, event: TradeBusted) -> None:
        assert event.trade_id not in self.busted
        self.busted.add(event.trade_id)
        trade = self.trades[event.trade_id - 1]
        for name in TradeBusted.__struct_fields__[:-1]:
            assert getattr(event, name) == getattr(trade, name), name
        self._move(trade, -1)

    def _move(self, trade: Traded, sign: int) -> None:
        """What the trade moves from one account to the other; nothing comes and nothing goes."""
        terms = self.instruments[trade.instrument]
        cash = trade.price * trade.quantity // terms.unit * terms.cash * sign
        units = trade.quantity * terms.units * sign
        buyer, seller = (trade.buyer, trade.buy_account), (trade.seller, trade.sell_account)
        for code, giver, taker, amount in (("", buyer, seller, cash), (trade.instrument, seller, buyer, units)):
            if amount:
                self.held[code, *giver] = self.held.get((code, *giver), 0) - amount
                self.held[code, *taker] = self.held.get((code, *taker), 0) + amount

    def _sum_up(self, event: Event, events: list[Event], number: int) -> None:
        """Events that say how many others there are."""
        gone = [e for e in events if isinstance(e, Cancelled) and not e.repeat]
        if isinstance(event, AuctionUncrossed):
            trades = events[number + 1 : number + 1 + event.trades]
            behind = events[number + 1 + event.trades : number + 2 + event.trades]
            assert len(trades) == event.trades
            assert all(isinstance(e, Traded) and (e.price, e.maker) == (event.price, -1) for e in trades)
            assert not any(isinstance(e, Traded) and e.maker == -1 for e in behind)
            assert sum(e.quantity for e in trades if isinstance(e, Traded)) == event.volume
            assert (event.volume > 0) == (event.price > 0) == (event.trades > 0)
        elif isinstance(event, MassCancelled):
            mine = [e for e in gone if (e.participant, e.request_id) == (event.participant, event.request_id)]
            assert event.count == len(mine)
        elif isinstance(event, KillSwitched):
            assert event.count == len([e for e in gone if e.reason == CancelReason.KILL])
        elif isinstance(event, ConnectionLost):
            assert event.count == len([e for e in gone if e.reason == CancelReason.DISCONNECT])

    def _lock(self, order: int) -> None:
        """What an order needs now takes the place of what it had locked."""
        place, before = self._locks.pop(order, (("", "", ""), 0))
        if before:
            self.locked[place] -= before
        row = self.rows[order]
        terms = self.instruments[row.code]
        if row.side == Side.SELL:
            code, need = row.code, row.open * terms.units
        else:
            limit = 0 if row.validity == TimeInForce.FUNARI else row.price  # it will give its limit up
            code, need = "", row.open * (limit or terms.upper) // terms.unit * terms.cash
        if need:
            place = code, row.member, row.account
            self._locks[order] = place, need
            self.locked[place] = self.locked.get(place, 0) + need

    # --- holding the engine to it ------------------------------------------------------------------------------------

    def hold(self, engine: Engine) -> None:
        """What the last command has touched, and all accounts."""
        for order in self._touched:
            row = self.rows[order]
            view = engine.order(order)
            assert (view.open_quantity, view.quantity, view.price) == (row.open, row.total, row.price)
            assert not row.open or view.waiting == row.waiting
        found: dict[str, int] = {}
        for place in {**self.held, **self.locked}:
            code, member, account = place
            balance = engine.balance(member, account, code)
            assert (balance.total, balance.locked) == (self.held.get(place, 0), self.locked.get(place, 0)), place
            found[code] = found.get(code, 0) + balance.total
        assert found == {**dict.fromkeys(found, 0), **self.deposited}

    def hold_all(self, engine: Engine) -> None:
        """Every order there ever was."""
        self._touched = set(self.rows)
        self.hold(engine)
