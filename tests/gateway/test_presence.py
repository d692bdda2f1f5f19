"""Cancel on disconnect: when a member's last session that asked for it is gone, its orders go, and not before."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.commands import Disconnected, SetPhase
from engine.events import Accepted, Cancelled, ConnectionLost
from engine.log import MemoryStorage
from engine.log.replay import open_log
from engine.types import CancelReason, Phase
from gateway.bus.messages import Inbound, Presence
from gateway.client import Client
from tests.gateway.market import ManualClock, Market, buy, market
from tests.gateway.process import ExchangeProcess
from tests.gateway.road import Road
from tests.mosquitto.broker import Mosquitto

MOMENT = "[limits]\ndisconnect_after_ms = 500\n"
HALF_A_SECOND = 500_000_000
GOES = 'rules = { self_trade = "none", cancel_on_disconnect = 1 }'


def says(m: Market, member: str, session: str, *, here: bool, **options: Any) -> None:
    m.bus.publish_as(member, Inbound(presence=Presence(session, here)), **options)


async def with_an_order(m: Market, member: str = "alfa") -> None:
    m.send(member, buy("a-1", 100, 5, "GOES"))
    await m.until_reports(member, 1)


def disconnected(m: Market) -> list[str]:
    return [report.event.client_order_id for report in m.reports("alfa") if isinstance(report.event, Cancelled)]


def goes(text: str = MOMENT) -> str:
    return text + f'[[instrument]]\ninstrument = "GOES"\nprofile = "CONTINUOUS"\n{GOES}\n'


async def opened(m: Market) -> None:
    await m.exchange.submit(SetPhase("GOES", Phase.CONTINUOUS))


async def moments(m: Market, nanoseconds: int) -> None:
    """Let machine time pass, and give the exchange a few turns to notice."""
    m.clock.machine_ns += nanoseconds
    for _ in range(20):
        await asyncio.sleep(0.002)


async def test_the_orders_go_once_the_last_session_has_been_gone_for_a_moment():
    async with market(text=goes()) as m:
        await opened(m)
        for session in ("s-1", "s-2"):
            says(m, "alfa", session, here=True)
        await with_an_order(m)
        says(m, "alfa", "s-1", here=False)
        await moments(m, 10 * HALF_A_SECOND)
        assert disconnected(m) == []
        says(m, "alfa", "s-2", here=False)
        await moments(m, HALF_A_SECOND - 1)
        assert disconnected(m) == []
        assert len(m.bus.unacknowledged) == 1  # the broker keeps it until the market knows
        await moments(m, 1)
        await m.until(lambda: disconnected(m) == ["a-1"])

        assert m.reports("alfa")[-1].event.reason == CancelReason.DISCONNECT  # type: ignore[union-attr]
        await moments(m, 0)
        assert not m.bus.unacknowledged
        assert m.exchange.engine.open_orders("alfa") == []


async def test_who_is_back_within_the_moment_keeps_its_orders():
    async with market(text=goes()) as m:
        await opened(m)
        says(m, "alfa", "s-1", here=True)
        await with_an_order(m)
        says(m, "alfa", "s-1", here=False)
        await moments(m, HALF_A_SECOND - 1)
        says(m, "alfa", "s-2", here=True)
        await moments(m, 10 * HALF_A_SECOND)
        assert disconnected(m) == []
        assert not m.bus.unacknowledged


async def test_a_last_will_from_before_the_restart_counts_and_a_session_that_is_back_too():
    storage = MemoryStorage()
    for back in (True, False):
        async with market(storage, goes()) as m:
            if back:
                await opened(m)
                await with_an_order(m)
            says(m, "alfa", "s-1", here=False)  # waited at the broker
            if back:
                says(m, "alfa", "s-2", here=True)
            await moments(m, 10 * HALF_A_SECOND)
            assert disconnected(m) == ([] if back else ["a-1"])


async def test_a_member_that_never_said_it_was_here_and_another_member_keep_theirs():
    async with market(text=goes()) as m:
        await opened(m)
        await with_an_order(m)
        says(m, "bravo", "s-1", here=True)
        says(m, "bravo", "s-1", here=False)
        await moments(m, 10 * HALF_A_SECOND)
        assert disconnected(m) == []


async def test_what_is_retained_or_comes_with_something_else_or_is_malformed_is_refused():
    async with market(text=goes()) as m:
        says(m, "alfa", "s-1", here=False, retained=True)
        m.bus.publish_as("alfa", Inbound(presence=Presence("s-1", False), open_orders=True))
        for presence in (["", False], ["s" * 37, True], ["s-1"], ["s-1", 1], ["s-1", True, 1], "gone", 7):
            m.bus.publish_as("alfa", msgspec.msgpack.encode({"presence": presence}))
        assert [(error.code, error.place) for error in m.errors("alfa")][:2] == [
            ("RETAINED", "$"),
            ("MALFORMED", "$.presence"),
        ]
        assert [error.code for error in m.errors("alfa")[2:]] == ["MALFORMED"] * 7
        assert not m.bus.unacknowledged
        before = m.exchange.engine.sequence
        await moments(m, 10 * HALF_A_SECOND)
        assert m.exchange.engine.sequence == before


async def test_a_last_will_is_not_throttled_away():
    async with market(text=goes(MOMENT + "member_rate = 1\nmember_burst = 1\n")) as m:
        await opened(m)
        await with_an_order(m)
        m.send("alfa", buy("a-2", 100, 5, "GOES"))
        assert [error.code for error in m.errors("alfa")] == ["THROTTLED"]
        says(m, "alfa", "s-1", here=False)
        await moments(m, HALF_A_SECOND)
        await m.until(lambda: disconnected(m) == ["a-1"])


async def test_a_last_will_said_a_thousand_times_keeps_one_message_waiting_at_the_broker():
    async with market(text=goes()) as m:
        await opened(m)
        await with_an_order(m)
        for _ in range(1000):
            says(m, "alfa", "s-1", here=False)
        assert len(m.bus.unacknowledged) == 1
        await moments(m, HALF_A_SECOND)
        await m.until(lambda: disconnected(m) == ["a-1"])
        await moments(m, 0)
        assert not m.bus.unacknowledged


async def test_sessions_that_are_here_are_throttled_and_bounded():
    async with market(text=goes(MOMENT + "member_rate = 1\nmember_burst = 150\n")) as m:
        for number in range(160):
            says(m, "alfa", f"s-{number}", here=True)
        assert [error.code for error in m.errors("alfa")] == ["NOT_PERMITTED"] * 50 + ["THROTTLED"] * 10
        refused = m.errors("alfa")[0]
        assert (refused.place, refused.text) == (
            "$.presence",
            "Expected at most 100 sessions of one member at a time, got one more",
        )
        says(m, "bravo", "s-1", here=True)
        assert m.errors("bravo") == []
        m.clock.machine_ns += 4_000_000_000
        says(m, "alfa", "s-7", here=True)  # is one of them already
        says(m, "alfa", "s-8", here=False)
        says(m, "alfa", "s-200", here=True)
        assert len(m.errors("alfa")) == 60
        assert not m.bus.unacknowledged


async def test_the_client_says_that_it_is_here_again_after_a_restart_and_that_it_leaves():
    storage, clock = MemoryStorage(), ManualClock()
    async with market(storage, goes(), clock=clock) as m:
        await opened(m)
        road = Road(m)
        client = Client("", "alfa", link=road.connect, cancel_on_disconnect=True, timeout=10)  # type: ignore[arg-type]
        async with client:
            order = await client.buy("GOES", 5, 100)
            await order.accepted()
            assert m.exchange.sessions._here == {"alfa": {client._session}}
            m.exchange.sessions._here.clear()
            road.cut()
            async with asyncio.timeout(10):
                while not m.exchange.sessions._here.get("alfa"):  # noqa: ASYNC110 (sets no event)
                    await asyncio.sleep(0.01)
        await moments(m, HALF_A_SECOND)
        await m.until(lambda: disconnected(m) == [order.client_order_id])


SETTINGS = """
[clock]
start = "2026-11-24T10:00:00+09:00"
[limits]
disconnect_after_ms = 200
[settlement]
enabled = false
[[instrument]]
instrument = "CONT"
profile = "CONTINUOUS"
rules = { self_trade = "none", cancel_on_disconnect = 1 }
"""
CLIENT = """
import asyncio, sys
from gateway.client import Client
async def main():
    async with Client(sys.argv[1], "alfa", sys.argv[2], cancel_on_disconnect=True) as client:
        await (await client.buy("CONT", 5, 100)).accepted()
        print("accepted", flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""


@pytest.mark.parametrize("kind", ["embedded", "mosquitto"])
async def test_kill_9_of_the_client_cancels_and_it_reads_so_when_it_is_back(kind: str, tmp_path: Path):
    (tmp_path / "dojima.toml").write_text(SETTINGS)
    options, environment, password = [], {}, ""
    broker = Mosquitto(tmp_path / "broker", "alfa")
    if kind == "mosquitto":
        broker.start()
        options, environment = ["--broker", broker.url], {"DOJIMA_BROKER_PASSWORD": broker.password("exchange")}
        password = broker.password("alfa")
    exchange = await ExchangeProcess.start(tmp_path, *options, **environment)
    try:
        url = broker.url if kind == "mosquitto" else exchange.url
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CLIENT, url, password, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 60) == b"accepted\n"
        process.kill()
        await process.wait()
        client = Client(url, "alfa", password, start_at=1)
        reports = client.reports()
        async with client:
            accepted, lost, cancelled = [(await asyncio.wait_for(anext(reports), 60)).event for _ in range(3)]  # type: ignore[union-attr]
        assert lost == ConnectionLost("alfa", 1, 0)
        assert isinstance(accepted, Accepted)
        assert isinstance(cancelled, Cancelled)
        assert (cancelled.client_order_id, cancelled.reason) == (accepted.client_order_id, CancelReason.DISCONNECT)
        assert await exchange.stop() == 0
    finally:
        if exchange.process.returncode is None:
            await exchange.kill()
        broker.stop()
    assert [command for *_, command in open_log(tmp_path).commands()][-1] == Disconnected("alfa")
