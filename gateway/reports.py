"""Private reports: what each member is told, numbered.

A fold over (sequence, time_ns, participant, events). A member's reports are dense from 1, so a hole shows, and they
can be asked for again: the newest from a window in memory, older ones by folding the log once more. Nothing is stored
beside the log, so there is nothing that could disagree with it.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final, cast

import msgspec
from msgspec import Raw

from engine.core import Engine
from engine.events import (
    Accepted,
    Activated,
    Amended,
    BalanceChanged,
    CancelFrozen,
    Cancelled,
    ConnectionLost,
    Event,
    KillSwitched,
    MassCancelled,
    OrderMarked,
    Rejected,
    RiskLimitsSet,
    SelfTradePrevented,
    TradeBusted,
    Traded,
)
from engine.log import FileStorage, LogReader
from engine.types import Side
from engine.wire import WrittenEvent
from gateway.bus.messages import Bust, Fill, Hello, PrivateEvent, Report, Reports
from gateway.child import die_with_parent

#: Most reports in one message: some 100 bytes each, so a message stays far below what brokers and clients take.
MESSAGE_MAX: Final = 500

_encode = msgspec.msgpack.Encoder().encode
# Asking the enum for a member each time takes as long as two fields of a report.
_BUY: Final = Side.BUY
_SELL: Final = Side.SELL
_PRIVATE: Final = (
    Amended,
    MassCancelled,
    Activated,
    SelfTradePrevented,
    OrderMarked,
    BalanceChanged,
    CancelFrozen,
)
#: What was done to a member: its own business, and the operators' too.
_SHARED: Final = (KillSwitched, RiskLimitsSet, ConnectionLost)


class _Member:
    __slots__ = ("next", "pending", "window")

    def __init__(self, window: int) -> None:
        self.next = 1  #: number of the next report
        self.pending: list[Report] = []  #: made since the last flush
        self.window: deque[Report] = deque(maxlen=window)


class ReportBook:
    """Every member's reports. ``window`` is how many of each member's newest are kept in memory."""

    def __init__(
        self, window: int = 10_000, retention: int = 0, others: Callable[[int, int, Event], None] | None = None
    ) -> None:
        """``retention``: how many of the newest can be asked for again; 0: all.

        ``others`` is told of every event that is no report of a member, as (sequence, time_ns, event).
        """
        self._others = others
        self._window = window
        self._retention = retention
        self._members: dict[str, _Member] = {}
        self._touched: list[str] = []

    def fold(self, sequence: int, time_ns: int, participant: str, events: Iterable[Event | WrittenEvent]) -> None:
        """Take in what one command led to."""
        for event in events:
            # By the type itself: to be told "no" by isinstance takes a Struct class longer than all else here.
            if type(event) is WrittenEvent:
                self._add(event.participant, Report(sequence, time_ns, cast("PrivateEvent", Raw(event.written))))
            elif type(event) is Accepted or type(event) is Cancelled or type(event) is Rejected:
                if event.participant:
                    self._add(event.participant, Report(sequence, time_ns, event))
                elif self._others is not None:
                    self._others(sequence, time_ns, event)
            elif type(event) is Traded:
                buy, sell = fills(event)
                self._add(event.buyer, Report(sequence, time_ns, buy))
                self._add(event.seller, Report(sequence, time_ns, sell))
            elif isinstance(event, _PRIVATE) and event.participant:
                self._add(event.participant, Report(sequence, time_ns, event))
            else:
                if isinstance(event, _SHARED):
                    if event.participant:
                        self._add(event.participant, Report(sequence, time_ns, event))
                elif isinstance(event, TradeBusted):
                    bought, sold = busts(event)
                    self._add(event.buyer, Report(sequence, time_ns, bought))
                    self._add(event.seller, Report(sequence, time_ns, sold))
                if self._others is not None:
                    self._others(sequence, time_ns, event)

    def _add(self, participant: str, report: Report) -> None:
        member = self._members.get(participant)
        if member is None:
            member = self._members[participant] = _Member(self._window)
        if not member.pending:
            self._touched.append(participant)
        member.pending.append(report)
        member.window.append(report)
        member.next += 1

    def flush(self) -> Iterator[tuple[str, bytes]]:
        """The messages about everything since the last flush, as (participant, payload)."""
        touched, self._touched = self._touched, []
        for participant in touched:
            member = self._members[participant]
            pending, member.pending = member.pending, []
            for payload in _messages(member.next - len(pending), pending, resent=False):
                yield participant, payload

    def discard(self) -> None:
        """Forget what is not flushed: after a replay, all of it was said before."""
        for participant in self._touched:
            self._members[participant].pending = []
        self._touched = []

    # --- asked again -----------------------------------------------------------------------------------------------

    def members(self) -> list[str]:
        """Everybody who ever got a report."""
        return list(self._members)

    def next_report(self, participant: str) -> int:
        member = self._members.get(participant)
        return member.next if member is not None else 1

    def first_available(self, participant: str) -> int:
        """The oldest report that can still be asked for."""
        return max(1, self.next_report(participant) - self._retention) if self._retention else 1

    def again(self, participant: str, first: int, count: int) -> list[bytes] | None:
        """Messages with up to ``count`` reports from ``first`` on; None when they are older than the window."""
        member = self._members.get(participant)
        if member is None or first >= member.next:
            return []
        start = first - (member.next - len(member.window))
        if start < 0:
            return None
        reports = [member.window[index] for index in range(start, min(start + count, len(member.window)))]
        return list(_messages(first, reports, resent=True))


def fills(trade: Traded) -> tuple[Fill, Fill]:
    """A trade as its buyer and its seller are told of it."""
    auction = trade.maker < 0
    buy = Fill(
        trade.buyer, trade.buy_client_order_id, trade.buy_order_id, trade.instrument, _BUY, trade.price,
        trade.quantity, trade.buy_open, trade.trade_id, auction, trade.seller, trade.buy_account, trade.trade_date,
        trade.settlement_date,
    )  # fmt: skip
    sell = Fill(
        trade.seller, trade.sell_client_order_id, trade.sell_order_id, trade.instrument, _SELL, trade.price,
        trade.quantity, trade.sell_open, trade.trade_id, auction, trade.buyer, trade.sell_account, trade.trade_date,
        trade.settlement_date,
    )  # fmt: skip
    return buy, sell


def busts(trade: TradeBusted) -> tuple[Bust, Bust]:
    """A busted trade as its buyer and its seller are told of it."""
    bought = Bust(
        trade.buyer, trade.buy_client_order_id, trade.buy_order_id, trade.instrument, _BUY, trade.price,
        trade.quantity, trade.trade_id, trade.seller, trade.buy_account, trade.trade_date,
    )  # fmt: skip
    sold = Bust(
        trade.seller, trade.sell_client_order_id, trade.sell_order_id, trade.instrument, _SELL, trade.price,
        trade.quantity, trade.trade_id, trade.buyer, trade.sell_account, trade.trade_date,
    )  # fmt: skip
    return bought, sold


def _messages(first: int, reports: list[Report], *, resent: bool) -> Iterator[bytes]:
    for start in range(0, len(reports), MESSAGE_MAX):
        yield _encode(Reports(first + start, reports[start : start + MESSAGE_MAX], resent))


def hello(next_report: int, sequence: int) -> bytes:
    return _encode(Hello(next_report, sequence))


# --- from the log ----------------------------------------------------------------------------------------------------


def derive(reader: LogReader, participant: str, first: int, count: int) -> list[bytes]:
    """Up to ``count`` reports of one member from ``first`` on, folded from the log again.

    Stops as soon as it has them, so the cost is that of the log up to there.
    """
    engine = Engine()
    book = _One(participant, first, count)
    for sequence, time_ns, sender, command in reader.commands():
        book.fold(sequence, time_ns, sender, engine.apply(command, sender, time_ns))
        if len(book.found) >= count:
            break
    return list(_messages(first, book.found[:count], resent=True))


class _One(ReportBook):
    """One member's reports from a number on; all others only pass by."""

    def __init__(self, participant: str, first: int, count: int) -> None:
        super().__init__(window=0)
        self._participant = participant
        self._first = first
        self._next = 1
        self.found: list[Report] = []

    def _add(self, participant: str, report: Report) -> None:
        if participant == self._participant:
            if self._next >= self._first:
                self.found.append(report)
            self._next += 1


def main(arguments: list[str]) -> None:
    """``python -m gateway.reports PARENT DIR PARTICIPANT FIRST COUNT``: messages on standard output, each behind its
    length in four bytes.

    A process of its own, because folding a long log takes seconds of a processor that the exchange needs.
    """
    parent, directory, participant, first, count = arguments
    die_with_parent(int(parent))
    reader = LogReader(FileStorage(directory, read_only=True))
    for payload in derive(reader, participant, int(first), int(count)):
        sys.stdout.buffer.write(len(payload).to_bytes(4, "big") + payload)


if __name__ == "__main__":
    main(sys.argv[1:])
