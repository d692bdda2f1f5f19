"""A broker's address, and what the exchange does while there is no broker at it."""

from __future__ import annotations

import asyncio
import socket

import pytest

from gateway.bus.client import SOCKET_OPTIONS, Address, MqttBus


def test_nagles_algorithm_is_off():
    with socket.socket() as plain:
        for option in SOCKET_OPTIONS:
            plain.setsockopt(*option)
        assert plain.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mqtt://host", Address("host", 1883)),
        ("mqtts://host", Address("host", 8883, tls=True)),
        ("mqtt://host:5", Address("host", 5)),
        ("mqtt://us%40er:p%3Ass@host:5", Address("host", 5, False, "us@er", "p:ss")),
    ],
)
def test_a_broker_url_names_host_port_and_login(url: str, expected: Address):
    assert Address.parse(url) == expected


@pytest.mark.parametrize(
    "url", ["http://host", "mqtt://", "host:1883", "mqtt://user:secret@host:port", "amqp://u:secret@h"]
)
def test_a_wrong_broker_url_is_refused_without_showing_its_password(url: str):
    with pytest.raises(ValueError, match="Expected a") as caught:
        Address.parse(url)
    assert "secret" not in str(caught.value)


def test_an_address_is_shown_without_its_password():
    assert str(Address.parse("mqtts://exchange:secret@host")) == "mqtts://exchange@host:8883"


async def test_a_broker_that_is_not_there_is_tried_again_until_close(unused_tcp_port: int):
    bus = MqttBus(Address("127.0.0.1", unused_tcp_port), session="s", will=b"")
    task = asyncio.create_task(bus.run(_NoDoor()))
    await asyncio.sleep(0.3)
    assert not task.done()
    bus.send("alfa", b"")  # dropped, not queued without bound
    await bus.close()
    await asyncio.wait_for(task, 10)


class _NoDoor:
    def receive(self, delivery: object) -> None:
        raise AssertionError

    def connected(self) -> None:
        raise AssertionError

    def alarm(self, text: str) -> None:
        raise AssertionError
