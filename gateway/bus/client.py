"""The exchange's own connection to an MQTT broker.

Measured on mosquitto, and the reason for every line here that looks odd:

* aiomqtt's iterator spends a task per message; a queue of our own, handed in as ``queue_type``, is called straight from
  paho's receive path. The iterator is used once per connection, to learn of its end.
* aiomqtt acknowledges on receipt, so a crash would lose what had only been read. paho's manual acknowledgement, reached
  through aiomqtt's private client in one guarded place, lets the broker redeliver until the commit.
* Publishing through paho directly costs no task and no waiting: reports need no PUBACK of the broker, since a member
  that misses one sees the hole in its numbers and asks again.
* Without ``TCP_NODELAY`` a round trip takes 44 ms instead of 0.3.

The session is persistent and known by name, so a broker that keeps things keeps what comes while the exchange is away.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable, Iterable
from typing import Any, Final, Literal, cast
from urllib.parse import unquote, urlsplit

import aiomqtt
from aiomqtt.message import Message
from msgspec import Struct
from paho.mqtt.client import MQTT_ERR_SUCCESS
from paho.mqtt.client import Client as PahoClient
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from gateway.bus import topics
from gateway.bus.port import Delivery, Door

logger = logging.getLogger("dojima.bus")

#: Without it, Nagle's algorithm and delayed acknowledgements wait for each other.
SOCKET_OPTIONS: Final = ((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),)
#: Most QoS 1 publishes that may be under way to the broker at once.
INFLIGHT_MAX: Final = 20_000
#: Most that may wait in all: their ids have 16 bits.
OUTSTANDING_MAX: Final = 60_000
#: What mosquitto says of itself: bytes of messages it holds, and messages it gave up.
WAITING: Final = "$SYS/broker/store/messages/bytes"
DISCARDED: Final = "$SYS/broker/publish/messages/dropped"
BACK_OFF_FIRST: Final = 0.1
BACK_OFF_MAX: Final = 5.0


class Address(Struct, frozen=True):
    """Where a broker is and how to log in there. The URL carries it: ``mqtt[s]://user:password@host:port``."""

    host: str
    port: int
    tls: bool = False
    user: str = ""
    password: str = ""

    @staticmethod
    def parse(url: str) -> Address:
        """Raises ``ValueError`` saying what was expected and what came."""
        parts = urlsplit(url)
        if parts.scheme not in ("mqtt", "mqtts"):
            raise ValueError(f"Expected a broker URL mqtt://host:port or mqtts://host:port, got {_redacted(url)!r}")
        if not parts.hostname:
            raise ValueError(f"Expected a host in the broker URL, got {_redacted(url)!r}")
        tls = parts.scheme == "mqtts"
        try:
            port = parts.port
        except ValueError as error:
            raise ValueError(f"Expected a port from 1 to 65535 in the broker URL, got {_redacted(url)!r}") from error
        return Address(
            parts.hostname,
            port or (8883 if tls else 1883),
            tls,
            unquote(parts.username or ""),
            unquote(parts.password or ""),
        )

    def __str__(self) -> str:
        """Without the password: for logs and status lines."""
        user = f"{self.user}@" if self.user else ""
        return f"mqtt{'s' if self.tls else ''}://{user}{self.host}:{self.port}"


def _redacted(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def paho_of(client: aiomqtt.Client) -> PahoClient:
    """The paho client inside aiomqtt, set to manual acknowledgement. The one place that reaches into aiomqtt.

    Raises ``RuntimeError`` when a new aiomqtt keeps it elsewhere: without manual acknowledgement orders would be lost
    silently, so that must stop the exchange. ``tests/gateway/test_mqtt_contract.py`` holds the libraries to it.
    """
    paho = getattr(client, "_client", None)
    if not isinstance(paho, PahoClient):
        raise RuntimeError(f"Expected aiomqtt.Client._client to be a paho client, got {type(paho).__name__}")
    paho.manual_ack_set(True)
    return paho


def _value(code: int | ReasonCode) -> int:
    """What a broker answered to a subscription, in MQTT 3 or 5."""
    return code.value if isinstance(code, ReasonCode) else code


class _Sink(asyncio.Queue[Message]):
    """The queue aiomqtt is given: it hands each message on at once and stays empty."""

    def __init__(self, take: Callable[[Message], None]) -> None:
        super().__init__()
        self._take = take

    def put_nowait(self, item: Message) -> None:
        self._take(item)


class MqttBus:
    """``port.Bus`` over MQTT 3.1.1 or 5."""

    def __init__(
        self,
        address: Address,
        *,
        session: str,
        will: bytes,
        protocol: Literal["3.1.1", "5"] = "3.1.1",
        ca_file: str = "",
        alarm_bytes: int = 0,
    ) -> None:
        """``alarm_bytes``: how much may wait at a broker that tells (mosquitto, ``$SYS``) before a person is called.

        ``session`` names the persistent session: the same after every restart, and of no one else.

        ``will`` is the status payload which the broker publishes when this connection dies.
        """
        self.address = address
        self._session = session
        self._will = will
        self._protocol = protocol
        self._ca_file = ca_file
        self._alarm_bytes = alarm_bytes
        self._alarmed = False
        self._discarded = 0
        self._paho: PahoClient | None = None
        self._connection = 0
        self._outstanding: set[int] = set()  # ids of QoS 1 publishes without PUBACK
        self._early: list[Delivery] | None = None  # what came before the way out was open
        self._door: Door | None = None
        self._closing = asyncio.Event()
        self._lost = asyncio.Event()
        self._fault: BaseException | None = None

    # --- connection ----------------------------------------------------------------------------------------------

    async def run(self, door: Door) -> None:
        self._door = door
        back_off = BACK_OFF_FIRST
        while not self._closing.is_set():
            try:
                async with self._client() as client:
                    back_off = BACK_OFF_FIRST
                    await self._serve(client, door)
            except aiomqtt.MqttError as error:
                if self._fault is None and not self._closing.is_set():
                    logger.warning("broker %s: %s; trying again in %.1f s", self.address, error, back_off)
            finally:
                self._paho = None
            if self._fault is not None:
                raise self._fault
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), back_off)
            back_off = min(back_off * 2, BACK_OFF_MAX)

    async def _serve(self, client: aiomqtt.Client, door: Door) -> None:
        self._paho = paho_of(client)
        # What a session kept comes before the answer to SUBSCRIBE, and amqtt gives that answer only once the kept
        # messages are acknowledged (or 5 s have passed): so they are dealt with first.
        early, self._early = self._early or [], None
        for delivery in early:
            self._hand_over(delivery)
        for topic, needed in ((topics.ALL_IN, True), (WAITING, False), (DISCARDED, False)):
            codes = await client.subscribe(topic, qos=1)
            if needed and any(_value(code) >= 0x80 for code in codes):
                raise aiomqtt.MqttError(f"this login may not read {topic}: see deploy/mosquitto/acl")
        logger.info("connected to broker %s", self.address)
        door.connected()
        ended = asyncio.ensure_future(anext(client.messages))  # the sink stays empty: only a disconnect ends it
        closing = asyncio.ensure_future(self._closing.wait())
        lost = asyncio.ensure_future(self._lost.wait())
        try:
            await asyncio.wait((ended, closing, lost), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._paho = None
            for task in (ended, closing, lost):
                task.cancel()
            results = await asyncio.gather(ended, closing, lost, return_exceptions=True)
        if isinstance(results[0], aiomqtt.MqttError):
            raise results[0]

    def _client(self) -> aiomqtt.Client:
        self._connection += 1
        self._outstanding.clear()
        self._early = []
        self._lost.clear()
        connection = self._connection

        def take(message: Message) -> None:
            self._receive(message, connection)

        options: dict[str, Any] = {"clean_session": False}
        if self._protocol == "5":
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = 0xFFFF_FFFF
            options = {"protocol": aiomqtt.ProtocolVersion.V5, "clean_start": False, "properties": properties}
        client = aiomqtt.Client(
            self.address.host,
            self.address.port,
            username=self.address.user or None,
            password=self.address.password or None,
            identifier=self._session,
            queue_type=cast("type[asyncio.Queue[Message]]", lambda maxsize: _Sink(take)),
            will=aiomqtt.Will(topics.STATUS, self._will, qos=1, retain=True),
            max_inflight_messages=INFLIGHT_MAX,
            socket_options=SOCKET_OPTIONS,
            tls_context=ssl.create_default_context(cafile=self._ca_file or None) if self.address.tls else None,
            **options,
        )
        paho = paho_of(client)  # before connecting: the broker redelivers as soon as it knows the session
        paho.on_publish = self._published
        return client

    async def close(self) -> None:
        self._closing.set()

    # --- in ------------------------------------------------------------------------------------------------------

    def _receive(self, message: Message, connection: int) -> None:
        if message.topic.value.startswith("$"):
            self._watch(message.topic.value, message.payload)
            return
        delivery = Delivery(
            topics.participant_of(message.topic.value),
            message.payload,
            message.retain,
            (connection, message.mid, message.qos),
        )
        if self._early is not None:  # came together with the CONNACK: an answer could not be sent yet
            self._early.append(delivery)
        else:
            self._hand_over(delivery)

    def _hand_over(self, delivery: Delivery) -> None:
        try:
            assert self._door is not None
            self._door.receive(delivery)
        except Exception as error:
            # Not a broker's trouble: paho would log it and go on, and an order would vanish.
            self._fault = error
            self._lost.set()

    def _watch(self, topic: str, payload: bytes) -> None:
        """What the broker says about itself, every few seconds."""
        assert self._door is not None
        if not payload.isdigit():
            return
        count = int(payload)
        if topic == DISCARDED:
            if count > self._discarded:
                self._door.alarm(f"the broker has discarded {count} messages; members will have to send again")
            self._discarded = count
        elif self._alarm_bytes:
            if count > self._alarm_bytes and not self._alarmed:
                self._door.alarm(f"{count} bytes of messages wait at the broker, more than {self._alarm_bytes}")
            self._alarmed = count > self._alarm_bytes

    def acknowledge(self, deliveries: Iterable[Delivery]) -> None:
        paho = self._paho
        if paho is None:
            return  # the broker redelivers; the ids are known by then, and harmless
        for delivery in deliveries:
            connection, mid, qos = cast("tuple[int, int, int]", delivery.ticket)
            if qos and connection == self._connection:
                paho.ack(mid, qos)

    # --- out -----------------------------------------------------------------------------------------------------

    def send(self, participant: str, payload: bytes) -> None:
        self._publish(topics.outbound(participant), payload, 1, False)

    def publish(self, instrument: str, kind: str, payload: bytes, *, retain: bool = False) -> None:
        self._publish(topics.market_data(instrument, kind), payload, 0, retain)

    def announce(self, payload: bytes) -> None:
        self._publish(topics.STATUS, payload, 1, True)

    def _publish(self, topic: str, payload: bytes, qos: int, retain: bool) -> None:
        paho = self._paho
        if paho is None:
            return
        if qos and len(self._outstanding) >= OUTSTANDING_MAX:
            logger.error("broker %s: %d publishes not acknowledged; connecting anew", self.address, OUTSTANDING_MAX)
            self._drop()
            return
        info = paho.publish(topic, payload, qos, retain)
        if info.rc != MQTT_ERR_SUCCESS:
            logger.warning("broker %s: a publish failed (%s); connecting anew", self.address, info.rc)
            self._drop()
        elif qos:
            self._outstanding.add(info.mid)

    def _drop(self) -> None:
        """Give this connection up. The next one greets every member with its next report number."""
        self._lost.set()
        self._paho = None

    def _published(self, client: PahoClient, userdata: object, mid: int, *rest: object) -> None:
        self._outstanding.discard(mid)
