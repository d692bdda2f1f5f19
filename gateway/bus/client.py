"""The exchange's own connection to an MQTT broker.

Every message costs processor time here, so a burst is one read and one write, and nothing in between costs a task, a
lock or a turn of the loop: what arrives is cut into packets and handed straight to the door, what is said gathers until
the loop turns, and goes out as one piece. ``mqtt.py`` has the bytes; here is when they are sent.

* A message is acknowledged to the broker when the door says so, after the commit: until then the broker redelivers.
* Reports go out at QoS 1 but nobody waits for the broker's PUBACK: a member that misses one sees the hole in its
  numbers and asks again. The number under way is bounded, by the broker's wish too (Receive Maximum).
* Without ``TCP_NODELAY`` a round trip takes 44 ms instead of 0.3.

The session is persistent and known by name, so a broker that keeps things keeps what comes while the exchange is away.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections import deque
from collections.abc import Iterable
from typing import Final, Literal, TypeVar, cast
from urllib.parse import unquote, urlsplit

from msgspec import Struct

from gateway.bus import mqtt, topics
from gateway.bus.port import Delivery, Door

logger = logging.getLogger("dojima.bus")

#: Without it, Nagle's algorithm and delayed acknowledgements wait for each other.
SOCKET_OPTIONS: Final = ((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),)
#: Most QoS 1 publishes that may be under way to the broker at once.
INFLIGHT_MAX: Final = 20_000
#: Most messages that may wait in all, those under way included.
OUTSTANDING_MAX: Final = 60_000
#: Bytes that may wait for a broker that does not read.
UNREAD_MAX: Final = 64 * 1024 * 1024
#: What mosquitto says of itself: bytes of messages it holds, and messages it gave up.
WAITING: Final = "$SYS/broker/store/messages/bytes"
DISCARDED: Final = "$SYS/broker/publish/messages/dropped"
BACK_OFF_FIRST: Final = 0.1
BACK_OFF_MAX: Final = 5.0
#: Seconds for the broker to answer CONNECT, and then SUBSCRIBE: amqtt takes five over a session with kept messages.
ANSWER_MAX: Final = 20.0
#: Seconds for the last words to leave.
LEAVE_MAX: Final = 3.0
#: What brokers answer to a login they do not know or let in: MQTT 3.1.1, then MQTT 5.
LOGIN_REFUSED: Final = frozenset({4, 5, 0x86, 0x87})
#: Seconds of silence after which either side may take the other for dead.
KEEP_ALIVE: Final = 60
#: Topics whose sender, or whose bytes, are remembered: members' and instruments' own, so more are only in the way.
REMEMBERED_MAX: Final = 10_000

_T = TypeVar("_T")


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


class _Lost(Exception):
    """The connection is gone, or was refused. Says why."""


class _Connection(asyncio.Protocol):
    """One connection, from CONNECT to its end. Belongs to a ``MqttBus``, which it tells what arrives."""

    def __init__(self, bus: MqttBus, version: int, connect: bytes) -> None:
        loop = asyncio.get_running_loop()
        self.greeted: asyncio.Future[mqtt.Connack] = loop.create_future()
        self.subscribed: asyncio.Future[list[int]] = loop.create_future()
        self.ended: asyncio.Future[str] = loop.create_future()  #: why
        self.gone = asyncio.Event()  #: nothing more leaves
        self.transport: asyncio.Transport | None = None
        self._bus = bus
        self._loop = loop
        self._version = version
        self._connect = connect
        self._reader = mqtt.Reader()
        self._out: list[bytes] = []  # packets said in this turn of the loop
        self._packet_id = 0
        self._inflight: set[int] = set()  # ids of QoS 1 publishes without PUBACK
        self._inflight_max = INFLIGHT_MAX
        self._packet_max = mqtt.LENGTH_MAX
        self._waiting: deque[tuple[bytes, bytes, int, bool]] = deque()  # what the window does not let out yet
        self._taken: asyncio.Event | None = None  # set when the broker has taken all that was said; who leaves waits
        self._keep_alive = KEEP_ALIVE
        self._silent = False  # nothing came since the last PINGREQ
        self._timer: asyncio.TimerHandle | None = None
        self._refused = False

    # --- life ----------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=UNREAD_MAX)
        connection = transport.get_extra_info("socket")
        for option in SOCKET_OPTIONS:
            connection.setsockopt(*option)
        self.transport.write(self._connect)

    def connection_lost(self, error: Exception | None) -> None:
        self.end(str(error or "it closed the connection"))
        self.gone.set()

    def end(self, why: str) -> None:
        """Give this connection up."""
        if not self.ended.done():
            self.ended.set_result(why)
        if self._taken is not None:
            self._taken.set()
        if self._timer is not None:
            self._timer.cancel()
        if self.transport is not None:
            self.transport.abort()

    async def answer(self, future: asyncio.Future[_T]) -> _T:
        """What the broker says to CONNECT or SUBSCRIBE. Raises ``_Lost``."""
        await asyncio.wait((future, self.ended), timeout=ANSWER_MAX, return_when=asyncio.FIRST_COMPLETED)
        if future.done():
            return future.result()
        raise _Lost(self.ended.result() if self.ended.done() else f"no answer within {ANSWER_MAX:g} s")

    async def leave(self) -> None:
        """Wait until the broker has taken what was said, and close.

        Without a DISCONNECT, so that the last will is published. amqtt lets a client that says good-bye go at once,
        and drops what it has taken from it and not yet passed on: the "down" that nobody must miss.
        """
        assert self.transport is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_MAX):
                if self._inflight or self._waiting:
                    self._taken = asyncio.Event()
                    await self._taken.wait()
                self._flush()
                if self.transport.can_write_eof():
                    # Whoever closes with something unread resets the connection, and what it said last is lost.
                    self.transport.write_eof()
                else:
                    self.transport.close()
                await self.gone.wait()
        self.end("left")

    def _tick(self) -> None:
        if self._silent:
            self.end(f"no sign of life for {self._keep_alive // 2} s")
            return
        self._silent = True
        self.write(mqtt.PINGREQ_BYTES)
        self._timer = self._loop.call_later(self._keep_alive / 2, self._tick)

    # --- in ------------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._silent = False
        bus, version = self._bus, self._version
        try:
            for first, body in self._reader.feed(data):
                kind = first >> 4
                if not self.greeted.done():
                    self._greet(kind, body)
                elif kind == mqtt.PUBLISH:
                    bus.receive(self, mqtt.read_publish(first, body, version))
                elif kind == mqtt.PUBACK:
                    self._published(*mqtt.read_puback(body, version))
                elif kind == mqtt.SUBACK and not self.subscribed.done():
                    self.subscribed.set_result(mqtt.read_suback(body, version)[1])
                elif kind == mqtt.DISCONNECT:
                    self.end(mqtt.read_disconnect(body, version))
                elif kind != mqtt.PINGRESP:
                    raise mqtt.ProtocolError(f"Expected CONNACK and SUBACK once each, got another of kind {kind}")
                if self.ended.done():
                    return
        except mqtt.ProtocolError as error:
            self.end(str(error))

    def _greet(self, kind: int, body: bytes) -> None:
        if kind != mqtt.CONNACK:
            raise mqtt.ProtocolError(f"Expected CONNACK first, got a packet of kind {kind}")
        answer = mqtt.read_connack(body, self._version)
        if answer.code:
            if answer.code in LOGIN_REFUSED:
                self._bus.login_refused(answer.text)
            self.end(f"it refuses the connection: {answer.text}")
            return
        if not answer.qos_1 or not answer.retain:
            self.end("expected a broker that takes QoS 1 and retained messages")
            return
        self._inflight_max = min(INFLIGHT_MAX, answer.receive_maximum)
        self._packet_max = answer.packet_maximum
        if answer.keep_alive is not None:
            self._keep_alive = answer.keep_alive
        if self._keep_alive:
            self._timer = self._loop.call_later(self._keep_alive / 2, self._tick)
        self._bus.opened(self)  # at once: what the session kept may be in the same bytes, and is answered
        self.greeted.set_result(answer)

    def _published(self, packet_id: int, code: int) -> None:
        self._inflight.discard(packet_id)
        if code >= 0x80 and not self._refused:
            self._refused = True
            self._bus.alarm(
                f"the broker has refused a message of the exchange (0x{code:02x}): see deploy/mosquitto/acl"
            )
        while self._waiting and (len(self._inflight) < self._inflight_max or not self._waiting[0][2]):
            self._publish(*self._waiting.popleft())
        if self._taken is not None and not self._waiting and not self._inflight:
            self._taken.set()

    # --- out -----------------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Whole packets. They leave when the loop turns, all that were said by then in one piece."""
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(data)

    def _flush(self) -> None:
        if self._out and self.transport is not None and not self.transport.is_closing():
            self.transport.write(b"".join(self._out))
        self._out.clear()

    def pause_writing(self) -> None:
        self.end(f"{UNREAD_MAX} bytes wait and it does not read")

    def subscribe(self, *names: str) -> None:
        self._packet_id += 1
        self.write(mqtt.subscribe(self._version, self._packet_id, names))

    def publish(self, topic: bytes, payload: bytes, qos: int, retain: bool) -> None:
        """``topic`` as ``mqtt.text`` made it. Order is kept, whether something has to wait or not."""
        if not self._waiting and (not qos or len(self._inflight) < self._inflight_max):
            self._publish(topic, payload, qos, retain)
        elif len(self._inflight) + len(self._waiting) >= OUTSTANDING_MAX:
            self.end(f"{OUTSTANDING_MAX} messages wait for its acknowledgement")
        else:
            self._waiting.append((topic, payload, qos, retain))

    def _publish(self, topic: bytes, payload: bytes, qos: int, retain: bool) -> None:
        packet_id = 0
        if qos:
            inflight = self._inflight
            packet_id = self._packet_id % mqtt.ID_MAX + 1
            while packet_id in inflight:  # fewer are under way than there are ids
                packet_id = packet_id % mqtt.ID_MAX + 1
            self._packet_id = packet_id
        data = mqtt.publish(self._version, topic, payload, packet_id, retain=retain)
        if len(data) > self._packet_max:
            self._bus.alarm(f"a message of {len(data)} bytes was not sent: the broker takes {self._packet_max}")
            return
        if qos:
            inflight.add(packet_id)
        self.write(data)


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
        self._version = 5 if protocol == "5" else 4
        self._ca_file = ca_file
        self._alarm_bytes = alarm_bytes
        self._alarmed = False
        self._login_refused = False
        self._discarded = 0
        self._connection: _Connection | None = None  # the one that is open
        self._senders: dict[bytes, str] = {}  # by topic
        self._topics: dict[str, bytes] = {}  # as they go on the wire
        self._door: Door | None = None
        self._closing = asyncio.Event()
        self._fault: BaseException | None = None

    # --- connection ----------------------------------------------------------------------------------------------

    async def run(self, door: Door) -> None:
        self._door = door
        self._back_off = BACK_OFF_FIRST
        while not self._closing.is_set():
            try:
                await self._serve(door)
            except (OSError, _Lost) as error:  # TimeoutError and ssl.SSLError are OSErrors
                if self._fault is None and not self._closing.is_set():
                    logger.warning(
                        "broker %s: %s; trying again in %.1f s", self.address, str(error) or "no answer", self._back_off
                    )
            if self._fault is not None:
                raise self._fault
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._back_off):
                    await self._closing.wait()
            self._back_off = min(self._back_off * 2, BACK_OFF_MAX)

    async def _serve(self, door: Door) -> None:
        """One connection, until it is lost (raises ``_Lost`` or ``OSError``) or ``close``."""
        connection = _Connection(self, self._version, self._connect())
        closing = asyncio.ensure_future(self._closing.wait())
        try:
            async with asyncio.timeout(ANSWER_MAX):
                await asyncio.get_running_loop().create_connection(
                    lambda: connection,
                    self.address.host,
                    self.address.port,
                    ssl=ssl.create_default_context(cafile=self._ca_file or None) if self.address.tls else None,
                )
            await connection.answer(connection.greeted)
            inward = (topics.ALL_IN, topics.ALL_OPERATORS_IN, topics.ALL_COPIES_IN)
            connection.subscribe(*inward, WAITING, DISCARDED)
            # amqtt answers only once the messages that the session kept are acknowledged (or 5 s have passed).
            codes = await connection.answer(connection.subscribed)
            for topic, code in zip(inward, codes, strict=False):
                if code >= 0x80:
                    raise _Lost(f"this login may not read {topic}: see deploy/mosquitto/acl")
            logger.info("connected to broker %s", self.address)
            self._back_off = BACK_OFF_FIRST
            self._login_refused = False
            door.connected()
            await asyncio.wait((connection.ended, closing), return_when=asyncio.FIRST_COMPLETED)
            if connection.ended.done():
                raise _Lost(connection.ended.result())
            self._connection = None
            await connection.leave()
        finally:
            self._connection = None
            connection.end("given up")
            closing.cancel()

    def _connect(self) -> bytes:
        return mqtt.connect(
            self._version,
            self._session,
            KEEP_ALIVE,
            user=self.address.user,
            password=self.address.password,
            will_topic=topics.STATUS,
            will=self._will,
        )

    async def close(self) -> None:
        self._closing.set()

    # --- in, as its connection calls it --------------------------------------------------------------------------

    def opened(self, connection: _Connection) -> None:
        """The broker said welcome: what is sent from here on arrives."""
        self._connection = connection

    def receive(self, connection: _Connection, message: mqtt.Publish) -> None:
        """One message. Raises ``ProtocolError``; a fault of the door ends connection and bus."""
        topic, payload, qos, retain, packet_id = message
        sender = self._senders.get(topic) or self._sender(topic)
        try:
            assert self._door is not None
            if sender.startswith("$"):
                self._watch(sender, payload)
            else:
                self._door.receive(Delivery(sender, payload, retain, (connection, packet_id) if qos else None))
        except Exception as error:
            # Not a broker's trouble: the loop would log it and go on, and an order would vanish.
            self._fault = error
            connection.end("a fault behind the door")

    def _sender(self, topic: bytes) -> str:
        """Who publishes there; for a topic of the broker's own, that topic."""
        try:
            name = topic.decode()
        except UnicodeDecodeError:
            raise mqtt.ProtocolError(f"Expected a topic in UTF-8, got {topic[:64]!r}") from None
        if len(self._senders) >= REMEMBERED_MAX:
            self._senders.clear()
        sender = self._senders[topic] = name if name.startswith("$") else topics.sender_of(name)
        return sender

    def login_refused(self, why: str) -> None:
        """Trying again is all that can be done here, but a person has to know: once, not at every attempt."""
        if not self._login_refused:
            self._login_refused = True
            self.alarm(
                f"broker {self.address} does not let the exchange in as {self.address.user!r}: {why}. Its password "
                "belongs into the file named by broker.password_file, or into DOJIMA_BROKER_PASSWORD; start again with "
                "the right one. Until then it is tried again"
            )

    def alarm(self, text: str) -> None:
        if self._door is not None:
            self._door.alarm(text)

    def _watch(self, topic: str, payload: bytes) -> None:
        """What the broker says about itself, every few seconds."""
        if not payload.isdigit() or len(payload) > 18:
            return
        count = int(payload)
        if topic == DISCARDED:
            if count > self._discarded:
                self.alarm(f"the broker has discarded {count} messages; members will have to send again")
            self._discarded = count
        elif self._alarm_bytes:
            if count > self._alarm_bytes and not self._alarmed:
                self.alarm(f"{count} bytes of messages wait at the broker, more than {self._alarm_bytes}")
            self._alarmed = count > self._alarm_bytes

    def acknowledge(self, deliveries: Iterable[Delivery]) -> None:
        connection = self._connection
        if connection is None:
            return  # the broker redelivers; the ids are known by then, and harmless
        data = []
        for delivery in deliveries:
            ticket = cast("tuple[_Connection, int] | None", delivery.ticket)
            if ticket is not None and ticket[0] is connection:  # an id of a connection before means nothing any more
                data.append(mqtt.puback(ticket[1]))
        if data:
            connection.write(b"".join(data))

    # --- out -----------------------------------------------------------------------------------------------------

    def send(self, address: str, payload: bytes) -> None:
        self._publish(topics.outbound(address), payload, 1, False)

    def publish(self, instrument: str, kind: str, payload: bytes, *, retain: bool = False) -> None:
        self._publish(topics.market_data(instrument, kind), payload, 0, retain)

    def announce(self, payload: bytes) -> None:
        self._publish(topics.STATUS, payload, 1, True)

    def _publish(self, topic: str, payload: bytes, qos: int, retain: bool) -> None:
        connection = self._connection
        if connection is None:
            return  # everybody is greeted when the way is open again, and asks for what is missing
        name = self._topics.get(topic)
        if name is None:
            if len(self._topics) >= REMEMBERED_MAX:
                self._topics.clear()
            name = self._topics[topic] = mqtt.text(topic)
        connection.publish(name, payload, qos, retain)
