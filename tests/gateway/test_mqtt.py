"""The exchange's MQTT, byte by byte: whatever a network cuts and whatever a broker sends."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.bus import client, mqtt, topics
from gateway.bus.client import Address, MqttBus
from gateway.bus.mqtt import Connack, ProtocolError, Publish, Reader
from gateway.bus.port import Delivery

VERSIONS = (4, 5)
#: As a broker sends them.
ids = st.integers(1, mqtt.ID_MAX)
topic_names = st.binary(min_size=1, max_size=40)
publishes = st.builds(
    lambda topic, payload, packet_id, retain: (topic, payload, packet_id, retain),
    topic_names,
    st.one_of(st.binary(max_size=300), st.integers(0, 40_000).map(bytes)),
    st.one_of(st.just(0), ids),
    st.booleans(),
)
packets = st.one_of(
    publishes.map(lambda given: mqtt.publish(4, mqtt.text(given[0]), given[1], given[2], retain=given[3])),
    ids.map(mqtt.puback),
    st.just(b"\x20\x02\x00\x00"),
    st.just(b"\xd0\x00"),
    st.builds(
        lambda packet_id, codes: mqtt.packet(0x90, packet_id.to_bytes(2, "big"), codes), ids, st.binary(min_size=1)
    ),
)


def read(pieces: list[bytes]) -> tuple[list[tuple[int, bytes]], str]:
    """All packets, and the error that ended them."""
    reader, found = Reader(), []
    try:
        for piece in pieces:
            for packet in reader.feed(piece):
                found.append(packet)
    except ProtocolError as error:
        return found, str(error)
    return found, ""


def cut(data: bytes, places: list[int]) -> list[bytes]:
    at = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[begin:end] for begin, end in itertools.pairwise(at)]


# --- the stream ------------------------------------------------------------------------------------------------------


@given(st.lists(packets, max_size=20), st.lists(st.integers(0, 2**20), max_size=20))
def test_a_stream_gives_the_same_packets_wherever_it_is_cut(sent: list[bytes], places: list[int]):
    data = b"".join(sent)
    found, error = read(cut(data, places))
    assert error == ""
    assert b"".join(mqtt.packet(first, body) for first, body in found) == data
    assert len(found) == len(sent)


@given(st.lists(packets, max_size=5))
def test_a_stream_gives_the_same_packets_byte_by_byte(sent: list[bytes]):
    data = b"".join(packet for packet in sent if len(packet) < 2_000)
    assert read([data[at : at + 1] for at in range(len(data))]) == read([data])


@given(st.lists(packets, max_size=5), st.binary(max_size=50), st.lists(st.integers(0, 2**20), max_size=20))
def test_broken_bytes_give_the_same_packets_and_the_same_error_wherever_they_are_cut(
    sent: list[bytes], broken: bytes, places: list[int]
):
    data = b"".join(sent) + broken
    assert read(cut(data, places)) == read([data])


def test_a_large_packet_in_small_pieces_is_put_together_once():
    whole = mqtt.publish(4, mqtt.text("t"), bytes(4_000_000), 1, retain=False)
    reader = Reader()
    looked: list[tuple[int, bytes]] = []
    for at in range(0, len(whole), 1_000):  # quadratic work would take minutes
        looked += reader.feed(whole[at : at + 1_000])
    assert len(looked) == 1
    assert mqtt.read_publish(*looked[0], 4).payload == bytes(4_000_000)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\x30\xff\xff\xff\xff\x01", "length of at most 4 bytes"),
        (b"\x10\x00", "a broker sends"),
        (b"\x00\x00", "a broker sends"),
        (b"\xf0\x00", "a broker sends"),
        (b"\x41\x02\x00\x01", "a broker sends"),
        (b"\x82\x02\x00\x01", "a broker sends"),
        (b"\x20\xff\xff\x7f", "at most"),
    ],
)
def test_what_no_broker_may_send_is_an_error_that_says_so(data: bytes, expected: str):
    found, error = read([data])
    assert found == []
    assert expected in error


# --- packets ---------------------------------------------------------------------------------------------------------


@given(publishes, st.sampled_from(VERSIONS))
def test_a_publish_is_read_as_it_was_written(given: tuple[bytes, bytes, int, bool], version: int):
    topic, payload, packet_id, retain = given
    data = mqtt.publish(version, mqtt.text(topic), payload, packet_id, retain=retain)
    ((first, body),) = Reader().feed(data)
    assert mqtt.read_publish(first, body, version) == Publish(topic, payload, int(packet_id > 0), retain, packet_id)


READERS: list[Callable[[bytes, int], object]] = [
    lambda body, version: mqtt.read_publish(0x32, body, version),
    lambda body, version: mqtt.read_publish(0x30, body, version),
    mqtt.read_connack,
    mqtt.read_puback,
    mqtt.read_suback,
    mqtt.read_disconnect,
]


@given(st.binary(max_size=60), st.integers(0, len(READERS) - 1), st.sampled_from(VERSIONS))
def test_no_bytes_in_a_packet_raise_anything_but_a_protocol_error(body: bytes, reader: int, version: int):
    with contextlib.suppress(ProtocolError):
        READERS[reader](body, version)


@given(st.integers(0, 255), st.binary(max_size=20), st.integers(0, len(READERS) - 1))
def test_no_properties_raise_anything_but_a_protocol_error(name: int, value: bytes, reader: int):
    properties = bytes((1 + len(value), name)) + value
    for body in (
        b"\x00\x00" + properties,
        b"\x00\x01t\x00\x01" + properties,
        b"\x00\x01\x00" + properties,
        b"\x80" + properties,
    ):
        try:
            READERS[reader](body, 5)
        except ProtocolError:
            continue


@pytest.mark.parametrize(
    ("first", "body", "version"),
    [
        (0x34, b"\x00\x01t\x00\x01", 4),  # QoS 2 was not subscribed to
        (0x36, b"\x00\x01t\x00\x01", 4),
        (0x32, b"\x00\x01t\x00\x00", 4),  # no packet id
        (0x32, b"\x00\x01t\x00", 4),
        (0x30, b"\x00\x05t", 4),
        (0x30, b"\x00", 4),
        (0x30, b"\x00\x00", 4),
        (0x32, b"\x00\x00\x00\x01\x03\x23\x00\x01", 5),  # an alias for a topic that we never agreed to
        (0x30, b"\x00\x01t", 5),  # no properties, not even none
        (0x30, b"\x00\x01t\x05\x26", 5),
    ],
)
def test_a_publish_that_breaks_the_standard_is_refused(first: int, body: bytes, version: int):
    with pytest.raises(ProtocolError):
        mqtt.read_publish(first, body, version)


def test_properties_of_a_publish_are_no_part_of_its_payload():
    pair = b"\x26\x00\x01a\x00\x01b"
    properties = b"\x01\x01" + b"\x02\x00\x00\x00\x09" + b"\x08\x00\x02re" + b"\x0b\x80\x01" + pair + pair
    body = b"\x00\x01t" + bytes((len(properties),)) + properties + b"payload"
    assert mqtt.read_publish(0x30, body, 5).payload == b"payload"


def test_what_a_broker_bounds_is_read_from_its_welcome():
    properties = b"\x21\x00\x14" + b"\x27\x00\x00\x10\x00" + b"\x13\x00\x1e" + b"\x24\x00" + b"\x25\x00"
    found = mqtt.read_connack(b"\x01\x00" + bytes((len(properties),)) + properties, 5)
    assert found._replace(text="") == Connack(True, 0, "", 20, 4096, 30, qos_1=False, retain=False)
    assert mqtt.read_connack(b"\x00\x00\x00", 5)._replace(text="") == Connack(False, 0, "")
    assert mqtt.read_connack(b"\x00\x00", 4)._replace(text="") == Connack(False, 0, "")


@pytest.mark.parametrize(
    ("body", "version", "expected"),
    [
        (b"\x00\x05", 4, "not authorised"),
        (b"\x00\x01", 5, "unacceptable protocol version"),  # a broker of 3.1.1 does not know what 5 would be told
        (b"\x00\x86\x00", 5, "bad user name"),
        (b"\x00\x87\x08\x1f\x00\x05Sorry", 5, "Sorry"),
    ],
)
def test_a_refusal_is_told_in_words(body: bytes, version: int, expected: str):
    assert expected in mqtt.read_connack(body, version).text


def test_a_connect_is_as_the_standard_has_it():
    options = {"user": "u", "password": "p", "will_topic": "w", "will": b"down"}
    assert mqtt.connect(4, "s", 60, **options) == (
        b"\x10\x1c\x00\x04MQTT\x04\xec\x00\x3c\x00\x01s\x00\x01w\x00\x04down\x00\x01u\x00\x01p"
    )
    assert mqtt.connect(5, "s", 60, **options) == (
        b"\x10\x23\x00\x04MQTT\x05\xec\x00\x3c\x05\x11\xff\xff\xff\xff\x00\x01s\x00\x00\x01w\x00\x04down\x00\x01u\x00\x01p"
    )


# --- a connection ----------------------------------------------------------------------------------------------------


class Heard:
    """An exchange that notes what the bus tells it."""

    def __init__(self) -> None:
        self.got: list[Delivery] = []
        self.alarms: list[str] = []
        self.times_open = 0
        self.changed = asyncio.Event()

    def receive(self, delivery: Delivery) -> None:
        self.got.append(delivery)
        self.changed.set()

    def connected(self) -> None:
        self.times_open += 1
        self.changed.set()

    def alarm(self, text: str) -> None:
        self.alarms.append(text)
        self.changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


class Script:
    """A broker that says what a test tells it to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def packet(self) -> tuple[int, bytes]:
        async with asyncio.timeout(20):
            first, length = await self.reader.readexactly(2)
            if length >= 128:
                length += (await self.reader.readexactly(1))[0] * 128 - 128
            assert length < 16_384
            return first, await self.reader.readexactly(length)

    async def welcome(self, connack: bytes = b"\x20\x02\x00\x00", suback: bytes = b"\x01" * 5) -> None:
        assert (await self.packet())[0] == 0x10
        self.writer.write(connack)
        first, body = await self.packet()
        assert first == 0x82
        properties = b"\0" if connack[1] > 2 else b""
        self.writer.write(mqtt.packet(0x90, body[:2], properties, suback))


@asynccontextmanager
async def broker(
    *scripts: Callable[[Script], object], protocol: Literal["3.1.1", "5"] = "3.1.1"
) -> AsyncIterator[tuple[MqttBus, Heard, asyncio.Task[None]]]:
    """A bus at a broker whose connections follow the scripts, one after the other; the last is kept to."""
    left = list(scripts)
    failed: list[BaseException] = []

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        script = left.pop(0) if len(left) > 1 else left[0]
        try:
            await script(Script(reader, writer))  # type: ignore[misc]
            await reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except BaseException as error:
            failed.append(error)
        finally:
            writer.close()

    server = await asyncio.start_server(connection, "127.0.0.1", 0)
    bus = MqttBus(
        Address("127.0.0.1", server.sockets[0].getsockname()[1], user="exchange", password="x"),
        session="s", will=b"down", protocol=protocol,
    )  # fmt: skip
    door = Heard()
    task = asyncio.create_task(bus.run(door))
    try:
        async with asyncio.timeout(30):
            yield bus, door, task
    finally:
        await bus.close()
        try:
            async with asyncio.timeout(20):
                await asyncio.gather(task, return_exceptions=True)
        finally:
            server.close()
            await server.wait_closed()
    assert failed == []


def order(number: int, payload: bytes = b"order") -> bytes:
    return mqtt.publish(4, mqtt.text(topics.inbound("alfa")), payload, number, retain=False)


async def test_what_comes_in_the_same_bytes_as_the_welcome_is_taken_and_can_be_answered():
    async def session(script: Script) -> None:
        assert (await script.packet())[0] == 0x10
        script.writer.write(b"\x20\x02\x01\x00" + order(7))
        came = dict([await script.packet(), await script.packet()])
        assert came.keys() == {0x82, 0x40}
        assert came[0x40] == b"\x00\x07"
        script.writer.write(mqtt.packet(0x90, came[0x82][:2], b"\x01\x01\x01\x80\x80"))  # $SYS is not for everybody

    async with broker(session) as (bus, door, _):
        await door.until(lambda: len(door.got) == 1)
        bus.acknowledge(door.got)
        await door.until(lambda: door.times_open == 1)


async def test_nothing_is_acknowledged_before_it_is_asked_for_and_then_all_in_one_piece():
    seen: list[bytes] = []

    async def session(script: Script) -> None:
        await script.welcome()
        script.writer.write(b"".join(map(order, range(1, 101))))
        while data := await script.reader.read(1 << 16):
            seen.append(data)

    async with broker(session) as (bus, door, _):
        await door.until(lambda: len(door.got) == 100)
        await asyncio.sleep(0.05)
        assert seen == []
        bus.acknowledge(door.got[:50])
        await asyncio.sleep(0.05)
        assert seen == [b"".join(map(mqtt.puback, range(1, 51)))]
    assert b"".join(seen) == b"".join(map(mqtt.puback, range(1, 51)))


async def test_an_acknowledgement_for_a_connection_before_goes_nowhere():
    packets: list[tuple[int, bytes]] = []

    async def first(script: Script) -> None:
        await script.welcome()
        script.writer.write(order(1))
        await script.packet()  # the hello below: then the connection dies
        script.writer.transport.abort()

    async def second(script: Script) -> None:
        await script.welcome()
        script.writer.write(order(2))
        while True:
            packets.append(await script.packet())

    async with broker(first, second) as (bus, door, _):
        await door.until(lambda: len(door.got) == 1)
        bus.send("alfa", b"hello")
        await door.until(lambda: len(door.got) == 2)
        bus.acknowledge(door.got)
        await door.until(lambda: door.times_open == 2)
    assert packets == [(0x40, b"\x00\x02")]


async def test_the_window_of_the_broker_is_kept_in_the_order_of_the_calls():
    payloads: list[bytes] = []

    async def session(script: Script) -> None:
        await script.welcome(b"\x20\x06\x00\x00\x03\x21\x00\x02", b"\x01\x01\x01")  # Receive Maximum 2
        unanswered: list[int] = []
        while len(payloads) < 31:
            first, body = await script.packet()
            message = mqtt.read_publish(first, body, 5)
            payloads.append(message.payload)
            if message.packet_id:
                unanswered.append(message.packet_id)
            assert len(unanswered) <= 2
            if len(unanswered) == 2 or len(payloads) > 28:
                script.writer.write(b"".join(map(mqtt.puback, unanswered)))
                unanswered.clear()

    async with broker(session, protocol="5") as (bus, door, _):
        await door.until(lambda: door.times_open == 1)
        for number in range(30):
            if number % 3 == 2:
                bus.publish("KDX-1", "depth", b"%d" % number)
            else:
                bus.send("alfa", b"%d" % number)
        bus.announce(b"bye")
    assert payloads == [*(b"%d" % number for number in range(30)), b"bye"]


async def test_a_message_larger_than_the_broker_takes_raises_an_alarm():
    async def session(script: Script) -> None:
        await script.welcome(b"\x20\x08\x00\x00\x05\x27\x00\x00\x00\x64")  # Maximum Packet Size 100

    async with broker(session, protocol="5") as (bus, door, _):
        await door.until(lambda: door.times_open == 1)
        bus.send("alfa", bytes(100))
        assert len(door.alarms) == 1
        assert "takes 100" in door.alarms[0]


@pytest.mark.parametrize(("protocol", "connack"), [("3.1.1", b"\x20\x02\x00\x05"), ("5", b"\x20\x03\x00\x86\x00")])
async def test_a_refused_login_raises_one_alarm_that_says_where_the_password_belongs(
    protocol: Literal["3.1.1", "5"], connack: bytes, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("gateway.bus.client.BACK_OFF_FIRST", 0.001)
    refused = asyncio.Event()

    async def refuse(script: Script) -> None:
        await script.packet()
        script.writer.write(connack)

    async def refuse_again(script: Script) -> None:
        await refuse(script)
        refused.set()

    async def session(script: Script) -> None:
        await script.welcome(b"\x20\x03\x00\x00\x00" if protocol == "5" else b"\x20\x02\x00\x00")

    async with broker(refuse, refuse_again, session, protocol=protocol) as (_, door, _task):
        await door.until(lambda: door.times_open == 1)
        assert refused.is_set()
        (alarm,) = door.alarms
        for said in ("'exchange'", "broker.password_file", "DOJIMA_BROKER_PASSWORD"):
            assert said in alarm
        assert ":x@" not in alarm


async def test_a_message_that_the_broker_refuses_raises_one_alarm():
    async def session(script: Script) -> None:
        await script.welcome(b"\x20\x03\x00\x00\x00")
        for _ in range(2):
            first, body = await script.packet()
            packet_id = mqtt.read_publish(first, body, 5).packet_id
            script.writer.write(mqtt.packet(0x40, packet_id.to_bytes(2, "big"), b"\x87"))
        script.writer.write(order(1))

    async with broker(session, protocol="5") as (bus, door, _):
        await door.until(lambda: door.times_open == 1)
        bus.send("alfa", b"1")
        bus.send("alfa", b"2")
        await door.until(lambda: len(door.alarms) > 0)
        assert len(door.alarms) == 1
        assert "0x87" in door.alarms[0]


async def test_a_broker_that_never_acknowledges_is_left_before_memory_runs_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(client, "INFLIGHT_MAX", 10)
    monkeypatch.setattr(client, "OUTSTANDING_MAX", 30)

    async def session(script: Script) -> None:
        await script.welcome()

    async with broker(session) as (bus, door, _):
        await door.until(lambda: door.times_open == 1)
        for number in range(31):
            bus.send("alfa", b"%d" % number)
        await door.until(lambda: door.times_open == 2)


async def test_a_broker_that_does_not_read_is_left_before_memory_runs_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(client, "UNREAD_MAX", 100_000)
    reads = asyncio.Event()

    async def session(script: Script) -> None:
        await script.welcome()
        await reads.wait()

    async with broker(session) as (bus, door, _):
        await door.until(lambda: door.times_open == 1)
        first = bus._connection
        while bus._connection is first:
            bus.publish("KDX-1", "depth", bytes(100_000))
            await asyncio.sleep(0)
        await door.until(lambda: door.times_open == 2)
        reads.set()


async def test_a_connection_without_a_sign_of_life_is_given_up(monkeypatch: pytest.MonkeyPatch):
    pings: list[int] = []

    async def session(script: Script) -> None:
        await script.welcome(b"\x20\x06\x00\x00\x03\x13\x00\x01")  # Server Keep Alive 1 s
        first, _ = await script.packet()
        pings.append(first)
        if len(pings) == 1:
            script.writer.write(b"\xd0\x00")
            await script.packet()

    async with broker(session, protocol="5") as (_, door, _):
        await door.until(lambda: door.times_open == 2)
    assert pings[0] == 0xC0


HOSTILE = [
    pytest.param(b"\x20\x02\x00\x00\x20\x02\x00\x00", id="two welcomes"),
    pytest.param(b"\x90\x03\x00\x01\x01", id="an answer before the welcome"),
    pytest.param(b"\x20\x02\x00\x05", id="not authorised"),
    pytest.param(b"\x20\x02\x00\x00\x34\x05\x00\x01t\x00\x01", id="QoS 2"),
    pytest.param(b"\x20\x02\x00\x00\x30\x03\x00\x01\xff", id="a topic that is no text"),
    pytest.param(b"\x20\x02\x00\x00\xe0\x00", id="a good-bye of another version"),
    pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", id="another protocol"),
    pytest.param(b"", id="nothing, and the end"),
]


@pytest.mark.parametrize("said", HOSTILE)
async def test_whatever_a_broker_says_the_bus_leaves_it_and_finds_the_next(said: bytes):
    async def hostile(script: Script) -> None:
        await script.packet()
        script.writer.write(said)
        if not said:
            script.writer.close()

    async def sound(script: Script) -> None:
        await script.welcome()

    async with broker(hostile, sound) as (_, door, task):
        await door.until(lambda: door.times_open == 1)
        assert not task.done()
        assert door.got == []


@given(st.binary(max_size=200), st.sampled_from(["3.1.1", "5"]), st.integers(0, 2))
def test_no_bytes_of_a_broker_raise_anything_out_of_a_connection(
    said: bytes, protocol: Literal["3.1.1", "5"], welcomed: int
):
    async def run() -> None:
        bus = MqttBus(Address("h", 1), session="s", will=b"", protocol=protocol)
        bus._door = Heard()
        connection = client._Connection(bus, bus._version, b"")
        begin = (b"", b"\x20\x02\x00\x00", b"\x20\x02\x00\x00\x90\x03\x00\x01\x01")[welcomed]
        connection.data_received(
            begin.replace(b"\x20\x02", b"\x20\x03") + b"\0" if protocol == "5" and begin else begin
        )
        if not connection.ended.done():
            connection.data_received(said)
        connection.end("")
        assert bus._fault is None

    asyncio.run(run())


async def test_numbers_that_a_broker_tells_of_itself_never_stop_the_exchange():
    async def session(script: Script) -> None:
        await script.welcome()
        for payload in (b"9" * 5_000, b"x", b"\xff", b"", b"-1", b"7"):
            script.writer.write(mqtt.publish(4, mqtt.text(client.DISCARDED), payload, 0, retain=False))

    async with broker(session) as (_, door, task):
        await door.until(lambda: len(door.alarms) == 1)
        assert "discarded 7" in door.alarms[0]
        assert not task.done()
