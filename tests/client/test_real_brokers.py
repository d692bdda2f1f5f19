"""The client, and programs that know nothing of it, against a running exchange on real brokers."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped]
import pytest

from gateway.client import CannotConnect, Client, NumberedReport, OrderState, Side
from tests.client.test_messages_page import EXAMPLES, PAGE
from tests.gateway.process import ExchangeProcess
from tests.require import require

SETTINGS = """
[clock]
start = "2026-11-24T10:00:00+09:00"
[settlement]
enabled = false
[instruments]
profile = "CONTINUOUS"
rules = { self_trade = "none" }
[[instrument]]
instrument = "KDX-2107"
"""


class Road:
    """A broker and an exchange on it. ``url`` is for members."""

    def __init__(self, directory: Path, url: str) -> None:
        self.directory = directory
        self.given = url
        self.exchange: ExchangeProcess | None = None

    async def start(self) -> None:
        options = ["--broker", self.given.replace("//", "//exchange@")] if self.given else []
        self.exchange = await ExchangeProcess.start(self.directory, *options)

    @property
    def url(self) -> str:
        assert self.exchange is not None
        return self.given or self.exchange.url


@pytest.fixture(params=["embedded", "mosquitto"])
async def road(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Road]:
    (tmp_path / "dojima.toml").write_text(SETTINGS)
    broker, url = None, ""
    if request.param == "mosquitto":
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        (tmp_path / "mosquitto.conf").write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
        broker = await asyncio.create_subprocess_exec(
            require("mosquitto"), "-c", str(tmp_path / "mosquitto.conf"), stderr=asyncio.subprocess.DEVNULL
        )
        url = f"mqtt://127.0.0.1:{port}"
    found = Road(tmp_path, url)
    try:
        if broker is not None:
            await until_listening(port)
        await found.start()
        yield found
    finally:
        if found.exchange is not None and found.exchange.process.returncode is None:
            await found.exchange.kill()
        if broker is not None:
            broker.kill()
            await broker.wait()


async def until_listening(port: int) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return


async def test_two_members_trade_and_see_it_in_the_public_book(road: Road) -> None:
    protocol = 5 if road.given else 4  # the embedded broker speaks 3.1.1 only
    async with (
        asyncio.timeout(60),
        Client(road.url, "alpha", protocol=protocol) as alpha,
        Client(road.url, "beta") as beta,
        Client(road.url, "viewer", market_data_only=True) as viewer,
    ):
        book = await viewer.book("KDX-2107")
        bought = await alpha.buy("KDX-2107", 10, 100_000)
        await bought.accepted()
        sold = await beta.sell("KDX-2107", 4, 99_000)
        fills = [fill async for fill in sold.fills()]
        while bought.filled_quantity < 4:  # noqa: ASYNC110  the other member's report comes by its own road
            await asyncio.sleep(0.01)
        (found,) = await alpha.open_orders()
        cancelled = await found.cancel()
        async for _ in book.changes():
            if book.volume == 4 and not book.bids:
                break

    assert [(fill.price, fill.quantity, fill.counterparty) for fill in fills] == [(100_000, 4, "alpha")]
    assert (bought.state, bought.filled_quantity, cancelled.quantity) == (OrderState.CANCELLED, 4, 6)
    assert (book.last_price, book.phase) == (100_000, "Continuous")


async def test_orders_sent_around_a_killed_exchange_are_each_answered_and_count_once(
    road: Road, tmp_path: Path
) -> None:
    """On the embedded broker, which forgets everything, broker and exchange are killed together."""
    async with asyncio.timeout(120), Client(road.url, "alpha", position=tmp_path / "alpha", resend_after=0.5) as client:
        reports = client.reports()
        orders = []
        for batch in range(20):
            orders += await client.submit(*(client.new_order("KDX-2107", Side.BUY, 1, 1_000 + i) for i in range(50)))
            if batch == 10:
                assert road.exchange is not None
                await road.exchange.kill()
                again = asyncio.create_task(road.start())
            await asyncio.sleep(0.01)
        await again
        for order in orders:
            await order.accepted()
        found = await client.open_orders()
        told = [await anext(reports) for _ in range(client.next_report - 1)]

    assert {order.client_order_id for order in found} == {order.client_order_id for order in orders}
    assert len(found) == len({order.order_id for order in found}) == 1_000
    assert [report.number for report in told if isinstance(report, NumberedReport)] == list(range(1, len(told) + 1))


@pytest.mark.parametrize("road", ["embedded"], indirect=True)
async def test_3000_commands_sent_while_the_exchange_is_stopped_are_each_answered_on_the_embedded_broker(
    road: Road,
) -> None:
    """This broker keeps nothing and ends with the exchange: what keeps the promise is that the client sends again."""
    async with asyncio.timeout(120), Client(road.url, "alpha", resend_after=0.5) as client:
        assert road.exchange is not None
        await road.exchange.kill()
        orders = await client.submit(*(client.new_order("KDX-2107", Side.BUY, 1, 1_000 + i) for i in range(3_000)))
        await road.start()
        for order in orders:
            await order.accepted()
        found = await client.open_orders()

    assert len(found) == len({order.order_id for order in found}) == 3_000
    assert {order.client_order_id for order in found} == {order.client_order_id for order in orders}


async def test_mosquittos_own_tools_trade_with_the_bytes_of_the_page(road: Road) -> None:
    publish = require("mosquitto_pub", part_of="mosquitto")
    subscribe = require("mosquitto_sub", part_of="mosquitto")
    port = road.url.rpartition(":")[2]

    def address(member: str) -> list[str]:
        return ["-V", "311", "-q", "1", "-h", "127.0.0.1", "-p", port, "-u", member]

    async def listen(member: str, *until: str) -> str:
        """Under a session of its own, so that the broker keeps what comes between two calls."""
        topic = ["-t", f"dojima/v1/out/{member}", "-i", f"{member}-out", "-c"]
        process = await asyncio.create_subprocess_exec(
            subscribe, *address(member), *topic, "-F", "%x", *until, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
        assert process.returncode == 0
        return out.decode()

    async def say(member: str, payload: bytes) -> None:
        process = await asyncio.create_subprocess_exec(
            publish, *address(member), "-t", f"dojima/v1/in/{member}", "-s", stdin=asyncio.subprocess.PIPE
        )
        await process.communicate(payload)
        assert process.returncode == 0

    async def heard(member: str, count: int) -> list[dict[str, Any]]:
        text = await listen(member, "-C", str(count))
        return [msgpack.unpackb(bytes.fromhex(line)) for line in text.split()]

    async with asyncio.timeout(90):
        for member in ("alpha", "beta"):
            await listen(member, "-E")  # until the broker has acknowledged the subscription
        await say("alpha", EXAMPLES[0][2])
        (accepted,) = await heard("alpha", 1)
        await say("beta", msgpack.packb({"commands": [["new", "b-1", "KDX-2107", 1, 4, 0, 1]]}))
        (filled,) = await heard("alpha", 1)
        (told_beta,) = await heard("beta", 1)

    assert accepted["reports"][0][2][:7] == ["accepted", "alpha", "a-1", 1, "KDX-2107", 0, 10]
    assert filled["reports"][0][2][:12] == ["fill", "alpha", "a-1", 1, "KDX-2107", 0, 100_000, 4, 6, 1, False, "beta"]
    assert [report[2][0] for report in told_beta["reports"]] == ["accepted", "fill"]


@pytest.mark.parametrize("road", ["embedded"], indirect=True)
async def test_the_commands_of_the_shell_trade(road: Road) -> None:
    """``dojima client`` and ``dojima book`` as a person or a script uses them."""

    async def dojima(*words: str, status: int = 0) -> list[dict[str, Any]]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gateway.cli.main", *words, "--json", "--timeout", "90",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "DOJIMA_URL": road.url, "DOJIMA_PARTICIPANT": "alpha"},
        )  # fmt: skip
        out, err = await process.communicate()
        assert process.returncode == status, err.decode()
        return [json.loads(line) for line in out.decode().splitlines()]

    async with asyncio.timeout(240):  # nine interpreters start here, one after the other, on a machine that may be busy
        (accepted,) = await dojima("client", "submit", "buy", "KDX-2107", "10", "100000", "--id", "shell-1")
        assert (accepted["event"], accepted["client_order_id"], accepted["side"]) == ("accepted", "shell-1", "buy")
        (amended,) = await dojima("client", "amend", "shell-1", "--quantity", "8")
        assert (amended["event"], amended["kept_priority"]) == ("amended", True)
        (order,) = await dojima("client", "orders")
        assert (order["client_order_id"], order["open_quantity"]) == ("shell-1", 8)
        # The snapshot that is kept may be a quarter of a second old, longer where the exchange gets no processor: what
        # it shows is the book of its number, and the next one shows the amended order.
        while (shown := (await dojima("book", "KDX-2107", "--once", "--dir", str(road.directory)))[0])["bids"] == [
            [100_000, 10]
        ]:
            pass
        assert (shown["bids"], shown["whole"]) == ([[100_000, 8]], True)
        (cancelled,) = await dojima("client", "cancel", "shell-1")
        assert cancelled["event"] == "cancelled"
        (refused,) = await dojima(
            "client", "submit", "buy", "KDX-2107", "9", "99000", "--type", "stop-limit", "--stop-price", "99000",
            "--validity", "gtd", "--expires", "20261130", "--display", "3", "--minimum", "2", "--post-only",
            "--self-trade", "cancel-both", status=1,
        )  # fmt: skip
        assert (refused["event"], refused["reason"]) == ("rejected", "not_offered"), refused
        (refused,) = await dojima("client", "cancel", "shell-1", status=1)
        assert (refused["event"], refused["reason"]) == ("rejected", "order_gone")
        reports = await dojima("client", "reports")
        assert [report["event"] for report in reports] == ["accepted", "amended", "cancelled", "rejected", "rejected"]
        assert [report["number"] for report in reports] == [1, 2, 3, 4, 5]


async def test_a_port_where_nobody_listens_is_an_answer_with_advice() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(CannotConnect, match=f"No connection to the broker at mqtt://127.0.0.1:{port}.*Is a broker"):
        async with Client(f"mqtt://127.0.0.1:{port}", "alpha", timeout=0.3):
            pass


def test_the_page_shows_the_tools_that_are_tested() -> None:
    assert "mosquitto_pub -V 311 -q 1 -u alpha" in PAGE
    assert "mosquitto_sub -V 311 -q 1 -u alpha" in PAGE
