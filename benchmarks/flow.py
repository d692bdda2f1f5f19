"""Which commands? The steady stream of ``generate.py`` as members of a market send it, and what is right of it.

The neutral streams have no members; a market has. So orders are dealt out to members in turn, a cancel goes to the
member whose order it names, and each member sends a message as soon as it has a batch of commands. Messages reach the
market in that order, so the plain matcher of ``generate.py`` can say, trade by trade, what must come of them.

The market is one CONTINUOUS book without limits. The stream's id of an order becomes ``oN``, a cancel is ``cK``.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from benchmarks import generate
from engine import (
    Accepted,
    CancelOrder,
    Command,
    Engine,
    Event,
    ListInstrument,
    MemberCommand,
    NewOrder,
    Phase,
    Rejected,
    SetCalendar,
    SetPhase,
    Side,
    StartDay,
    TimeInForce,
    Traded,
)
from engine.types import Reason
from gateway.bus.messages import Inbound

CODE = "BENCH"
MEMBERS = 16
#: What the exchange itself says first. The flow's first command has the sequence behind these.
OPENING: list[Command] = [
    SetCalendar(20261101, 20261231, []),
    ListInstrument(CODE, profile="CONTINUOUS", reference_price=10_000, rules={"self_trade": "none"}),
    StartDay(20261124),
    SetPhase(CODE, Phase.CONTINUOUS),
]
_encode = msgspec.msgpack.Encoder().encode


@dataclass
class Message:
    """What one member sends at once."""

    participant: str
    commands: list[MemberCommand]

    def payload(self) -> bytes:
        """As it goes over the bus."""
        return _encode(Inbound(commands=msgspec.Raw(_encode(self.commands))))


@dataclass
class Truth:
    """What a market must make of the flow. ``checksum`` covers every trade in order, as in ``generate.py``."""

    commands: int = 0
    orders: int = 0
    refused: int = 0  #: cancels of orders that had gone
    trades: int = 0
    volume: int = 0
    notional: int = 0
    checksum: int = 0


def member_name(number: int) -> str:
    return f"m{number:02d}"


class Judge:
    """Says what is right of any sequence of the flow's commands, with the plain matcher of ``generate.py``."""

    def __init__(self) -> None:
        self.truth = Truth()
        self._book = generate.Plain()
        self._numbers: dict[tuple[str, str], int] = {}  # the engine's: orders are numbered as they arrive

    def take(self, participant: str, command: Command) -> None:
        """The next command as it reaches the market."""
        truth, book = self.truth, self._book
        truth.commands += 1
        if isinstance(command, NewOrder):
            truth.orders += 1
            self._numbers[participant, command.client_order_id] = truth.orders
            ioc = command.time_in_force == TimeInForce.IOC
            book.new(truth.orders, command.side, command.price, command.quantity, ioc)
            truth.trades, truth.volume, truth.notional = book.trades, book.volume, book.notional
            truth.checksum = book.checksum
        else:
            assert isinstance(command, CancelOrder)
            number = self._numbers.pop((participant, command.client_order_id))  # nobody asks twice
            truth.refused += number not in book.open
            book.cancel(number)


def messages(commands: int, batch: int, judge: Judge, members: int = MEMBERS) -> Iterator[Message]:
    """``commands`` commands in messages of ``batch``, the last of each member perhaps fewer.

    ``judge.truth`` is right once all are taken.
    """
    waiting = [Message(member_name(number), []) for number in range(members)]

    def send(member: int) -> Message:
        message, waiting[member] = waiting[member], Message(member_name(member), [])
        for command in message.commands:
            judge.take(message.participant, command)
        return message

    for record in generate.stream(generate.recipes(commands)[0], commands, [generate.Plain()]):
        operation, side, flags, _, price, quantity, number = generate.RECORD.unpack(record)
        member = number % members
        if operation == generate.NEW:
            life = TimeInForce.IOC if flags & generate.IOC else TimeInForce.DAY
            order = NewOrder(f"o{number}", CODE, Side(side), quantity, price, time_in_force=life)
            waiting[member].commands.append(order)
        else:
            waiting[member].commands.append(CancelOrder(f"c{number}", f"o{number}"))
        if len(waiting[member].commands) == batch:
            yield send(member)
    for member in range(members):
        if waiting[member].commands:
            yield send(member)


def open_market(engine: Engine) -> None:
    """Bring the flow's instrument to the market and let it trade."""
    for command in OPENING:
        for event in engine.apply(command):
            if isinstance(event, Rejected):
                raise ValueError(f"Expected the market to open, got {event.text}")


def found(events: Iterable[Sequence[Event]]) -> Truth:
    """What a market did make of the flow: ``events`` of each command, in order, without those of ``OPENING``."""
    truth = Truth()
    for answer in events:
        truth.commands += 1
        for event in answer:
            if isinstance(event, Accepted):
                truth.orders += not event.repeat
            elif isinstance(event, Rejected):
                if event.reason not in (Reason.ORDER_FILLED, Reason.ORDER_GONE):
                    raise ValueError(f"Expected no other refusals than of late cancels, got {event}")
                truth.refused += 1
            elif isinstance(event, Traded):
                truth.trades += 1
                truth.volume += event.quantity
                truth.notional += event.quantity * event.price
                maker, taker = event.buy_order_id, event.sell_order_id
                if event.maker == Side.SELL:
                    maker, taker = taker, maker
                checksum = truth.checksum * 1_000_003 + maker * 31 + taker * 17 + event.price * 7 + event.quantity
                truth.checksum = checksum % 2**64
    return truth


def differences(right: Truth, got: Truth) -> list[str]:
    """What differs, one line each; empty when all is right."""
    return [
        f"{name}: expected {value}, got {getattr(got, name)}"
        for name, value in vars(right).items()
        if getattr(got, name) != value
    ]


def digest(flow: Iterable[Message]) -> str:
    """Tells one flow from another: 8 digits over all its bytes."""
    value = 0
    for message in flow:
        value = zlib.crc32(message.payload(), zlib.crc32(message.participant.encode(), value))
    return f"{value:08x}"
