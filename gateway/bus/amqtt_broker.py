"""The embedded broker's process: ``python -m gateway.bus.amqtt_broker``, started by ``embedded.py``.

One line of JSON on standard input says port and passwords, one line on standard output answers with the port; then the
end of standard input is the end of this process.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import os
import re
import signal
import sys
from dataclasses import dataclass, field
from typing import Any, Final

from amqtt.adapters import StreamReaderAdapter, StreamWriterAdapter
from amqtt.broker import Broker
from amqtt.contexts import Action
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin
from amqtt.session import Session

from engine.commands import PARTICIPANT_PATTERN
from gateway.bus import topics
from gateway.bus.embedded import EXCHANGE_LOGIN
from gateway.child import die_with_parent

_is_name: Final = re.compile(PARTICIPANT_PATTERN).fullmatch  # match lets "alfa\n" through


class ByName(BaseAuthPlugin):  # type: ignore[misc,type-arg,unused-ignore]
    """Everybody logs in with a name; the exchange and its operators prove who they are."""

    @dataclass
    class Config:
        passwords: dict[str, str] = field(default_factory=dict)  #: of the exchange and its operators, by login

    async def authenticate(self, *, session: Session) -> bool | None:
        # A name with a slash or a wildcard in it would be the address of an operator, or of everybody.
        if not _is_name(session.username or ""):
            return False
        password = self.config.passwords.get(session.username or "")
        if password is not None and not hmac.compare_digest((session.password or "").encode(), password.encode()):
            return False
        if session.username == EXCHANGE_LOGIN:
            return True
        # amqtt publishes a last will without asking the access list.
        return not session.will_flag or session.will_topic == topics.inbound(session.username or "")


class OwnTopics(BaseTopicPlugin):  # type: ignore[misc,unused-ignore]
    """The access list of ``deploy/mosquitto/acl``, for this broker."""

    @dataclass
    class Config:
        operators: list[str] = field(default_factory=list)

    async def topic_filtering(
        self, *, session: Session | None = None, topic: str | None = None, action: Action | None = None
    ) -> bool | None:
        if session is None or topic is None:
            return False
        if session.username == EXCHANGE_LOGIN:
            return True
        login = session.username or ""
        # An operator is no member: its own two topics, and nothing of what members have.
        address = topics.operator(login) if login in self.config.operators else login
        if action == Action.PUBLISH:
            return bool(topic == topics.inbound(address) or _is_copy(topic, login, "in"))
        return bool(
            topic in (topics.outbound(address), topics.STATUS)
            or topic.startswith(f"{topics.ROOT}/md/")
            or _is_copy(topic, login, "out")
        )


def _is_copy(topic: str, login: str, way: str) -> bool:
    """Whether a topic is one at which this login reads a member's reports; of which members, the exchange decides."""
    start = f"{topics.ROOT}/{topics.copy(login, '')}"
    member, _, end = topic.removeprefix(start).partition("/")
    return topic.startswith(start) and bool(member) and end == way


async def serve(port: int, passwords: dict[str, str]) -> None:
    here = "gateway.bus.amqtt_broker"
    broker = Broker(
        {
            # "external": the sockets are ours, so that port 0 can be asked what it became
            "listeners": {"default": {"type": "external"}},
            "plugins": {
                f"{here}.ByName": {"passwords": passwords},
                f"{here}.OwnTopics": {"operators": sorted(passwords.keys() - {EXCHANGE_LOGIN})},
            },
        }
    )
    await broker.start()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await broker.external_connected(StreamReaderAdapter(reader), StreamWriterAdapter(writer), "default")

    try:
        server = await asyncio.start_server(connected, "127.0.0.1", port)
    except OSError as error:
        print(json.dumps({"error": f"port {port}: {error}"}), flush=True)
        os._exit(1)
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    await server.serve_forever()


def main() -> None:
    # os.read, not sys.stdin: a buffered reader would sit on the end of the stream that ``watch`` waits for.
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(0, 1)
        if not piece:
            sys.exit("Expected one line of JSON on standard input")
        line += piece
    start: dict[str, Any] = json.loads(line)
    die_with_parent(start["parent"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.disable(logging.ERROR)  # amqtt tells every client's coming and going as warnings
    asyncio.run(serve(start["port"], start["passwords"]))


if __name__ == "__main__":
    main()
