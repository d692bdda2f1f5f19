"""No command that a broker has taken stays without an answer, whichever side goes away in between."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import aiomqtt
import pytest

from engine.events import Accepted, Rejected
from engine.log.replay import replay
from gateway.bus.client import Address, MqttBus
from gateway.bus.messages import Fill, Hello
from gateway.bus.port import Delivery
from gateway.config import Broker
from tests.gateway.market import buy, sell
from tests.gateway.process import SETTINGS, ExchangeProcess, Member, exchange, member
from tests.mosquitto.broker import Mosquitto


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    found = tmp_path / "market"
    found.mkdir()
    (found / "dojima.toml").write_text(SETTINGS)
    return found


def answered(member: Member) -> dict[str, int]:
    """How many orders of each id were accepted, repeats aside; a refusal fails."""
    counts: dict[str, int] = {}
    for report in member.reports().values():
        assert not isinstance(report.event, Rejected)
        if isinstance(report.event, Accepted):
            counts[report.event.client_order_id] = counts.get(report.event.client_order_id, 0) + (
                not report.event.repeat
            )
    return counts


@pytest.mark.parametrize("protocol", ["3.1.1", "5"])
async def test_an_order_becomes_a_fill_on_mqtt_3_and_5(directory: Path, tmp_path: Path, protocol: str):
    (directory / "dojima.toml").write_text(f'[broker]\nprotocol = "{protocol}"\n' + SETTINGS)
    with Mosquitto(tmp_path / "broker", "alfa", "bravo") as broker:
        password = broker.password("exchange")
        async with (
            exchange(directory, "--broker", broker.url, DOJIMA_BROKER_PASSWORD=password) as running,
            member(broker.url, "alfa", broker.password("alfa")) as alfa,
            member(broker.url, "bravo", broker.password("bravo")) as bravo,
        ):
            await running.until("phase")
            assert password not in str(running.said)
            await alfa.send(buy("a-1", 100, 10))
            await alfa.until_reports(1)
            await bravo.send(sell("b-1", 100, 4))
            fill = (await bravo.until_reports(2))[2].event
            assert isinstance(fill, Fill)
            assert fill.quantity == 4
            await alfa.until_reports(2)
            assert await running.stop() == 0


async def test_3000_commands_published_while_the_exchange_is_stopped_are_each_answered(directory: Path, tmp_path: Path):
    with Mosquitto(tmp_path / "broker", "alfa") as broker:
        async with member(broker.url, "alfa", broker.password("alfa")) as alfa:
            async with exchange(directory, "--broker", broker.exchange_url) as running:
                await running.until("phase")
                assert await running.stop() == 0
            for start in range(0, 3_000, 500):
                await asyncio.gather(*(alfa.send(buy(f"a-{index}", 100, 1)) for index in range(start, start + 500)))
            assert alfa.reports() == {}
            async with exchange(directory, "--broker", broker.exchange_url):
                await alfa.until(lambda: len(answered(alfa)) == 3_000, seconds=60)
            assert answered(alfa) == {f"a-{index}": 1 for index in range(3_000)}
            assert sorted(alfa.reports()) == list(range(1, len(alfa.reports()) + 1))


async def test_a_member_that_names_the_exchange_s_session_loses_nobody_an_order(directory: Path, tmp_path: Path):
    # A broker gives a session to whoever names it, whatever the login.
    with Mosquitto(tmp_path / "broker", "alfa", "evil") as broker:
        async with member(broker.url, "alfa", broker.password("alfa")) as alfa:
            async with exchange(directory, "--broker", broker.exchange_url) as running:
                await running.until("phase")
                assert await running.stop() == 0
            await asyncio.gather(*(alfa.send(buy(f"a-{index}", 100, 1)) for index in range(20)))
            for clean in (False, True):
                async with aiomqtt.Client(
                    "127.0.0.1", broker.port, username="evil", password=broker.password("evil"),
                    identifier=Broker().session, clean_session=clean,
                ):  # fmt: skip
                    await asyncio.sleep(0.2)
            async with exchange(directory, "--broker", broker.exchange_url):
                await alfa.until(lambda: len(answered(alfa)) == 20)


async def test_after_kill_minus_9_under_load_every_command_is_answered_and_none_is_doubled(
    directory: Path, tmp_path: Path
):
    with Mosquitto(tmp_path / "broker", "alfa") as broker:
        async with member(broker.url, "alfa", broker.password("alfa")) as alfa:
            running = await ExchangeProcess.start(directory, "--broker", broker.exchange_url)
            sent = 0
            for crash_after in (50, 400, 900):
                target = sent + 500
                sending = [asyncio.create_task(alfa.send(buy(f"a-{index}", 100, 1))) for index in range(sent, target)]
                await alfa.until(lambda crash_after=crash_after: len(answered(alfa)) > crash_after)
                await running.kill()  # some are answered, some on disk, some only at the broker
                await asyncio.gather(*sending)
                sent = target
                running = await ExchangeProcess.start(directory, "--broker", broker.exchange_url)
            # A report that was published into the dying connection is asked for again, as every client does.
            await alfa.send(resend_from=1)
            await alfa.until(lambda: len(answered(alfa)) == sent, seconds=60)
            assert await running.stop() == 0
            assert answered(alfa) == {f"a-{index}": 1 for index in range(sent)}
    assert replay(directory).complete


class SilentDoor:
    """An exchange that reads and never finishes anything."""

    def __init__(self) -> None:
        self.got: list[Delivery] = []
        self.open = asyncio.Event()
        self.alarms: list[str] = []
        self._changed = asyncio.Event()

    def receive(self, delivery: Delivery) -> None:
        self.got.append(delivery)
        self._changed.set()

    def connected(self) -> None:
        self.open.set()

    def alarm(self, text: str) -> None:
        self.alarms.append(text)
        self._changed.set()

    async def until(self, count: int, alarms: int = 0) -> None:
        async with asyncio.timeout(20):
            while len(self.got) < count or len(self.alarms) < alarms:
                self._changed.clear()
                await self._changed.wait()


async def test_what_was_read_and_not_acknowledged_comes_again(tmp_path: Path):
    with Mosquitto(tmp_path / "broker", "alfa") as broker:
        address = Address.parse(broker.exchange_url)
        first = SilentDoor()
        bus = MqttBus(address, session="exchange", will=b"")
        task = asyncio.create_task(bus.run(first))
        await first.open.wait()
        async with member(broker.url, "alfa", broker.password("alfa")) as alfa:
            for index in range(50):
                await alfa.publish(b"%d" % index)
        await first.until(50)
        bus.acknowledge(first.got[:1])
        await bus.close()
        await task

        second = SilentDoor()
        bus = MqttBus(address, session="exchange", will=b"")
        task = asyncio.create_task(bus.run(second))
        await second.until(49)
        assert [delivery.payload for delivery in second.got] == [b"%d" % index for index in range(1, 50)]
        assert {delivery.participant for delivery in second.got} == {"alfa"}
        bus.acknowledge(second.got)
        await bus.close()
        await task

        third = SilentDoor()
        bus = MqttBus(address, session="exchange", will=b"")
        task = asyncio.create_task(bus.run(third))
        await third.open.wait()
        await asyncio.sleep(0.2)
        assert third.got == []
        await bus.close()
        await task


async def test_the_connection_sends_small_packets_at_once(tmp_path: Path):
    with Mosquitto(tmp_path / "broker") as broker:
        bus = MqttBus(Address.parse(broker.exchange_url), session="exchange", will=b"")
        door = SilentDoor()
        task = asyncio.create_task(bus.run(door))
        await door.open.wait()
        assert bus._connection is not None
        assert bus._connection.transport is not None
        connection = bus._connection.transport.get_extra_info("socket")
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        await bus.close()
        await task


async def test_a_fault_behind_the_door_stops_the_bus_and_leaves_the_message_with_the_broker(tmp_path: Path):
    class BrokenDoor(SilentDoor):
        def receive(self, delivery: Delivery) -> None:
            raise ZeroDivisionError("a fault in the gateway")

    with Mosquitto(tmp_path / "broker", "alfa") as broker:
        door = BrokenDoor()
        bus = MqttBus(Address.parse(broker.exchange_url), session="exchange", will=b"")
        task = asyncio.create_task(bus.run(door))
        await door.open.wait()
        async with member(broker.url, "alfa", broker.password("alfa")) as alfa:
            await alfa.publish(b"x")
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(task, 20)
        whole = SilentDoor()
        bus = MqttBus(Address.parse(broker.exchange_url), session="exchange", will=b"")
        task = asyncio.create_task(bus.run(whole))
        await whole.until(1)
        await bus.close()
        await task


async def test_the_exchange_finds_a_broker_that_was_restarted(directory: Path, tmp_path: Path):
    with Mosquitto(tmp_path / "broker", "alfa") as broker:
        async with exchange(directory, "--broker", broker.exchange_url) as running:
            await running.until("phase")
            async with member(broker.url, "alfa", broker.password("alfa"), clean_session=False) as alfa:
                await alfa.send(buy("a-1", 100, 10))
                await alfa.until_reports(1)
            broker.stop()
            broker.start()
            await running.until("connected")
            async with member(broker.url, "alfa", broker.password("alfa"), clean_session=False) as alfa:
                await alfa.send(buy("a-1", 100, 10), buy("a-2", 100, 10))
                # A broker that stopped before it heard that the first order was done with brings it again.
                await alfa.until(lambda: {"a-1", "a-2"} <= answered(alfa).keys())
                after_the_first = [report.event for number, report in alfa.reports().items() if number > 1]
                assert all(isinstance(event, Accepted) for event in after_the_first)
                assert answered(alfa)["a-2"] == 1
                assert all(event.repeat for event in after_the_first if event.client_order_id == "a-1")
                repeats = sum(event.repeat for event in after_the_first)
                assert all(1 <= hello.next_report <= 2 + repeats for hello in alfa.got if isinstance(hello, Hello))
            assert await running.stop() == 0


async def test_a_filling_broker_raises_an_alarm_once(tmp_path: Path):
    with Mosquitto(tmp_path / "broker", "alfa", extra="\nsys_interval 1\n") as broker:
        door = SilentDoor()
        bus = MqttBus(Address.parse(broker.exchange_url), session="exchange", will=b"", alarm_bytes=100_000)
        task = asyncio.create_task(bus.run(door))
        await door.open.wait()
        async with member(broker.url, "alfa", broker.password("alfa")) as alfa:
            for _ in range(5):
                await alfa.publish(bytes(50_000))
            await door.until(5, alarms=1)
        assert "more than 100000" in door.alarms[0]
        assert len(door.alarms) == 1
        await bus.close()
        await task
