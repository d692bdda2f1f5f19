"""A bus inside one process: for tests, for notebooks, and for the simulator.

It keeps the two habits of a real broker that the gateway must live with: what is not acknowledged comes again, and a
member's login decides its topic.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable

import msgspec

from gateway.bus import topics
from gateway.bus.messages import (
    Inbound,
    MarketData,
    OperatorInbound,
    OperatorOutbound,
    OrderData,
    Outbound,
    Status,
)
from gateway.bus.port import Delivery, Door

_outbound = msgspec.msgpack.Decoder(Outbound)
_operator_outbound = msgspec.msgpack.Decoder(OperatorOutbound)
_market_data = msgspec.msgpack.Decoder(MarketData)
_order_data = msgspec.msgpack.Decoder(OrderData)
_status = msgspec.msgpack.Decoder(Status)
_encoder = msgspec.msgpack.Encoder()


class MemoryBus:
    """Broker and members in one object.

    ``publish_as`` plays a member; ``out``, ``market``, ``by_order`` and ``status`` hold, decoded, what the exchange
    said. A listener (``on_message``) hears every raw outgoing message as ``(topic, payload)``, with topics
    ``out/MEMBER``, ``md/CODE/KIND`` and ``status``. Other addresses than members' (``topics``) are used like a member's
    name.
    """

    def __init__(self) -> None:
        self.out: dict[str, list[Outbound | OperatorOutbound]] = {}
        self.market: dict[str, list[MarketData]] = {}
        self.by_order: dict[str, list[OrderData]] = {}
        self.retained: dict[str, MarketData] = {}
        self.status: list[Status] = []
        self.unacknowledged: deque[Delivery] = deque()
        self.on_message: Callable[[str, bytes], None] | None = None
        self._door: Door | None = None
        self._closed = asyncio.Event()
        self._changed = asyncio.Event()

    # --- as a member ---------------------------------------------------------------------------------------------

    def publish_as(self, address: str, message: Inbound | OperatorInbound | bytes, *, retained: bool = False) -> None:
        payload = message if isinstance(message, bytes) else _encoder.encode(message)
        delivery = Delivery(address, payload, retained, self)
        self.unacknowledged.append(delivery)
        if self._door is not None:
            self._door.receive(delivery)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that the exchange says."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    # --- as the exchange's bus -----------------------------------------------------------------------------------

    async def run(self, door: Door) -> None:
        self._door = door
        door.connected()
        for delivery in list(self.unacknowledged):
            door.receive(delivery)
        await self._closed.wait()
        self._door = None

    def send(self, address: str, payload: bytes) -> None:
        decoder = _operator_outbound if address.startswith(topics.OPERATOR) else _outbound
        self.out.setdefault(address, []).append(decoder.decode(payload))
        self._said(f"out/{address}", payload)

    def publish(self, instrument: str, kind: str, payload: bytes, *, retain: bool = False) -> None:
        if kind.startswith(topics.BY_ORDER):
            self.by_order.setdefault(instrument, []).append(_order_data.decode(payload))
            self._said(f"md/{instrument}/{kind}", payload)
            return
        message = _market_data.decode(payload)
        self.market.setdefault(instrument, []).append(message)
        if retain:
            self.retained[instrument] = message
        self._said(f"md/{instrument}/{kind}", payload)

    def announce(self, payload: bytes) -> None:
        self.status.append(_status.decode(payload))
        self._said("status", payload)

    def acknowledge(self, deliveries: Iterable[Delivery]) -> None:
        done = set(map(id, deliveries))
        self.unacknowledged = deque(d for d in self.unacknowledged if id(d) not in done)

    async def close(self) -> None:
        self._closed.set()

    def _said(self, topic: str, payload: bytes) -> None:
        self._changed.set()
        if self.on_message is not None:
            self.on_message(topic, payload)
