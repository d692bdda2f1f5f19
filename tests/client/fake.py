"""A small exchange inside the test process, with the faults of the real road on switches.

It answers as the contract says (accepts, cancels, fills on demand, repeats, resends), but knows no matching: what the
client must do when messages vanish, double, or come late does not depend on that.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from engine.commands import AmendOrder, CancelOrder, MassCancel, MemberCommand, NewOrder
from engine.events import Accepted, Amended, Cancelled, MassCancelled, Rejected
from engine.types import CancelReason, Reason
from gateway.bus import topics
from gateway.bus.link import LinkDown
from gateway.bus.messages import (
    Fill,
    Hello,
    Inbound,
    MarketData,
    MessageError,
    OpenOrder,
    OpenOrders,
    Outbound,
    PrivateEvent,
    Report,
    Reports,
    Snapshot,
    Status,
)

COMMANDS = msgspec.msgpack.Decoder(list[MemberCommand])


class FakeLink:
    def __init__(self, exchange: FakeExchange) -> None:
        self.exchange = exchange
        self.queue: asyncio.Queue[tuple[str, bytes, bool] | None] = asyncio.Queue()
        self.down = False
        self.subscriptions: list[str] = []

    async def subscribe(self, topic: str, qos: int) -> None:
        self._check()
        self.subscriptions.append(topic)
        if topic == topics.STATUS:
            self.put(topic, self.exchange.status, kept=True)
        elif topic.startswith(f"{topics.ROOT}/md/"):
            snapshot = self.exchange.snapshots.get(topic.split("/")[3])
            if snapshot is not None:
                self.put(topics.market_data(snapshot.instrument, "snapshot"), snapshot, kept=True)

    async def publish(self, topic: str, payload: bytes) -> None:
        self._check()
        await asyncio.sleep(0)
        self.exchange.receive(msgspec.msgpack.decode(payload, type=Inbound))

    async def messages(self) -> AsyncIterator[tuple[str, bytes, bool]]:
        while True:
            message = await self.queue.get()
            if message is None:
                raise LinkDown("cut by the test")
            yield message

    def put(self, topic: str, message: object, *, kept: bool = False) -> None:
        self.queue.put_nowait((topic, msgspec.msgpack.encode(message), kept))

    def cut(self) -> None:
        self.down = True
        self.queue.put_nowait(None)

    def _check(self) -> None:
        if self.down:
            raise LinkDown("cut by the test")


class FakeExchange:
    def __init__(self, participant: str = "alpha") -> None:
        self.participant = participant
        self.links: list[FakeLink] = []
        self.reports: list[Report] = []
        self.outcomes: dict[str, tuple[MemberCommand, PrivateEvent]] = {}
        self.open: dict[str, OpenOrder] = {}
        self.snapshots: dict[str, Snapshot] = {}
        self.status = Status("up")
        self.received: list[Inbound] = []
        self.executed: list[str] = []  #: ids in the order in which they took effect
        # faults
        self.deaf = 0  #: so many messages with commands are lost on the way in
        self.mute = 0  #: so many messages of reports are lost on the way out
        self.throttle = 0  #: so many messages with commands are answered THROTTLED
        self.errors: list[MessageError] = []  #: answers to the next messages with commands
        self.resend_max = 1_000
        self.first_available = 1
        self.unreachable = False

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[FakeLink]:
        if self.unreachable:
            raise LinkDown("nobody listens")
        link = FakeLink(self)
        self.links.append(link)
        try:
            yield link
        finally:
            self.links.remove(link)

    def cut(self) -> None:
        for link in self.links:
            link.cut()

    # --- out ---------------------------------------------------------------------------------------------------------

    def say(self, message: Outbound) -> None:
        for link in self.links:
            link.put(topics.outbound(self.participant), message)

    def hello(self) -> None:
        self.say(Hello(len(self.reports) + 1, len(self.executed)))

    def set_status(self, state: str) -> None:
        self.status = Status(state)  # type: ignore[arg-type]
        for link in self.links:
            link.put(topics.STATUS, self.status)

    def market(self, instrument: str, message: MarketData) -> None:
        kind = message.__struct_config__.tag
        if isinstance(message, Snapshot):
            self.snapshots[instrument] = message
        for link in self.links:
            if topics.market_data(instrument, "+") in link.subscriptions:
                link.put(topics.market_data(instrument, str(kind)), message)

    def report(self, *events: PrivateEvent) -> None:
        first = len(self.reports) + 1
        self.reports += [Report(len(self.executed), 1_000_000_000 + first + i, event) for i, event in enumerate(events)]
        if self.mute:
            self.mute -= 1
            return
        self.say(Reports(first, self.reports[first - 1 :]))

    def fill(self, client_order_id: str, quantity: int, price: int) -> None:
        order = self.open[client_order_id]
        order.open_quantity -= quantity
        if not order.open_quantity:
            del self.open[client_order_id]
        self.report(
            Fill(
                self.participant,
                client_order_id,
                order.order_id,
                order.instrument,
                order.side,
                price,
                quantity,
                order.open_quantity,
                len(self.reports) + 1,
                False,
                "beta",
                "",
                20261124,
                20261126,
            )
        )

    # --- in ----------------------------------------------------------------------------------------------------------

    def receive(self, message: Inbound) -> None:
        self.received.append(message)
        commands = COMMANDS.decode(message.commands)
        if commands:
            if self.deaf:
                self.deaf -= 1
                return
            if self.throttle:
                self.throttle -= 1
                self.say(MessageError("THROTTLED", "slow down", message_id=message.message_id, retry_after_ms=20))
                return
            if self.errors:
                error = self.errors.pop(0)
                error.message_id = message.message_id
                self.say(error)
                return
            self.report(*[event for command in commands for event in self.execute(command)])
        if message.open_orders:
            self.say(OpenOrders(len(self.reports) + 1, list(self.open.values()), message.message_id))
        if message.resend_from is not None:
            self.resend(message.resend_from)

    def resend(self, number: int) -> None:
        if number < self.first_available:
            self.say(
                MessageError(
                    "NOT_AVAILABLE", f"{number} is too old", first_available=self.first_available, place="$.resend_from"
                )
            )
            return
        part = self.reports[number - 1 : number - 1 + self.resend_max]
        if part:
            self.say(Reports(number, part, resent=True))
        self.hello()

    def execute(self, command: MemberCommand) -> list[PrivateEvent]:
        command_id = command.client_order_id if isinstance(command, NewOrder) else command.request_id
        if command_id in self.outcomes:
            before, outcome = self.outcomes[command_id]
            assert command == before, f"{command_id} came again with other content"
            return [msgspec.structs.replace(outcome, repeat=True)]
        self.executed.append(command_id)
        events = self._execute(command)
        self.outcomes[command_id] = (command, events[-1])
        return events

    def _execute(self, command: MemberCommand) -> list[PrivateEvent]:
        if isinstance(command, NewOrder):
            if command.price % 10:
                text = f"Expected a multiple of 10, got {command.price} - at `$.price`"
                return [Rejected(self.participant, command.client_order_id, Reason.OFF_TICK, text, command.instrument)]
            order = OpenOrder(
                command.client_order_id,
                len(self.executed),
                command.instrument,
                command.side,
                command.price,
                command.quantity,
                command.quantity,
                command.order_type,
                command.time_in_force,
                command.account,
            )
            self.open[command.client_order_id] = order
            return [
                Accepted(
                    self.participant,
                    command.client_order_id,
                    order.order_id,
                    command.instrument,
                    command.side,
                    command.quantity,
                    command.price,
                    command.order_type,
                    command.time_in_force,
                    command.account,
                )
            ]
        if isinstance(command, MassCancel):
            gone = [self._cancel(i, command.request_id, CancelReason.MASS_CANCEL) for i in list(self.open)]
            return [*gone, MassCancelled(self.participant, command.request_id, len(gone))]
        if command.client_order_id not in self.open:
            return [Rejected(self.participant, command.request_id, Reason.UNKNOWN_ORDER, "no such order")]
        if isinstance(command, CancelOrder):
            return [self._cancel(command.client_order_id, command.request_id, CancelReason.MEMBER)]
        assert isinstance(command, AmendOrder)
        order = self.open[command.client_order_id]
        before = order.open_quantity, order.price
        if command.quantity:
            order.open_quantity += command.quantity - order.quantity
            order.quantity = command.quantity
        order.price = command.price or order.price
        return [
            Amended(
                self.participant,
                order.client_order_id,
                order.order_id,
                order.instrument,
                order.side,
                order.quantity,
                order.price,
                order.open_quantity,
                before[0],
                before[1],
                False,
                command.request_id,
            )
        ]

    def _cancel(self, client_order_id: str, request_id: str, reason: CancelReason) -> Cancelled:
        order = self.open.pop(client_order_id)
        return Cancelled(
            self.participant,
            client_order_id,
            order.order_id,
            order.instrument,
            order.side,
            order.price,
            order.open_quantity,
            reason,
            request_id,
        )
