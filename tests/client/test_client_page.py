"""``docs/client.md`` is true: its first program runs, and what it names exists."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

import gateway.client
from gateway.client import Client, ClientError, Order
from gateway.livebook import LiveBook
from gateway.liveorders import LiveOrders
from gateway.orderbook import OrderBook
from tests.client.fake import FakeExchange

PAGE = (Path(__file__).parents[2] / "docs" / "client.md").read_text(encoding="utf-8")


async def test_the_first_program_of_the_page_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    exchange = FakeExchange()

    def client_of(url: str, **options: Any) -> Client:
        return Client(url, link=exchange.connect, **options)

    program = re.search(r"```python\n(import asyncio.*?)```", PAGE, re.DOTALL)
    assert program is not None
    names: dict[str, Any] = {}
    monkeypatch.setattr(asyncio, "run", lambda main: names.update(started=main))
    monkeypatch.setattr(gateway.client, "Client", client_of)
    exec(program[1], names)
    running = asyncio.create_task(names["started"])
    async with asyncio.timeout(20):
        while not exchange.open:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        (order_id,) = exchange.open
        exchange.fill(order_id, 10, 100_000)
        await running
    assert capsys.readouterr().out == "10 at 100000 from beta\n"


def test_every_call_and_every_error_that_the_page_names_exists() -> None:
    owners = [
        (Client, r"client\.(\w+)\("),
        (Order, r"order\.(\w+)\("),
        (LiveBook, r"(?<![.\w])book\.(\w+)\("),
        (LiveOrders("KDX-2107"), r"live\.(\w+)"),
        (OrderBook, r"live\.book\.(\w+)"),
    ]
    for owner, calls in owners:
        named = set(re.findall(calls, PAGE))
        assert named
        assert {name for name in named if not hasattr(owner, name)} == set()
    tree = re.search(r"```text\nClientError\n(.*?)```", PAGE, re.DOTALL)
    assert tree is not None
    errors = re.findall(r"^  (\w+)", tree[1], re.MULTILINE)
    assert set(errors) == {
        cls.__name__ for cls in ClientError.__subclasses__() if cls.__module__ == ClientError.__module__
    }
