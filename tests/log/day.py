"""A short trading day with a bit of everything, and the smallest thing that can sequence it into a log."""

from __future__ import annotations

from engine.commands import (
    AmendOrder,
    CancelOrder,
    Command,
    ListInstrument,
    MassCancel,
    NewOrder,
    SetCalendar,
    SetPhase,
    StartDay,
)
from engine.core import Engine
from engine.events import Event
from engine.log import Header, Log, Storage, encode_commands
from engine.log.digest import DigestChain
from engine.types import OrderType, Phase, Side

HEADER = Header("0.1.0", bytes(32), b"the test market.", 1_764_000_000_000_000_000)
OPEN_NS = 1_764_028_800_000_000_000  # 2025-11-25 09:00 in Japan
STEP_NS = 600_000_000_000  # a command every ten minutes
TOKEN = "KDX-2107"
OTHER = "ICHIGO-1"


def buy(name: str, quantity: int, price: int, instrument: str = TOKEN) -> NewOrder:
    return NewOrder(name, instrument, Side.BUY, quantity, price)


def sell(name: str, quantity: int, price: int, instrument: str = TOKEN) -> NewOrder:
    return NewOrder(name, instrument, Side.SELL, quantity, price)


def phase(phase: Phase, instrument: str = TOKEN) -> SetPhase:
    return SetPhase(instrument, phase)


#: (participant, commands): what one message brings.
DAY: list[tuple[str, list[Command]]] = [
    ("", [SetCalendar(20251101, 20251231, [20251103, 20251124])]),
    (
        "",
        [
            ListInstrument(TOKEN, reference_price=100_000),
            ListInstrument(OTHER, "CONTINUOUS", 5000, lot=10, price_decimals=1),
        ],
    ),
    ("", [StartDay(20251125), phase(Phase.PRE_OPEN), phase(Phase.CONTINUOUS, OTHER)]),
    (
        "alpha",
        [
            buy("a-1", 10, 100_500),
            buy("a-2", 5, 99_000),
            NewOrder("a-3", TOKEN, Side.BUY, 3, order_type=OrderType.MARKET),
        ],
    ),
    ("beta", [sell("b-1", 8, 99_500), sell("b-2", 4, 100_500), sell("b-3", 7, 101_000)]),
    ("alpha", [AmendOrder("a-4", "a-2", 4), AmendOrder("a-5", "a-9", 4), CancelOrder("a-6", "a-9")]),
    ("alpha", [buy("a-1", 10, 100_500)]),  # a repeat
    ("beta", [sell("b-1", 9, 99_500)]),  # the id again, another order
    ("gamma", [buy("c-1", 50, 5005, OTHER), buy("c-2", 20, 4990, OTHER)]),
    ("beta", [sell("b-4", 30, 4995, OTHER), sell("b-5", 30, 5010, OTHER)]),
    ("", [phase(Phase.PRE_OPEN_NCP)]),
    ("alpha", [CancelOrder("a-7", "a-2")]),  # too late: the non-cancel period
    ("", [phase(Phase.OPENING_AUCTION), phase(Phase.BREAK)]),
    ("alpha", [CancelOrder("a-8", "a-1"), CancelOrder("a-10", "a-2")]),
    ("", [phase(Phase.PRE_CLOSE)]),
    ("gamma", [buy("c-3", 2, 101_000), MassCancel("c-4", OTHER)]),
    ("", [phase(Phase.PRE_CLOSE_NCP), phase(Phase.CLOSING_AUCTION), phase(Phase.CLOSED), phase(Phase.CLOSED, OTHER)]),
    ("", [StartDay(20251126), phase(Phase.CLOSING_AUCTION)]),  # which does not follow Closed
]


class Exchange:
    """Engine, log and digest, fed message by message."""

    def __init__(
        self, log: Log, engine: Engine | None = None, digest: DigestChain | None = None, step_ns: int = STEP_NS
    ) -> None:
        self.step_ns = step_ns
        self.log = log
        self.engine = engine or Engine()
        self.digest = digest or DigestChain()
        self.events: list[tuple[int, int, list[Event]]] = []

    def commit(self, *messages: tuple[str, list[Command]], mark: bool = False) -> None:
        """One batch. Stamps depend on the sequence alone, so batching does not show in them."""
        time_ns = OPEN_NS + self.log.sequence * self.step_ns
        groups = []
        for participant, commands in messages:
            groups.append((time_ns, participant, encode_commands(commands)))
            time_ns += len(commands) * self.step_ns
        self.log.append(groups)
        for (participant, commands), (start_ns, _, _) in zip(messages, groups, strict=True):
            for i, command in enumerate(commands):
                events = self.engine.apply(command, participant, start_ns + i)
                self.digest.update(self.engine.sequence, start_ns + i, events)
                self.events.append((self.engine.sequence, start_ns + i, events))
        if mark:
            self.log.write_mark(self.engine.sequence, self.digest.mark(), self.engine.mark_digest())


def write_day(storage: Storage, batch: int = 1, mark_every: int = 5) -> Exchange:
    """The whole day in a log: ``batch`` messages a record, a digest mark after every ``mark_every`` records."""
    exchange = Exchange(Log.open(storage, HEADER))
    for i in range(0, len(DAY), batch):
        exchange.commit(*DAY[i : i + batch], mark=mark_every > 0 and (i // batch + 1) % mark_every == 0)
    exchange.log.close()
    return exchange
