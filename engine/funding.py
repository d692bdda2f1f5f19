"""Pre-funded instruments: what an account has, and what its open orders have locked of it.

The parameter ``funding`` of an instrument says what has to be there before an order is taken: ``cash`` for buys,
``units`` for sells, ``both``, or nothing (``off``; market-rules 7). Cash is shared by all instruments of an account,
units are of one. Both come and go by ``Deposit`` and ``Withdraw``; a trade moves them from one account to the other at
its own price.

What an order locks follows from its row alone: a sell its open units, a buy its open quantity at its limit, or at the
day's upper limit where it names none (and none is taken where there is no upper limit either). So there is nothing to
release: once a command has happened, whatever its events name is looked at again, and its lock becomes what its row
says now. Fill, amend, cancel, expiry, self-trade prevention, kill and set-aside all end there, and no trade can cost
more than was locked for it: what a better price has saved is free by itself. ``verify`` says so in code.

A bust moves a trade's cash and units back. Whoever has used them meanwhile is left with less than nothing: a claim of
the venue, which shows as a balance below 0.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from engine.checks import Refusal, is_account, is_id, is_participant, number, plain, unknown_instrument
from engine.commands import Deposit, Withdraw
from engine.events import Accepted, Amended, BalanceChanged, Cancelled, Event, TradeBusted, Traded
from engine.faults import InvariantBroken
from engine.identities import Identities, newest
from engine.market import FUNDED, Instrument
from engine.matching.book import BUY, SELL, OrderTable
from engine.profiles import FUNDS_CASH, FUNDS_UNITS
from engine.types import VALUE_MAX, Reason, TimeInForce

#: Most yen or units of one deposit: what JavaScript clients can hold.
BOOKED_MAX: Final = 2**53


class Balance(NamedTuple):
    """What an account has of one thing: yen, or units of an instrument."""

    total: int  #: below 0 only after a bust
    locked: int  #: of it, by open orders

    @property
    def available(self) -> int:
        return self.total - self.locked


class Holding:
    """One account's yen, or its units of one instrument."""

    def __init__(self) -> None:
        self.total: int = 0
        self.locked: int = 0
        self.buying: int = 0  #: units that its open orders may yet buy

    def key(self) -> list[int]:
        """All of it, for the digest."""
        return [self.total, self.locked, self.buying]


class Funding:
    """All balances, and the locks of all open orders."""

    def __init__(self, table: OrderTable, instruments: list[Instrument], identities: Identities) -> None:
        self._table: Final = table
        self._instruments: Final = instruments
        self._identities: Final = identities
        #: By instrument code ("": yen), participant and account.
        self._holdings: Final[dict[tuple[str, str, str], Holding]] = {}
        self._locks: Final[dict[int, int]] = {}  #: yen or units by order; only of orders that lock some
        self._buying: Final[dict[int, int]] = {}  #: units by order, of buys where units are counted
        self._booked: Final[dict[str, int]] = {}  #: deposits less withdrawals, by what they are of
        self._references: Final[dict[str, bool]] = {}
        self._busts: int = 0

    # --- what there is -----------------------------------------------------------------------------------------------

    def balance(self, participant: str, account: str, instrument: str) -> Balance:
        holding = self._holdings.get((instrument, participant, account))
        return Balance(holding.total, holding.locked) if holding is not None else Balance(0, 0)

    def holding(self, instrument: str, participant: str, account: str) -> Holding:
        """The holding itself; a new one where there is none."""
        key = (instrument, participant, account)
        holding = self._holdings.get(key)
        if holding is None:
            holding = self._holdings[key] = Holding()
        return holding

    def units(self, instrument: str, participant: str, account: str) -> tuple[int, int, int]:
        """Units that an account has, that its orders have locked, and that its orders may yet buy."""
        holding = self._holdings.get((instrument, participant, account))
        return (holding.total, holding.locked, holding.buying) if holding is not None else (0, 0, 0)

    def lock_of(self, order: int) -> int:
        """Yen or units that an order has locked."""
        return self._locks.get(order, 0)

    def buying_of(self, order: int) -> int:
        """Units that an order may yet buy, where units are counted."""
        return self._buying.get(order, 0)

    def holders(self, instrument: str) -> int:
        """Accounts that have units of an instrument, or may come to have some by an open order."""
        found = [holding for key, holding in self._holdings.items() if key[0] == instrument]
        return sum([1 for holding in found if holding.total > 0 or holding.buying > 0])

    # --- what an order needs -----------------------------------------------------------------------------------------

    def check(
        self,
        instrument: Instrument,
        participant: str,
        account: str,
        side: int,
        price: int,
        quantity: int,
        locked: int = 0,
    ) -> Refusal | None:
        """Whether an account can pay for ``quantity`` to be open, of which ``locked`` is locked already."""
        funds = instrument.rules.funding
        if side == SELL:
            if funds & FUNDS_UNITS == 0:
                return None
            available = self.balance(participant, account, instrument.code).available
            if quantity - locked <= available:
                return None
            text = f"Expected at most the {available + locked} units of {instrument.code} that the account has free"
            return Refusal(Reason.INSUFFICIENT_UNITS, f"{text}, got {quantity} - at `$.quantity`")
        if funds & FUNDS_CASH == 0:
            return None
        worst = price or instrument.upper
        if not worst:
            text = f"Expected a limit for a pre-funded buy in {instrument.code}, which has no daily limit, got none"
            return Refusal(Reason.NO_PRICE_BOUND, f"{text} - at `$.price`")
        cost = _yen(instrument, worst, quantity)
        available = self.balance(participant, account, "").available
        if cost - locked <= available:
            return None
        text = f"Expected a buy worth at most the {available + locked} yen that the account has free"
        return Refusal(Reason.INSUFFICIENT_CASH, f"{text}, got {quantity} at up to {worst} - at `$.quantity`")

    def check_amend(self, order: int, instrument: Instrument, price: int, quantity: int) -> Refusal | None:
        """The same for an open order that is to have ``quantity`` open at ``price``."""
        table = self._table
        name = self._identities.members[table.participant(order)].name
        if table.validity(order) == TimeInForce.FUNARI:
            price = 0
        return self.check(
            instrument, name, table.account[order], table.side(order), price, quantity, self._locks.get(order, 0)
        )

    def lock_anew(self, orders: list[int], instrument: Instrument) -> list[int]:
        """The day's limits have changed: buys without a limit lock what the upper one asks, the earliest first.

        ``orders`` are all that were open, of which some may have gone. Returns those that cannot be paid for any more.
        """
        table = self._table
        buys: list[int] = []
        for order in orders:
            if table.is_open(order) and table.side(order) == BUY and not table.price[order]:
                buys.append(order)
                self._lock(order, instrument, 0)
            else:
                self._relock(order, instrument)
        lacking: list[int] = []
        for order in buys:
            if self.check_amend(order, instrument, 0, self._open(order, instrument)) is None:
                self._relock(order, instrument)
            else:
                lacking.append(order)
        return lacking

    def _open(self, order: int, instrument: Instrument) -> int:
        if not self._table.is_open(order):
            return 0
        return self._table.open[order] + instrument.reserves.get(order, 0)

    def _need(self, order: int, instrument: Instrument) -> int:
        """What an order has to lock, by its row: yen or units."""
        table = self._table
        quantity = self._open(order, instrument)
        if table.side(order) == SELL:
            return quantity if instrument.rules.funding & FUNDS_UNITS else 0
        if instrument.rules.funding & FUNDS_CASH == 0:
            return 0
        # A funari order will be without a limit at the close.
        limit = 0 if table.validity(order) == TimeInForce.FUNARI else table.price[order]
        return _yen(instrument, limit or instrument.upper, quantity)

    # --- what has happened -------------------------------------------------------------------------------------------

    def fold(self, events: list[Event], by_code: dict[str, Instrument]) -> None:
        """Take in what one command led to: trades move cash and units, and what was named locks what it needs now."""
        touched: list[int] = []
        for event in events:
            if isinstance(event, Traded):
                if by_code[event.instrument].guards & FUNDED:
                    self._move(by_code[event.instrument], event, 1)
                    touched.append(event.buy_order_id)
                    touched.append(event.sell_order_id)
            elif isinstance(event, TradeBusted):
                if by_code[event.instrument].guards & FUNDED:
                    self._move(by_code[event.instrument], event, -1)
                    self._busts += 1
            elif isinstance(event, Accepted | Cancelled | Amended) and by_code[event.instrument].guards & FUNDED:
                touched.append(event.order_id)
        for order in touched:
            self._relock(order, self._instruments[self._table.instrument(order)])

    def _move(self, instrument: Instrument, trade: Traded | TradeBusted, sign: int) -> None:
        funds = instrument.rules.funding
        if funds & FUNDS_CASH:
            cost = _yen(instrument, trade.price, trade.quantity) * sign
            self.holding("", trade.buyer, trade.buy_account).total -= cost
            self.holding("", trade.seller, trade.sell_account).total += cost
        if funds & FUNDS_UNITS:
            self.holding(instrument.code, trade.buyer, trade.buy_account).total += trade.quantity * sign
            self.holding(instrument.code, trade.seller, trade.sell_account).total -= trade.quantity * sign

    def _relock(self, order: int, instrument: Instrument) -> None:
        """Let an order lock what its row says."""
        self._lock(order, instrument, self._need(order, instrument))
        if self._table.side(order) == BUY and instrument.rules.funding & FUNDS_UNITS:
            quantity = self._open(order, instrument)
            before = self._buying.get(order, 0)
            if quantity != before:
                self._held(order, instrument.code).buying += quantity - before
                _put(self._buying, order, quantity)

    def _lock(self, order: int, instrument: Instrument, need: int) -> None:
        """The one place where locks change."""
        before = self._locks.get(order, 0)
        if need != before:
            code = instrument.code if self._table.side(order) == SELL else ""
            self._held(order, code).locked += need - before
            _put(self._locks, order, need)

    def _held(self, order: int, code: str) -> Holding:
        """What the account of an order has of something."""
        name = self._identities.members[self._table.participant(order)].name
        return self.holding(code, name, self._table.account[order])

    # --- deposits and withdrawals ------------------------------------------------------------------------------------

    def book(self, command: Deposit | Withdraw, by_code: dict[str, Instrument], events: list[Event]) -> Refusal | None:
        """Carry out a deposit or withdrawal, or say why not."""
        takes = isinstance(command, Withdraw)
        if not is_id(command.reference):
            text = f"Expected a reference of 1 to 36 printable characters, got {plain(command.reference)}"
            return Refusal(Reason.BAD_IDENTITY, f"{text} - at `$.reference`")
        if command.reference in self._references:
            text = f"Expected a reference that was not booked, got {command.reference}, which was - at `$.reference`"
            return Refusal(Reason.ALREADY_BOOKED, text)
        if not is_participant(command.participant) or not is_account(command.account):
            text = f"Expected a participant and an account, got {plain(command.participant)}, {plain(command.account)}"
            return Refusal(Reason.BAD_IDENTITY, f"{text} - at `$.participant`")
        if command.instrument:
            instrument = by_code.get(command.instrument)
            if instrument is None:
                return unknown_instrument(command.instrument)
            if instrument.rules.funding & FUNDS_UNITS == 0:
                text = f"Expected an instrument whose units are pre-funded, got {instrument.code} - at `$.instrument`"
                return Refusal(Reason.NOT_OFFERED, text)
        if not 1 <= command.quantity <= BOOKED_MAX:
            text = f"Expected 1 to {BOOKED_MAX}, got {number(command.quantity)} - at `$.quantity`"
            return Refusal(Reason.BAD_QUANTITY, text)
        balance = self.balance(command.participant, command.account, command.instrument)
        what = f"units of {command.instrument}" if command.instrument else "yen"
        if takes and command.quantity > balance.available:
            reason = Reason.INSUFFICIENT_UNITS if command.instrument else Reason.INSUFFICIENT_CASH
            text = f"Expected at most the {balance.available} {what} that the account has free, got {command.quantity}"
            return Refusal(reason, f"{text} - at `$.quantity`")
        if self._booked.get(command.instrument, 0) + command.quantity >= VALUE_MAX and not takes:
            text = f"Expected fewer than {VALUE_MAX} {what} in all, got {command.quantity} more - at `$.quantity`"
            return Refusal(Reason.VALUE_TOO_LARGE, text)
        quantity = -command.quantity if takes else command.quantity
        self._references[command.reference] = True
        self._booked[command.instrument] = self._booked.get(command.instrument, 0) + quantity
        holding = self.holding(command.instrument, command.participant, command.account)
        holding.total += quantity
        events.append(
            BalanceChanged(
                command.participant,
                command.account,
                command.instrument,
                quantity,
                holding.total,
                holding.locked,
                command.reference,
            )
        )
        return None

    # --- the whole of it ---------------------------------------------------------------------------------------------

    def key(self, most: int) -> list[object]:
        """All of it, for the digest; at most ``most`` of what can be many, and how many there are.

        Nothing where nothing was ever booked.
        """
        if not self._booked and not self._holdings:
            return []
        return [
            [len(self._holdings), [[*key, *holding.key()] for key, holding in newest(self._holdings, most)]],
            [len(self._locks), newest(self._locks, most)],
            [len(self._buying), newest(self._buying, most)],
            sorted(self._booked.items()),
            [len(self._references), newest(self._references, most)],
            self._busts,
        ]

    def verify(self, orders: list[tuple[int, Instrument]]) -> None:
        """Raise ``InvariantBroken`` unless locks are those of the open ``orders`` and nothing has come from nowhere."""
        locked: dict[tuple[str, str, str], int] = {}
        buying: dict[tuple[str, str, str], int] = {}
        locks = 0
        for order, instrument in orders:
            if instrument.guards & FUNDED == 0:
                continue
            need = self._need(order, instrument)
            if need != self._locks.get(order, 0):
                raise InvariantBroken(f"Order {order} has locked {self._locks.get(order, 0)}, it needs {need}")
            name = self._identities.members[self._table.participant(order)].name
            account = self._table.account[order]
            buys = self._table.side(order) == BUY
            if need:
                locks += 1
                key = ("" if buys else instrument.code, name, account)
                locked[key] = locked.get(key, 0) + need
            if buys and instrument.rules.funding & FUNDS_UNITS:
                key = (instrument.code, name, account)
                buying[key] = buying.get(key, 0) + self._open(order, instrument)
        if locks != len(self._locks):
            raise InvariantBroken(f"{len(self._locks)} orders have locked something, {locks} are open and need to")
        totals: dict[str, int] = {}
        for key, holding in self._holdings.items():
            if holding.locked != locked.get(key, 0) or holding.buying != buying.get(key, 0):
                text = f"{key} has {holding.locked} locked and {holding.buying} buying"
                raise InvariantBroken(f"{text}, its orders {locked.get(key, 0)} and {buying.get(key, 0)}")
            if holding.total < holding.locked and not self._busts:
                raise InvariantBroken(f"{key} has {holding.locked} locked of {holding.total}")
            totals[key[0]] = totals.get(key[0], 0) + holding.total
        for what, booked in self._booked.items():
            if totals.get(what, 0) != booked:
                raise InvariantBroken(
                    f"{booked} were booked of {what or 'yen'}, the accounts have {totals.get(what, 0)}"
                )


def _put(numbers: dict[int, int], order: int, value: int) -> None:
    if value:
        numbers[order] = value
    else:
        numbers.pop(order, None)


def _yen(instrument: Instrument, price: int, quantity: int) -> int:
    """Price times quantity; whole yen, for that is what a lot is worth at any price."""
    unit: int = 10**instrument.price_decimals
    return price * quantity // unit
