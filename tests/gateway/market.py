"""A market in one process for tests: an ``Exchange`` on a bus in memory, with a clock that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from engine.commands import MemberCommand, NewOrder, SetPhase, StartDay
from engine.log import MemoryStorage, Storage, encode_commands
from engine.types import Phase, Side
from gateway import config as settings
from gateway.bus.memory import MemoryBus
from gateway.bus.messages import Inbound, MessageError, OpenOrders, Report, Reports
from gateway.exchange import Exchange, open_log
from gateway.holidays import load_calendar

DAY = 20261124
SETTINGS = """
[schedule]
enabled = false
[[instrument]]
instrument = "CALL"
[[instrument]]
instrument = "CONT"
profile = "CONTINUOUS"
rules = { self_trade = "none" }
"""


class ManualClock:
    """Market time stands until the test moves it, machine time too. Sleeping takes a moment of real time only."""

    def __init__(self, now_ns: int = 1_795_478_400_000_000_000) -> None:
        self.time_ns = now_ns
        self.machine_ns = 0

    def now_ns(self) -> int:
        return self.time_ns

    def monotonic_ns(self) -> int:
        return self.machine_ns

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.001))

    def seconds_until(self, time_ns: int) -> float:
        return max(0, time_ns - self.time_ns) / 1e9

    def resume(self, time_ns: int) -> None:
        pass

    def skip_to(self, time_ns: int) -> bool:
        return False


class Market:
    """What a test sees of a running exchange."""

    def __init__(self, exchange: Exchange, bus: MemoryBus, clock: ManualClock, heard: list[tuple[str, Any]]) -> None:
        self.exchange = exchange
        self.bus = bus
        self.clock = clock
        self.heard = heard  #: what the exchange told its operator: (event, fields)

    def send(self, member: str, *commands: MemberCommand, **fields: Any) -> None:
        """Publish one message of a member."""
        raw = msgspec.Raw(encode_commands(list(commands)))
        self.bus.publish_as(member, Inbound(commands=raw, **fields))

    def reports(self, member: str) -> list[Report]:
        """All reports a member got, in the order of arrival."""
        found = []
        for message in self.bus.out.get(member, []):
            if isinstance(message, Reports):
                found.extend(message.reports)
        return found

    def numbers(self, member: str) -> list[int]:
        found: list[int] = []
        for message in self.bus.out.get(member, []):
            if isinstance(message, Reports):
                found.extend(range(message.first, message.first + len(message.reports)))
        return found

    def errors(self, member: str) -> list[MessageError]:
        return [message for message in self.bus.out.get(member, []) if isinstance(message, MessageError)]

    def answers(self, member: str, kind: type) -> list[Any]:
        return [message for message in self.bus.out.get(member, []) if isinstance(message, kind)]

    async def until(self, condition: Callable[[], bool]) -> None:
        await asyncio.wait_for(self.bus.until(condition), 20)

    async def until_reports(self, member: str, count: int) -> list[Report]:
        await self.until(lambda: len(self.reports(member)) >= count)
        return self.reports(member)

    async def open_orders(self, member: str) -> OpenOrders:
        count = len(self.answers(member, OpenOrders))
        self.send(member, open_orders=True)
        await self.until(lambda: len(self.answers(member, OpenOrders)) > count)
        found = self.answers(member, OpenOrders)[-1]
        assert isinstance(found, OpenOrders)
        return found

    async def open_books(self) -> None:
        """Start the day; CALL collects, CONT trades."""
        await self.exchange.submit(StartDay(DAY), SetPhase("CALL", Phase.PRE_OPEN), SetPhase("CONT", Phase.CONTINUOUS))


@asynccontextmanager
async def market(
    storage: Storage | None = None, text: str = "", *, open_books: bool = True, clock: ManualClock | None = None
) -> AsyncIterator[Market]:
    """A running exchange. ``text`` is TOML put before the usual settings; the same storage again is a restart."""
    config = settings.parse(text + SETTINGS)
    clock = clock or ManualClock()
    log = open_log(config, storage if storage is not None else MemoryStorage(), clock)
    heard: list[tuple[str, Any]] = []
    exchange = Exchange(
        config,
        log=log,
        clock=clock,
        calendar=load_calendar(),
        reference=[*settings.tables(config), *settings.listings(config, Path())],
        say=lambda event, **fields: heard.append((event, fields)),
    )
    try:
        exchange.replay()
        bus = MemoryBus()
        task = asyncio.create_task(exchange.run(bus))
        try:
            ready = asyncio.create_task(exchange.ready.wait())
            await asyncio.wait((ready, task), return_when=asyncio.FIRST_COMPLETED)
            ready.cancel()
            found = Market(exchange, bus, clock, heard)
            if open_books and not exchange.engine.date and not task.done():
                await found.open_books()
            yield found
        finally:
            exchange.stop()
            await asyncio.wait_for(task, 20)
    finally:
        log.close()


def buy(client_order_id: str, price: int, quantity: int, instrument: str = "CONT", **fields: Any) -> NewOrder:
    return NewOrder(client_order_id, instrument, Side.BUY, quantity, price, **fields)


def sell(client_order_id: str, price: int, quantity: int, instrument: str = "CONT", **fields: Any) -> NewOrder:
    return NewOrder(client_order_id, instrument, Side.SELL, quantity, price, **fields)
