"""For tests: links of clients into a market in this process, with the faults of the real road on switches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from gateway.bus import topics
from gateway.bus.link import LinkDown
from gateway.operator_client import OperatorClient
from tests.gateway.market import Market


class Road:
    """Links into a market in this process, with the faults of the real road on switches."""

    def __init__(self, m: Market) -> None:
        self.market = m
        self.queues: list[asyncio.Queue[tuple[str, bytes, bool] | None]] = []
        self.deaf = 0  #: so many messages are lost on the way in
        self.mute = 0  #: so many messages are lost on the way out, for everybody
        m.bus.on_message = self._said

    def _said(self, topic: str, payload: bytes) -> None:
        if self.mute:
            self.mute -= 1
            return
        name = topics.outbound(topic.removeprefix("out/")) if topic.startswith("out/") else f"{topics.ROOT}/{topic}"
        for queue in self.queues:
            queue.put_nowait((name, payload, False))

    def cut(self) -> None:
        for queue in self.queues:
            queue.put_nowait(None)

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Any]:
        link = _Link(self)
        self.queues.append(link.queue)
        try:
            yield link
        finally:
            self.queues.remove(link.queue)

    def operator(self, name: str, **options: Any) -> OperatorClient:
        return OperatorClient("", name, link=self.connect, resend_after=0.02, timeout=10, **options)


class _Link:
    def __init__(self, road: Road) -> None:
        self.road = road
        self.queue: asyncio.Queue[tuple[str, bytes, bool] | None] = asyncio.Queue()

    async def subscribe(self, topic: str, qos: int) -> None:
        """What a broker has retained comes at once."""
        if topic == topics.STATUS:
            self.queue.put_nowait((topic, msgspec.msgpack.encode(self.road.market.bus.status[-1]), True))
        for instrument, kind, payload, _ in self.road.market.exchange.order_feed.snapshots():
            if topic == topics.by_order(instrument):
                self.queue.put_nowait((topics.market_data(instrument, kind), payload, True))

    async def publish(self, topic: str, payload: bytes) -> None:
        await asyncio.sleep(0)
        if self.road.deaf:
            self.road.deaf -= 1
        else:
            self.road.market.bus.publish_as(topics.sender_of(topic), payload)

    async def messages(self) -> AsyncIterator[tuple[str, bytes, bool]]:
        while (message := await self.queue.get()) is not None:
            yield message
        raise LinkDown("cut by the test")
