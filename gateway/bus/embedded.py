"""The broker that comes along: amqtt in a process of its own, for laptops, demos and tests.

It listens on the loopback interface only and ends with its parent, however the parent ends: the child watches a pipe
whose other end dies with the parent, and on Linux asks the kernel for a signal as well. Clients log in by name, without
a password; only the exchange's own login has one, made anew at every start, and so have its operators. So this keeps
members from mixing up their topics, not from lying about who they are. Nor is it fair: it handles messages in their
order of arrival, so one member's flood is served before what the others send after it. Real use is mosquitto with
``deploy/mosquitto``.

``amqtt_broker.py`` is the child.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final

#: Login of the exchange; no member may be called so.
EXCHANGE_LOGIN: Final = "exchange"


class BrokerFailed(Exception):
    """The embedded broker did not start."""


def operator_password(directory: Path, name: str) -> str:
    """Of an operator of the exchange in ``directory``; made once, readable for whoever owns the exchange."""
    path = directory / "secrets" / name
    with contextlib.suppress(FileNotFoundError):
        return path.read_text(encoding="utf-8").strip()
    path.parent.mkdir(mode=0o700, exist_ok=True)
    password = secrets.token_urlsafe(18)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(password + "\n")
    return password


class EmbeddedBroker:
    """A running amqtt process. ``url`` is for members (they log in by name), ``exchange_url`` for the exchange."""

    def __init__(self, process: subprocess.Popen[str], port: int, secret: str) -> None:
        self.process = process
        self.port = port
        self.url = f"mqtt://127.0.0.1:{port}"
        self.exchange_url = f"mqtt://{EXCHANGE_LOGIN}:{secret}@127.0.0.1:{port}"

    @classmethod
    async def start(cls, port: int = 0, operators: Mapping[str, str] | None = None) -> EmbeddedBroker:
        """Start one. Port 0 takes a free one; ``operators`` are passwords by login.

        Raises ``BrokerFailed`` with what the child said.
        """
        # Launched here, not in the thread: the kernel's parent-death signal goes by the thread that forked.
        process, secret = cls._launch(port, operators or {})
        return await asyncio.to_thread(cls._ready, process, secret)

    @classmethod
    def start_blocking(cls, port: int = 0) -> EmbeddedBroker:
        return cls._ready(*cls._launch(port, {}))

    @staticmethod
    def _launch(port: int, operators: Mapping[str, str]) -> tuple[subprocess.Popen[str], str]:
        secret = secrets.token_urlsafe(24)
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway.bus.amqtt_broker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the exchange, which then announces its end over this broker
        )
        assert process.stdin is not None
        passwords = {**operators, EXCHANGE_LOGIN: secret}
        # By the pipe, not by arguments: those every user of the machine can read.
        process.stdin.write(json.dumps({"port": port, "passwords": passwords, "parent": os.getpid()}) + "\n")
        process.stdin.flush()
        return process, secret

    @classmethod
    def _ready(cls, process: subprocess.Popen[str], secret: str) -> EmbeddedBroker:
        assert process.stdout is not None
        answer = process.stdout.readline()
        try:
            return cls(process, json.loads(answer)["port"], secret)
        except (ValueError, KeyError):
            cls(process, 0, "").stop()
            raise BrokerFailed(f"Expected the embedded broker to name its port, got {answer.strip()!r}") from None

    def stop(self) -> None:
        """End it. Safe to repeat."""
        if self.process.stdin is not None:
            self.process.stdin.close()  # its end
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    async def __aenter__(self) -> EmbeddedBroker:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.stop)
