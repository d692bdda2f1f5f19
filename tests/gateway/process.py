"""For tests: the exchange as a process of its own (``dojima run``), and members on a real broker."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiomqtt
import msgspec

from engine.commands import MemberCommand
from engine.log import encode_commands
from gateway.bus import topics
from gateway.bus.messages import Inbound, Outbound, Report, Reports

#: Seconds after which silence is taken for a hang; says nothing about speed.
PATIENCE = 90

_decode = msgspec.msgpack.Decoder(Outbound).decode

#: A market that trades round the clock from its first start on, whatever day the machine thinks it is.
SETTINGS = """
[clock]
start = "2026-11-24T10:00:00+09:00"
[settlement]
enabled = false
[[instrument]]
instrument = "CONT"
profile = "CONTINUOUS"
rules = { self_trade = "none" }
"""


class ExchangeProcess:
    """A running ``dojima run``."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said: list[dict[str, Any]] = []

    @classmethod
    async def start(cls, directory: Path, *options: str, wait: str = "ready", **environment: str) -> ExchangeProcess:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gateway.cli.main", "run", "--dir", str(directory), "--json", *options,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, **environment},
        )  # fmt: skip
        found = cls(process)
        if wait:
            await found.until(wait)
        return found

    async def until(self, event: str) -> dict[str, Any]:
        """Read what it says up to an event, unless it said so already. Fails when it ends first."""
        assert self.process.stdout is not None
        for line in self.said:
            if line["event"] == event:
                return line
        while text := await asyncio.wait_for(self.process.stdout.readline(), PATIENCE):
            self.said.append(json.loads(text))
            if self.said[-1]["event"] == event:
                return self.said[-1]
        raise AssertionError(f"the exchange ended before it said {event}: {self.said}")

    @property
    def url(self) -> str:
        return next(str(line["url"]) for line in self.said if line["event"] == "listening")

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()

    async def stop(self) -> int:
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(self.process.wait(), PATIENCE)


@asynccontextmanager
async def exchange(directory: Path, *options: str, **environment: str) -> AsyncIterator[ExchangeProcess]:
    running = await ExchangeProcess.start(directory, *options, **environment)
    try:
        yield running
    finally:
        if running.process.returncode is None:
            await running.kill()


class Member:
    """A member with a plain MQTT client and no cleverness at all: what it publishes it publishes once."""

    def __init__(self, name: str, client: aiomqtt.Client) -> None:
        self.name = name
        self.client = client
        self.got: list[Any] = []
        self._changed = asyncio.Event()

    async def read(self) -> None:
        async for message in self.client.messages:
            if message.topic.value == topics.outbound(self.name):
                assert isinstance(message.payload, bytes)
                self.got.append(_decode(message.payload))
                self._changed.set()

    async def send(self, *commands: MemberCommand, **fields: Any) -> None:
        raw = msgspec.Raw(encode_commands(list(commands)))
        await self.publish(msgspec.msgpack.encode(Inbound(commands=raw, **fields)))

    async def publish(self, payload: bytes, *, retain: bool = False) -> None:
        await self.client.publish(topics.inbound(self.name), payload, qos=1, retain=retain)

    def reports(self) -> dict[int, Report]:
        """Every report by its number; the same number twice must say the same."""
        found: dict[int, Report] = {}
        for message in self.got:
            if isinstance(message, Reports):
                for number, report in enumerate(message.reports, start=message.first):
                    assert found.setdefault(number, report) == report
        return found

    async def until(self, condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def until_reports(self, count: int) -> dict[int, Report]:
        await self.until(lambda: len(self.reports()) >= count)
        return self.reports()


@asynccontextmanager
async def member(url: str, name: str, password: str | None = None, **options: Any) -> AsyncIterator[Member]:
    host, _, port = url.rpartition("@")[2].rpartition("//")[2].partition(":")
    options.setdefault("identifier", f"member-{name}")
    async with aiomqtt.Client(
        host,
        int(port),
        username=name,
        password=password,
        socket_options=((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),),
        max_inflight_messages=1000,
        **options,
    ) as client:
        found = Member(name, client)
        codes = await client.subscribe(topics.outbound(name), qos=1)
        assert not any(int(getattr(code, "value", code)) >= 0x80 for code in codes)
        reader = asyncio.create_task(found.read())
        try:
            yield found
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
