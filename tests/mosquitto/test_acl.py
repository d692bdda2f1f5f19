"""A member writes only its own ``in`` topic and reads only its own ``out`` topic, whatever it tries."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiomqtt
import pytest

from gateway.bus import topics
from tests.mosquitto.broker import Mosquitto


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    options = ("--operator", "olga", "omar", "--copy", "risk")
    with Mosquitto(tmp_path_factory.mktemp("acl"), "alfa", "bravo", options=options) as running:
        yield running


@asynccontextmanager
async def login(broker: Mosquitto, name: str, *subscriptions: str) -> AsyncIterator[aiomqtt.Client]:
    async with aiomqtt.Client("127.0.0.1", broker.port, username=name, password=broker.password(name)) as client:
        for topic in subscriptions:
            await client.subscribe(topic, qos=1)
        yield client


async def heard(client: aiomqtt.Client, until: bytes) -> list[tuple[str, bytes]]:
    """Everything up to the message ``until``, which is published last of all."""
    found = []
    async with asyncio.timeout(20):
        async for message in client.messages:
            assert isinstance(message.payload, bytes)
            if message.payload == until:
                return found
            found.append((message.topic.value, message.payload))
    return found


async def test_a_member_writes_its_own_in_topic_and_no_other(broker: Mosquitto):
    async with login(broker, "exchange", topics.ALL_IN, f"{topics.ROOT}/#") as exchange:
        for topic in (
            topics.inbound("bravo"),
            topics.outbound("alfa"),
            topics.outbound("bravo"),
            topics.STATUS,
            topics.market_data("KDX-1", "snapshot"),
            f"{topics.ROOT}/in/alfa/x",
            f"{topics.ROOT}/in",
        ):
            for qos, retain in ((0, False), (1, False), (1, True)):
                async with login(broker, "alfa") as alfa:
                    with contextlib.suppress(aiomqtt.MqttError):  # mosquitto may end the connection over it
                        await alfa.publish(topic, b"forged", qos=qos, retain=retain)
        async with login(broker, "alfa") as alfa:
            await alfa.publish(topics.inbound("alfa"), b"end", qos=1)
        assert await heard(exchange, b"end") == []


async def test_a_member_reads_its_own_out_topic_and_no_others_whatever_it_subscribes_to(broker: Mosquitto):
    wanted = (topics.outbound("alfa"), topics.outbound("bravo"), f"{topics.ROOT}/out/+", topics.ALL_IN, "#", "$SYS/#")
    async with login(broker, "alfa", *wanted) as alfa, login(broker, "exchange") as exchange:
        await exchange.publish(topics.outbound("bravo"), b"secret", qos=1, retain=True)
        await exchange.publish(topics.inbound("bravo"), b"secret", qos=1)
        await exchange.publish(topics.outbound("alfa"), b"mine", qos=1)
        await exchange.publish(topics.outbound("alfa"), b"end", qos=1)
        found = await heard(alfa, b"end")
        assert (topics.outbound("alfa"), b"mine") in found
        assert {topic for topic, _ in found} == {topics.outbound("alfa")}
        await exchange.publish(topics.outbound("bravo"), b"", qos=1, retain=True)


async def test_every_member_reads_market_data_and_status(broker: Mosquitto):
    async with login(broker, "bravo", topics.ALL_MARKET_DATA, topics.STATUS) as bravo:
        async with login(broker, "exchange") as exchange:
            await exchange.publish(topics.market_data("KDX-1", "depth"), b"depth", qos=1)
            await exchange.publish(topics.STATUS, b"up", qos=1)
            await exchange.publish(topics.market_data("KDX-1", "depth"), b"end", qos=1)
        assert [payload for _, payload in await heard(bravo, b"end")] == [b"depth", b"up"]


@pytest.mark.parametrize(("name", "password"), [("alfa", "guess"), (None, None), ("exchange", ""), ("stranger", "x")])
async def test_nobody_comes_in_without_the_password(broker: Mosquitto, name: str | None, password: str | None):
    with pytest.raises(aiomqtt.MqttError):
        async with aiomqtt.Client("127.0.0.1", broker.port, username=name, password=password):
            pass


def test_the_passwords_are_made_at_deploy_time_and_only_their_owner_can_read_them(broker: Mosquitto, tmp_path: Path):
    other = Mosquitto(tmp_path / "other", "alfa")
    assert other.password("alfa") != broker.password("alfa")
    assert broker.password("alfa") not in (broker.directory / "passwd").read_text()
    for path in (broker.directory / "secrets" / "alfa", broker.directory / "passwd", broker.directory / "acl"):
        assert path.stat().st_mode & 0o077 == 0


OPERATOR_TOPICS = (topics.inbound("op/olga"), topics.outbound("op/olga"), f"{topics.ROOT}/op/alfa/in")
COPY_TOPICS = (topics.inbound("copy/risk/alfa"), topics.outbound("copy/risk/alfa"), f"{topics.ROOT}/copy/alfa/alfa/in")


async def test_a_member_neither_writes_nor_reads_where_operators_and_readers_of_copies_do(broker: Mosquitto):
    async with login(broker, "exchange", f"{topics.ROOT}/#") as exchange:
        for topic in OPERATOR_TOPICS + COPY_TOPICS:
            for qos, retain in ((0, False), (1, False), (1, True)):
                async with login(broker, "alfa") as alfa:
                    with contextlib.suppress(aiomqtt.MqttError):
                        await alfa.publish(topic, b"forged", qos=qos, retain=retain)
        async with login(broker, "alfa") as alfa:
            await alfa.publish(topics.inbound("alfa"), b"end", qos=1)
        assert await heard(exchange, b"end") == []
    async with (
        login(broker, "alfa", *OPERATOR_TOPICS, *COPY_TOPICS, "#", topics.outbound("alfa")) as alfa,
        login(broker, "exchange") as exchange,
    ):
        for topic in OPERATOR_TOPICS + COPY_TOPICS:
            await exchange.publish(topic, b"secret", qos=1)
        await exchange.publish(topics.outbound("alfa"), b"end", qos=1)
        assert await heard(alfa, b"end") == []


@pytest.mark.parametrize(("name", "own"), [("olga", "op/olga"), ("omar", "op/omar"), ("risk", "copy/risk/alfa")])
async def test_an_operator_and_a_reader_of_copies_use_their_own_topics_and_no_others(
    broker: Mosquitto, name: str, own: str
):
    places = ("op/olga", "op/omar", "copy/risk/alfa", "alfa", "copy/omar/alfa")
    others = [each for each in places if each != own]
    async with login(broker, "exchange", f"{topics.ROOT}/#") as exchange:
        for other in others:
            async with login(broker, name) as client:
                with contextlib.suppress(aiomqtt.MqttError):
                    await client.publish(topics.inbound(other), b"forged", qos=1)
                with contextlib.suppress(aiomqtt.MqttError):
                    await client.publish(topics.outbound(own), b"forged", qos=1)
        async with login(broker, name) as client:
            await client.publish(topics.inbound(own), b"end", qos=1)
        assert await heard(exchange, b"end") == []
    async with (
        login(broker, name, *map(topics.outbound, [own, *others]), f"{topics.ROOT}/#") as client,
        login(broker, "exchange") as exchange,
    ):
        for other in others:
            await exchange.publish(topics.outbound(other), b"secret", qos=1)
        await exchange.publish(topics.outbound(own), b"end", qos=1)
        assert await heard(client, b"end") == []


def test_set_up_again_keeps_operators_and_refuses_a_login_with_two_parts(tmp_path: Path):
    first = Mosquitto(tmp_path, "alfa", options=("--operator", "olga", "omar", "--copy", "risk"))
    access = (tmp_path / "acl").read_text()
    Mosquitto(tmp_path, "alfa", "bravo")
    assert (tmp_path / "acl").read_text() == access
    assert access.count("user olga\n") == 1
    assert first.password("olga")
    for options in (("--copy", "olga"), ("--operator", "alfa"), ("--operator", "exchange")):
        with pytest.raises(subprocess.CalledProcessError):
            Mosquitto(tmp_path, "alfa", options=options)
