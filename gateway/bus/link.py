"""One connection of a member to a broker.

The session is clean: what was missed while away is asked for again by number, which works on every broker, while what
brokers keep for an absent session differs from one to the next. For the same reason acknowledgement on receipt, which
is aiomqtt's habit, is good enough here.
"""

from __future__ import annotations

import asyncio
import secrets
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, NoReturn, Protocol

import aiomqtt
from aiomqtt.exceptions import MqttConnectError
from paho.mqtt.reasoncodes import ReasonCode

from gateway.bus import topics
from gateway.bus.client import SOCKET_OPTIONS, Address

#: Seconds before a lost connection is made again, the first time and at most; doubled each time, and spread at random
#: so that not all members come back at once.
_AGAIN_AFTER: Final = 0.1
_AGAIN_AFTER_MAX: Final = 10.0


class LinkDown(Exception):
    """The connection to the broker is gone or could not be made; try again later."""


class LinkRefused(Exception):
    """The broker does not want this login; trying again does not help."""


class Link(Protocol):
    """What the client needs of a connection; tests put one in memory in its place."""

    async def subscribe(self, topic: str, qos: int) -> None: ...

    async def publish(self, topic: str, payload: bytes) -> None:
        """Returns when the broker has taken the message (QoS 1), which says nothing about the exchange."""
        ...

    def messages(self) -> AsyncIterator[tuple[str, bytes, bool]]:
        """Topic, payload, and whether the broker had kept it for us: then it is as old as it may be."""
        ...


def _number(code: ReasonCode | int | None) -> int:
    """3.1.1 has plain numbers, MQTT 5 reason codes."""
    return code.value if isinstance(code, ReasonCode) else code or 0


def _cancellations() -> int:
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0


def _heed_cancellation(before: int) -> None:
    """To be called behind what waits for an answer of the broker, with ``_cancellations()`` from before it.

    Before Python 3.12 ``asyncio.wait_for``, by which aiomqtt waits, forgets a cancellation that comes together with the
    answer; whoever had cancelled then waits for ever.
    """
    if _cancellations() > before:
        raise asyncio.CancelledError


class MqttLink:
    """``Link`` over aiomqtt."""

    def __init__(self, client: aiomqtt.Client) -> None:
        self._client = client

    async def subscribe(self, topic: str, qos: int) -> None:
        before = _cancellations()
        try:
            codes = await self._client.subscribe(topic, qos=qos)
        except aiomqtt.MqttError as error:
            raise LinkDown(f"subscribing to {topic}: {error}") from error
        _heed_cancellation(before)
        if any(_number(code) >= 0x80 for code in codes):
            raise LinkRefused(
                f"the broker does not let this login read {topic}: a member reads its own "
                f"`{topics.ROOT}/out/...` topic, the status and the market data"
            )

    async def publish(self, topic: str, payload: bytes) -> None:
        before = _cancellations()
        try:
            await self._client.publish(topic, payload, qos=1)
        except aiomqtt.MqttError as error:
            raise LinkDown(f"publishing to {topic}: {error}") from error
        _heed_cancellation(before)

    async def messages(self) -> AsyncIterator[tuple[str, bytes, bool]]:
        try:
            async for message in self._client.messages:
                if isinstance(message.payload, bytes):  # never anything else for what came from a broker
                    yield message.topic.value, message.payload, message.retain
        except aiomqtt.MqttError as error:
            raise LinkDown(str(error)) from error


@asynccontextmanager
async def connect(
    url: str,
    username: str,
    password: str,
    *,
    protocol: int = 4,
    tls: ssl.SSLContext | None = None,
    will: tuple[str, bytes] | None = None,
) -> AsyncIterator[Link]:
    """Connect to ``mqtt://host[:port]`` or ``mqtts://host[:port]``; ``protocol`` 4 is MQTT 3.1.1, 5 is MQTT 5.

    ``will`` is topic and payload that the broker publishes when this connection breaks. A user and password inside the
    URL take precedence. Raises ``LinkDown``, ``LinkRefused``, ``ValueError``.
    """
    address = Address.parse(url)
    if protocol not in (4, 5):
        raise ValueError(f"Expected MQTT protocol 4 (3.1.1) or 5, got {protocol}")
    username = address.user or username
    client = aiomqtt.Client(
        address.host,
        address.port,
        username=username,
        password=(address.password if address.user else password) or None,
        protocol=aiomqtt.ProtocolVersion(protocol),
        clean_session=True if protocol == 4 else None,
        keepalive=30,
        tls_context=(tls or ssl.create_default_context()) if address.tls else None,
        socket_options=SOCKET_OPTIONS,
        will=aiomqtt.Will(will[0], will[1], qos=1) if will is not None else None,
    )
    try:
        async with client:
            yield MqttLink(client)
    except MqttConnectError as error:
        # 3.1.1 codes 4 and 5, MQTT 5 codes 134 and 135: bad user name or password, not authorised.
        if _number(error.rc) in (4, 5, 134, 135):
            raise LinkRefused(
                f"{address} refuses the login {username!r}: {error}. Expected the participant's name and the "
                f"password that the broker knows for it"
            ) from error
        raise LinkDown(f"{address}: {error}") from error
    except aiomqtt.MqttError as error:
        raise LinkDown(f"{address}: {error}") from error


async def keep_connected(
    make: Callable[[], AbstractAsyncContextManager[Link]],
    begin: Callable[[Link], Awaitable[None]],
    *work: Callable[[Link], Coroutine[None, None, None]],
    lost: Callable[[str, float], None],
) -> NoReturn:
    """Keep a connection: ``begin`` what each needs, then do all ``work`` until it is lost, and make it again.

    ``lost`` hears why and after how many seconds, more or less, it will be made again. Ends only with what ``make``,
    ``begin`` or ``work`` raise, other than ``LinkDown``.
    """
    delay = _AGAIN_AFTER
    while True:
        try:
            async with make() as link:
                await begin(link)
                delay = _AGAIN_AFTER
                async with asyncio.TaskGroup() as group:
                    for each in work:
                        group.create_task(each(link))
            why = "it ended"
        except LinkDown as error:
            why = str(error)
        except ExceptionGroup as errors:
            down, others = errors.split(LinkDown)
            if others is not None:
                raise _first(others) from errors
            why = str(_first(errors if down is None else down))
        lost(why, delay)
        await asyncio.sleep(delay * (0.5 + secrets.randbelow(1000) / 1000))
        delay = min(delay * 2, _AGAIN_AFTER_MAX)


def _first(errors: ExceptionGroup[Exception]) -> Exception:
    """The first of the errors that ended the tasks of a connection."""
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, ExceptionGroup) else first
