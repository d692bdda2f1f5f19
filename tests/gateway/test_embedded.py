"""The exchange as a process on the embedded broker: started, killed, started again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import aiomqtt
import pytest

from engine.events import Accepted
from engine.log.replay import replay
from gateway.bus import topics
from gateway.bus.client import Address
from gateway.bus.embedded import BrokerFailed, EmbeddedBroker
from gateway.bus.messages import Fill, Hello, MessageError
from gateway.service import broker_url
from gateway.settlement import Settlement, State
from tests.conftest import processes_with
from tests.gateway.market import buy, sell
from tests.gateway.process import SETTINGS, ExchangeProcess, exchange, member


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "dojima.toml").write_text(SETTINGS)
    return tmp_path


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return (
        Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z" if Path("/proc").exists() else False
    )


def wait_gone(pid: int) -> None:
    until = time.monotonic() + 10
    while not gone(pid):
        assert time.monotonic() < until, f"process {pid} outlived its parent"
        time.sleep(0.02)


# --- the broker ------------------------------------------------------------------------------------------------------


async def test_the_broker_lets_a_login_use_its_own_topics_and_nobody_elses():
    async with (
        await EmbeddedBroker.start() as broker,
        member(broker.url, "alfa") as alfa,
        member(broker.exchange_url, "bravo") as bravo,
    ):
        refused = [
            await alfa.client.subscribe(topic, qos=1) for topic in (topics.outbound("bravo"), topics.ALL_IN, "#")
        ]
        assert all(code.value >= 0x80 for codes in refused for code in codes)  # type: ignore[union-attr]
        await alfa.client.publish(topics.outbound("bravo"), b"forged", qos=1)
        await alfa.client.publish(topics.STATUS, b"forged", qos=1)
        assert bravo.got == []


@pytest.mark.parametrize(("user", "password"), [(None, None), ("exchange", None), ("exchange", "guess")])
async def test_nobody_logs_in_without_a_name_or_as_the_exchange(user: str | None, password: str | None):
    async with await EmbeddedBroker.start() as broker:
        with pytest.raises(aiomqtt.MqttError):
            async with aiomqtt.Client("127.0.0.1", broker.port, username=user, password=password):
                pass


@pytest.mark.parametrize(
    "user", ["op/olga", "copy/risk/alfa", "copy/risk", "#", "+", "alfa/#", "Alfa", "alfa\n", "a" * 17]
)
async def test_a_login_is_a_member_s_name_and_no_address_of_somebody_else(user: str):
    async with await EmbeddedBroker.start(operators={"olga": "secret"}) as broker:
        with pytest.raises(aiomqtt.MqttError):
            async with aiomqtt.Client("127.0.0.1", broker.port, username=user):
                pass


async def test_a_last_will_goes_to_a_member_s_own_topic_or_its_login_is_refused():
    async with await EmbeddedBroker.start() as broker:
        for topic in (topics.outbound("bravo"), topics.inbound("bravo"), topics.STATUS):
            with pytest.raises(aiomqtt.MqttError):
                async with aiomqtt.Client(
                    "127.0.0.1", broker.port, username="alfa", will=aiomqtt.Will(topic, b"forged")
                ):
                    pass
        own = aiomqtt.Will(topics.inbound("alfa"), b"own")
        async with aiomqtt.Client("127.0.0.1", broker.port, username="alfa", will=own):
            pass


async def test_an_operator_proves_who_it_is_and_no_member_reaches_its_topics():
    async with await EmbeddedBroker.start(operators={"olga": "her password"}) as broker:
        for password in (None, "", "guess"):
            with pytest.raises(aiomqtt.MqttError):
                async with aiomqtt.Client("127.0.0.1", broker.port, username="olga", password=password):
                    pass
        login = Address.parse(broker.exchange_url)
        async with (
            aiomqtt.Client("127.0.0.1", broker.port, username=login.user, password=login.password) as exchange,
            member(broker.url, "alfa") as alfa,
            aiomqtt.Client("127.0.0.1", broker.port, username="olga", password="her password") as olga,
        ):
            own = [topics.inbound("op/olga"), topics.outbound("op/olga")]
            for topic in (*own, topics.inbound("op/alfa"), topics.inbound("copy/risk/alfa")):
                codes = await alfa.client.subscribe(topic, qos=1)
                assert codes[0].value >= 0x80  # type: ignore[union-attr]
                await alfa.client.publish(topic, b"forged", qos=1)
            for topic in (topics.outbound("alfa"), topics.inbound("op/omar"), topics.ALL_OPERATORS_IN, own[0]):
                codes = await olga.subscribe(topic, qos=1)
                assert codes[0].value >= 0x80  # type: ignore[union-attr]
            await olga.publish(topics.inbound("olga"), b"as a member", qos=1)
            await exchange.subscribe(f"{topics.ROOT}/#", qos=1)
            heard: list[tuple[str, object]] = []

            async def listen() -> None:
                async for message in exchange.messages:
                    heard.append((message.topic.value, message.payload))
                    if message.payload == b"end":
                        return

            await alfa.client.publish(own[0], b"forged", qos=1)
            await olga.publish(topics.inbound("alfa"), b"forged", qos=1)
            await olga.publish(own[0], b"end", qos=1)
            await asyncio.wait_for(listen(), 20)
            assert heard == [(own[0], b"end")]


async def test_a_reader_of_a_copy_has_topics_of_its_own():
    async with await EmbeddedBroker.start() as broker, member(broker.url, "risk") as risk:
        for topic in (topics.outbound("copy/risk/alfa"), topics.outbound("copy/risk/+")):
            assert (await risk.client.subscribe(topic, qos=1))[0].value < 0x80  # type: ignore[union-attr]
        for topic in (
            "copy/other/alfa/out",
            "copy/risk/alfa/in",
            "copy/risk/alfa/b/out",
            "copy/risk//out",
            "copy/+/+/out",
        ):
            codes = await risk.client.subscribe(f"{topics.ROOT}/{topic}", qos=1)
            assert codes[0].value >= 0x80, topic  # type: ignore[union-attr]


async def test_the_broker_ends_when_told():
    broker = await EmbeddedBroker.start()
    broker.stop()
    broker.stop()
    assert broker.process.returncode == 0


async def test_a_port_that_is_taken_is_an_error_that_says_so():
    async with await EmbeddedBroker.start() as broker:
        with pytest.raises(BrokerFailed, match=str(broker.port)):
            await EmbeddedBroker.start(broker.port)


def test_the_broker_ends_with_a_parent_that_is_killed():
    code = (
        "import time; from gateway.bus.embedded import EmbeddedBroker\n"
        "b = EmbeddedBroker.start_blocking(); print(b.process.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert not gone(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_gone(child)


# --- the exchange ----------------------------------------------------------------------------------------------------


async def test_from_an_order_on_the_bus_to_fills_on_both_sides(directory: Path):
    async with exchange(directory) as running:
        await running.until("phase")
        async with member(running.url, "alfa") as alfa, member(running.url, "bravo") as bravo:
            await alfa.send(buy("a-1", 100, 10))
            await alfa.until_reports(1)
            await bravo.send(sell("b-1", 100, 4))
            fill = (await alfa.until_reports(2))[2].event
            assert isinstance(fill, Fill)
            assert (fill.quantity, fill.open_quantity, fill.counterparty) == (4, 6, "bravo")
            await bravo.until_reports(2)
            await alfa.publish(b"\x81\xa8commands\x91\x95\xa3new\xa1x\xa4CONT\x00\xa1y")
            await alfa.until(lambda: any(isinstance(m, MessageError) for m in alfa.got))
            (error,) = [m for m in alfa.got if isinstance(m, MessageError)]
            assert (error.code, error.place) == ("MALFORMED", "$.commands[0].quantity")
        assert json.loads((directory / "broker.json").read_text())["pid"] == running.process.pid
        assert broker_url(directory) == running.url
        assert await running.stop() == 0
    assert replay(directory).complete


async def test_after_kill_minus_9_reports_go_on_at_the_next_number_and_a_repeat_does_no_harm(directory: Path):
    async with exchange(directory) as running:
        await running.until("phase")
        async with member(running.url, "alfa") as alfa:
            await alfa.send(buy("a-1", 100, 10), buy("a-2", 99, 10))
            before = await alfa.until_reports(2)
        await running.kill()
    async with exchange(directory) as again:
        assert again.url == running.url  # clients find it where it was
        async with member(again.url, "alfa") as alfa:
            await alfa.send(buy("a-1", 100, 10), buy("a-3", 98, 10), resend_from=1)
            reports = await alfa.until_reports(4)
            assert {number: reports[number] for number in before} == before
            third, fourth = reports[3].event, reports[4].event
            assert isinstance(third, Accepted)
            assert isinstance(fourth, Accepted)
            assert (third.repeat, fourth.repeat) == (True, False)
        assert await again.stop() == 0
    assert replay(directory).complete


async def test_everything_ends_with_an_exchange_that_is_killed(directory: Path):
    async with exchange(directory) as running:
        assert running.process.pid
        mine = [
            pid
            for pid, command in processes_with(os.environ["DOJIMA_TEST_SESSION"]).items()
            if "amqtt_broker" in command
        ]
        assert len(mine) == 1
        await running.kill()
    await asyncio.to_thread(wait_gone, mine[0])


async def test_a_second_exchange_in_the_same_directory_is_refused(directory: Path):
    async with exchange(directory) as running:
        second = await ExchangeProcess.start(directory, wait="")
        assert await second.process.wait() == 3
        assert running.process.returncode is None


async def test_a_file_that_is_no_database_is_a_fault_that_names_it(tmp_path: Path):
    (tmp_path / "outbox.sqlite").write_text("junk")
    running = await ExchangeProcess.start(tmp_path, wait="")
    assert await asyncio.wait_for(running.process.wait(), 30) == 4


async def test_wrong_settings_are_an_exit_status_of_their_own(directory: Path):
    (directory / "dojima.toml").write_text("[limits]\nmember_rate = 0\n")
    running = await ExchangeProcess.start(directory, wait="")
    assert await running.process.wait() == 2


async def test_old_reports_are_read_by_a_process_of_its_own(directory: Path):
    (directory / "dojima.toml").write_text("[reports]\nwindow = 2\n" + SETTINGS)
    async with exchange(directory) as running:
        await running.until("phase")
        async with member(running.url, "alfa") as alfa:
            await alfa.send(*(buy(f"a-{index}", 100, 1) for index in range(10)))
            first = await alfa.until_reports(10)
            alfa.got.clear()
            await alfa.send(resend_from=3)
            await alfa.until(lambda: any(isinstance(m, Hello) for m in alfa.got))
            assert alfa.reports() == {number: report for number, report in first.items() if number >= 3}


async def test_a_market_lives_its_days_settles_and_ends_by_itself_when_told_to(directory: Path):
    text = """
    [clock]
    factor = {factor}
    start = "2026-11-24T09:00:00+09:00"
    skip_idle = true
    [schedule]
    days = 3
    open_days = 1
    [settlement]
    openings = "openings.csv"
    [[instrument]]
    instrument = "KDX-1"
    """
    (directory / "dojima.toml").write_text(text.format(factor=1))
    (directory / "openings.csv").write_text("account,asset,quantity\nalfa,JPY,1000000\nbravo,KDX-1,10\n")
    async with exchange(directory) as running:  # it is 9 o'clock, and stays so for a while
        await running.until("phase")
        async with member(running.url, "alfa") as alfa, member(running.url, "bravo") as bravo:
            await alfa.send(buy("a-1", 100_000, 5, "KDX-1"))
            await bravo.send(sell("b-1", 100_000, 5, "KDX-1"))
            await alfa.until_reports(1)
            await bravo.until_reports(1)
        await running.kill()
    # The clock runs while the broker starts. At this pace the next day still begins on its date if that takes 20 s; at
    # 100,000 one second was enough to leave a day out.
    (directory / "dojima.toml").write_text(text.format(factor=5_000))
    async with exchange(directory, "--until-done") as running:
        assert (await running.until("stopped"))["sequence"]
        assert await asyncio.wait_for(running.process.wait(), 60) == 0
    auctions = [line for line in running.said if line["event"] == "auction" and line["price"]]
    assert [(line["price"], line["volume"]) for line in auctions] == [(100_000, 5)]
    assert replay(directory).engine.date == 20261126
    settlement = await Settlement.open(directory, market="DOJIMA", clock=time.time_ns)
    try:
        assert (await settlement.summary()).count(State.SETTLED) == 1
        assert (await settlement.reconcile()).agrees
    finally:
        await settlement.close()


async def test_an_exchange_outlives_whoever_read_its_output(directory: Path):
    async with exchange(directory) as running:
        await running.until("phase")
        running.process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]
        async with member(running.url, "alfa") as alfa:
            await alfa.publish(b"\xc1")
            await alfa.send(buy("a-1", 100, 10))
            await alfa.until_reports(1)
        assert await running.stop() == 0


async def test_ctrl_c_ends_it_cleanly_and_says_down(directory: Path):
    async with await EmbeddedBroker.start() as broker:
        async with (
            exchange(directory, "--broker", broker.exchange_url) as running,
            aiomqtt.Client("127.0.0.1", broker.port, username="alfa") as client,
        ):
            await client.subscribe(topics.STATUS, qos=1)
            states = []

            async def read() -> None:
                async for message in client.messages:
                    states.append(b"down" in bytes(message.payload))
                    if states[-1]:
                        return

            running.process.send_signal(signal.SIGINT)
            await asyncio.wait_for(read(), 20)
            assert await running.process.wait() == 0
        assert states[-1]


async def test_an_exchange_that_dies_is_announced_by_the_broker(directory: Path):
    async with (
        await EmbeddedBroker.start() as broker,
        exchange(directory, "--broker", broker.exchange_url) as running,
        aiomqtt.Client("127.0.0.1", broker.port, username="alfa") as client,
    ):
        await client.subscribe(topics.STATUS, qos=1)
        await running.kill()
        async with asyncio.timeout(20):
            async for message in client.messages:
                if b"down" in bytes(message.payload):
                    break
