"""The exchange's connection through TLS, on the event loop that it runs on (uvloop where it is)."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from pathlib import Path
from typing import Literal

import pytest

from gateway.bus.client import Address, MqttBus
from gateway.cli.run import _loop_factory
from tests.gateway.process import member
from tests.gateway.test_mqtt import Heard
from tests.mosquitto.broker import Mosquitto
from tests.require import require


def certificate(directory: Path) -> tuple[Path, Path]:
    """Of 127.0.0.1, signed by itself; and its key."""
    cert, key = directory / "cert.pem", directory / "key.pem"
    subprocess.run(
        [require("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True,
    )  # fmt: skip
    return cert, key


@pytest.mark.parametrize("protocol", ["3.1.1", "5"])
def test_the_exchange_reads_and_answers_through_tls_and_trusts_no_stranger(
    tmp_path: Path, protocol: Literal["3.1.1", "5"]
):
    cert, key = certificate(tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    listener = f"\nlistener {port} 127.0.0.1\ncertfile {cert}\nkeyfile {key}\n"

    async def run(broker: Mosquitto) -> None:
        address = Address("127.0.0.1", port, True, "exchange", broker.password("exchange"))
        stranger = MqttBus(address, session="other", will=b"", protocol=protocol)  # trusts the machine's authorities
        bus = MqttBus(address, session="exchange", will=b"", protocol=protocol, ca_file=str(cert))
        never, door = Heard(), Heard()
        tasks = [asyncio.create_task(stranger.run(never)), asyncio.create_task(bus.run(door))]
        await door.until(lambda: door.times_open == 1)
        connection = bus._connection.transport.get_extra_info("socket")  # type: ignore[union-attr]
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        async with member(broker.url, "alfa", broker.password("alfa")) as alfa:
            large = bytes(range(256)) * 1_000
            for payload in (b"1", large, b"3"):
                await alfa.publish(payload)
            await door.until(lambda: len(door.got) == 3)
            assert [delivery.payload for delivery in door.got] == [b"1", large, b"3"]
            bus.acknowledge(door.got)
        assert never.times_open == 0
        await stranger.close()
        await bus.close()
        await asyncio.gather(*tasks)

    with (
        Mosquitto(tmp_path / "broker", "alfa", extra=listener) as broker,
        asyncio.Runner(loop_factory=_loop_factory()) as on,
    ):
        on.run(run(broker))
