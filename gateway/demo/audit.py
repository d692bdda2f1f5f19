"""Does the log say what everybody was told? A second opinion, made from the log's events alone.

Each firm wrote down every report it got. From the replayed log follows what it should have got: the same facts, in the
same order, with numbers dense from 1. So an order that was acknowledged and is missing, one that counts twice, a fill
that never was: each is a difference here. How the exchange makes its reports is not used, only what happened.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped]
import msgspec
from msgspec import Struct

from engine.commands import AmendOrder, CancelOrder, Command, MassCancel, NewOrder
from engine.events import (
    Accepted,
    Activated,
    Amended,
    AuctionUncrossed,
    BalanceChanged,
    CancelFrozen,
    Cancelled,
    Event,
    MassCancelled,
    OrderMarked,
    Rejected,
    SelfTradePrevented,
    Traded,
)
from engine.types import Phase, Side
from gateway.bus.messages import Fill

_PRIVATE = (
    Accepted,
    Activated,
    Amended,
    BalanceChanged,
    CancelFrozen,
    Cancelled,
    MassCancelled,
    OrderMarked,
    Rejected,
    SelfTradePrevented,
)
#: Most differences that are named; more are only counted.
NAMED_MAX = 20


class Auction(Struct):
    price: int = 0  #: 0: no price
    volume: int = 0


class TokenDay(Struct):
    """One instrument's day by the log."""

    instrument: str
    opening: Auction = msgspec.field(default_factory=Auction)
    closing: Auction = msgspec.field(default_factory=Auction)
    trades: int = 0
    volume: int = 0
    value: int = 0  #: price times quantity, in price units


class Audit:
    """Fold the replayed log into it with ``take``; then ``compare`` with each firm's journal."""

    def __init__(self) -> None:
        self.told: dict[str, list[tuple[int, int, Any]]] = defaultdict(list)
        self.tokens: dict[str, TokenDay] = {}
        self.commands: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.accepted: dict[str, Counter[str]] = defaultdict(Counter)
        self.repeats = 0
        self.problems: list[str] = []
        self.found = 0  #: differences, named or not

    def take(self, sequence: int, time_ns: int, participant: str, command: Command, events: list[Event]) -> None:
        if participant:
            kind = {NewOrder: "new", CancelOrder: "cancel", AmendOrder: "amend", MassCancel: "mass cancel"}
            self.commands[kind[type(command)]] += 1
        for event in events:
            if isinstance(event, _PRIVATE):
                if event.participant:
                    self.told[event.participant].append((sequence, time_ns, event))
                    self._private(event)
            elif isinstance(event, Traded):
                self._traded(sequence, time_ns, event)
            elif isinstance(event, AuctionUncrossed):
                day = self._token(event.instrument)
                auction = Auction(event.price, event.volume)
                if event.phase == Phase.OPENING_AUCTION:
                    day.opening = auction
                elif event.phase == Phase.CLOSING_AUCTION:
                    day.closing = auction

    def _private(self, event: Event) -> None:
        if getattr(event, "repeat", False):
            self.repeats += 1
        elif isinstance(event, Accepted):
            self.accepted[event.participant][event.client_order_id] += 1
            if self.accepted[event.participant][event.client_order_id] > 1:
                self._problem(f"{event.participant}: order {event.client_order_id} is in the market more than once")
        elif isinstance(event, Rejected):
            self.refused[event.reason.name] += 1

    def _traded(self, sequence: int, time_ns: int, trade: Traded) -> None:
        day = self._token(trade.instrument)
        day.trades += 1
        day.volume += trade.quantity
        day.value += trade.price * trade.quantity
        auction = trade.maker < 0
        for side, owner, order, number, left, account, other in (
            (Side.BUY, trade.buyer, trade.buy_client_order_id, trade.buy_order_id, trade.buy_open,
             trade.buy_account, trade.seller),
            (Side.SELL, trade.seller, trade.sell_client_order_id, trade.sell_order_id, trade.sell_open,
             trade.sell_account, trade.buyer),
        ):  # fmt: skip
            fill = Fill(
                owner,
                order,
                number,
                trade.instrument,
                side,
                trade.price,
                trade.quantity,
                left,
                trade.trade_id,
                auction,
                other,
                account,
                trade.trade_date,
                trade.settlement_date,
            )
            self.told[owner].append((sequence, time_ns, fill))

    def _token(self, instrument: str) -> TokenDay:
        return self.tokens.setdefault(instrument, TokenDay(instrument))

    def _problem(self, text: str) -> None:
        self.found += 1
        if len(self.problems) < NAMED_MAX:
            self.problems.append(text)

    # --- what they say they were told --------------------------------------------------------------------------------

    def compare(self, firm: str, journal: Path) -> int:
        """Compare one firm's journal with the log. Returns the reports compared; differences go to ``problems``."""
        expected = self.told.get(firm, [])
        written = read_journal(journal)
        seen: set[int] = set()
        for entry in written:
            if entry[0] is None:
                self._problem(f"{firm}: told that reports {entry[1]} to {entry[2]} cannot be had any more")
                continue
            number, sequence, time_ns, event = entry
            if number in seen:
                self._problem(f"{firm}: report {number} was read twice")
                continue
            seen.add(number)
            if not 1 <= number <= len(expected):
                self._problem(f"{firm}: was told report {number} ({_short(event)}), the log has {len(expected)}")
                continue
            should = expected[number - 1]
            if (sequence, time_ns, event) != (should[0], should[1], msgspec.to_builtins(should[2])):
                self._problem(
                    f"{firm}: report {number} was {_short(event)} at sequence {sequence}, the log says "
                    f"{_short(msgspec.to_builtins(should[2]))} at sequence {should[0]}"
                )
        for number in range(1, len(expected) + 1):
            if number not in seen:
                event = msgspec.to_builtins(expected[number - 1][2])
                self._problem(f"{firm}: was never told report {number} ({_short(event)})")
        return len(seen)


def read_journal(path: Path) -> list[tuple[Any, ...]]:
    """Entries as (number, sequence, time_ns, event), or (None, first, last) for reports that could not be had.

    A torn last entry is what a killed firm leaves; it was not told that one.
    """
    unpacker = msgpack.Unpacker(raw=False, use_list=True)
    unpacker.feed(path.read_bytes())
    entries: list[tuple[Any, ...]] = []
    for entry in unpacker:
        if "number" in entry:
            entries.append((entry["number"], entry["sequence"], entry["time_ns"], entry["event"]))
        else:
            entries.append((None, entry["first"], entry["last"]))
    return entries


def _short(event: list[Any]) -> str:
    return " ".join(str(part) for part in event[:4])
