"""Two operators and a market: over a road that loses messages, on real brokers, and from a shell."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from engine.commands import (
    ExchangeCommand,
    Kill,
    LimitRow,
    SetLimitTable,
    SetPhase,
    SetReferencePrice,
    SuspendInstrument,
)
from engine.events import OperatorActed, OperatorDeclined, OperatorRequested, ReferencePriceSet
from engine.log.replay import open_log
from engine.types import Phase, Reason
from gateway.cli.main import COMMANDS, load
from gateway.cli.operator import answered, parse
from gateway.client import BadCommand, CannotConnect, MessageRefused, NotAnswering
from gateway.operator_client import OperatorClient, RequestRefused
from tests.gateway.market import market
from tests.gateway.process import ExchangeProcess
from tests.gateway.road import Road
from tests.gateway.test_operators import OPERATORS
from tests.mosquitto.broker import Mosquitto

PRICE = SetReferencePrice("CONT", 120)


async def test_one_asks_the_other_confirms_and_both_read_the_same():
    async with market(text=OPERATORS) as m:
        road = Road(m)
        async with road.operator("olga") as olga, road.operator("omar") as omar:
            reports = olga.reports(), omar.reports()
            assert isinstance(await olga.request(SuspendInstrument("CONT")), OperatorActed)
            asked = await olga.request(PRICE)
            assert isinstance(asked, OperatorRequested)
            assert await omar.waiting() == [asked]
            acted = await omar.confirm("olga", asked.request_id)
            assert (acted.operator, acted.confirmed_by) == ("olga", "omar")
            assert await olga.outcome(asked) == acted
            assert m.exchange.engine.instrument("CONT").reference_price == 120

            read = [[await anext(stream) for _ in range(5)] for stream in reports]
            assert read[0] == read[1]
            assert [report.number for report in read[0]] == list(range(read[0][0].number, read[0][0].number + 5))
            assert isinstance(read[0][-2].event, ReferencePriceSet)


async def test_the_exchange_s_refusals_raise_with_their_reason():
    async with market(text=OPERATORS) as m:
        road = Road(m)
        async with road.operator("olga") as olga:
            with pytest.raises(RequestRefused, match="NONE") as refused:
                await olga.request(SuspendInstrument("NONE"))
            assert refused.value.reason == Reason.UNKNOWN_INSTRUMENT
            asked = await olga.request(PRICE)
            with pytest.raises(RequestRefused, match="another operator than olga"):
                await olga.confirm("olga", asked.request_id)
            assert isinstance(await olga.decline("olga", asked.request_id), OperatorDeclined)
            assert isinstance(await olga.outcome(asked), OperatorDeclined)  # type: ignore[arg-type]
            with pytest.raises(BadCommand, match="<= "):
                await olga.request(SetReferencePrice("CONT", 2**60))
        with pytest.raises(MessageRefused, match="Expected an operator of this market"):
            await road.operator("alfa").__aenter__()
        with pytest.raises(BadCommand, match="Olga"):
            road.operator("Olga")


async def test_what_is_lost_on_the_road_is_sent_again_and_happens_once():
    async with market(text=OPERATORS) as m:
        road = Road(m)
        async with road.operator("olga") as olga, road.operator("omar") as omar:
            stream = omar.reports()
            for number in range(6):
                road.deaf, road.mute = number % 3, 2 * (number % 4)
                asked = await olga.request(SetReferencePrice("CONT", 100 + number))
                if number == 3:
                    road.cut()
                road.deaf, road.mute = number % 2, number % 5
                await omar.confirm("olga", asked.request_id)
            prices = []
            while len(prices) < 6:
                event = (await asyncio.wait_for(anext(stream), 10)).event
                prices += [event.price] if isinstance(event, ReferencePriceSet) else []
            assert prices == [100, 101, 102, 103, 104, 105]


async def test_reports_are_read_from_any_number_on():
    async with market(text=OPERATORS) as m:
        road = Road(m)
        async with road.operator("olga") as olga:
            for _ in range(3):
                await olga.request(SetReferencePrice("CONT", 120))
        omar = road.operator("omar", start_at=2)
        stream = omar.reports()
        async with omar:
            read = [await asyncio.wait_for(anext(stream), 10) for _ in range(omar.last_report - 1)]
        assert [report.number for report in read] == list(range(2, omar.last_report + 1))
        assert isinstance(read[-1].event, OperatorRequested)


async def test_an_exchange_that_does_not_answer_and_a_broker_that_is_not_there_are_told_apart():
    async with market(text=OPERATORS) as m:
        road = Road(m)
        road.deaf = 10_000
        with pytest.raises(NotAnswering):
            await OperatorClient("", "olga", link=road.connect, timeout=0.2).__aenter__()
    with pytest.raises(CannotConnect, match=r"127\.0\.0\.1:1"):
        await OperatorClient("mqtt://127.0.0.1:1", "olga", timeout=0.5).__aenter__()


# --- from a shell ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ("suspend instrument=KDX-2107", SuspendInstrument("KDX-2107")),
        ("phase instrument=A phase=PreOpenNCP", SetPhase("A", Phase.PRE_OPEN_NCP)),
        ("phase instrument=A phase=closed", SetPhase("A", Phase.CLOSED)),
        ("reference instrument=A price=99000", SetReferencePrice("A", 99_000)),
        ("kill", Kill()),
        ("kill participant=alfa", Kill("alfa")),
        ("set_limit_table table=t effective=0 rows=[[0,500]]", SetLimitTable("t", 0, [LimitRow(0, 500)])),
    ],
)
def test_words_of_a_shell_make_a_command(words: str, command: ExchangeCommand):
    name, *settings = words.split()
    assert parse(name, settings) == command


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("stop", "Expected one of set_tick_table"),
        ("suspend", "Expected instrument=…"),
        ("suspend code=A", "a field of instrument"),
        ("suspend instrument", "FIELD=VALUE"),
        ("reference instrument=A price=cheap", "price"),
        ("reference instrument=A price=-1", ">= 0"),
        ("phase instrument=A phase=lunch", "preopen"),
        ("set_limit_table table=t effective=0 rows=[[0]]", "rows"),
    ],
)
def test_words_that_make_no_command_are_refused_with_what_was_expected(words: str, told: str):
    name, *settings = words.split()
    with pytest.raises(ValueError, match=r"(?s).*") as refused:
        parse(name, settings)
    assert told in str(refused.value)


async def test_whoever_waits_for_a_second_operator_is_told_that_the_time_is_over():
    class Forgotten:
        async def outcome(self, asked: OperatorRequested) -> None:
            await asyncio.Event().wait()

        async def waiting(self) -> list[OperatorRequested]:
            return []

    asked = OperatorRequested("olga", "r-1", Kill(), until_ns=1)
    async with asyncio.timeout(20):
        assert await answered(Forgotten(), asked) is None  # type: ignore[arg-type]


async def shell(*words: str) -> tuple[int, list[dict[str, Any]]]:
    """``dojima operator … --json``: exit status and the lines on standard output."""

    def run() -> tuple[int, list[dict[str, Any]]]:
        result = CliRunner().invoke(load(COMMANDS["operator"][0]), [*words, "--json"])
        return result.exit_code, [json.loads(line) for line in result.stdout.splitlines()]

    return await asyncio.to_thread(run)


SETTINGS = (
    OPERATORS
    + """
[clock]
start = "2026-11-24T10:00:00+09:00"
[settlement]
enabled = false
[[instrument]]
instrument = "CONT"
profile = "CONTINUOUS"
"""
)


@pytest.mark.parametrize("kind", ["embedded", "mosquitto"])
async def test_a_request_outlives_kill_9_of_the_exchange_and_the_log_names_both(kind: str, tmp_path: Path):
    (tmp_path / "dojima.toml").write_text(SETTINGS)
    broker = Mosquitto(tmp_path / "broker", "alfa", options=("--operator", "olga", "omar"))
    options, environment = [], {}
    connection: dict[str, list[str]] = {name: ["-o", name, "--dir", str(tmp_path)] for name in ("olga", "omar", "alfa")}
    if kind == "mosquitto":
        broker.start()
        options, environment = ["--broker", broker.url], {"DOJIMA_BROKER_PASSWORD": broker.password("exchange")}
        for name, words in connection.items():
            words[2:] = ["--url", broker.url, "--password", broker.password(name)]
    try:
        exchange = await ExchangeProcess.start(tmp_path, *options, **environment)
        status, said = await shell(
            "request", "reference", "instrument=CONT", "price=120", "--id", "r-1", *connection["olga"]
        )
        assert (status, [line["event"] for line in said]) == (0, ["requested"])
        assert said[0]["command"] == {"event": "reference", "instrument": "CONT", "price": 120}
        status, said = await shell("confirm", "olga", "r-1", *connection["olga"])
        assert (status, said[0]["reason"]) == (1, "not_permitted")
        if kind == "mosquitto":  # to the embedded broker a member is a stranger on the operators' side
            status, said = await shell("waiting", "--timeout", "2", *connection["alfa"])
            assert status == 2, said
        await exchange.kill()

        exchange = await ExchangeProcess.start(tmp_path, *options, **environment)
        status, said = await shell("waiting", *connection["omar"])
        assert (status, [line["request_id"] for line in said]) == (0, ["r-1"])
        status, said = await shell("confirm", "olga", "r-1", *connection["omar"])
        assert (status, said[0]["event"], said[0]["confirmed_by"]) == (0, "acted", "omar")
        status, said = await shell("reports", *connection["olga"])
        assert status == 0
        assert [line["number"] for line in said] == list(range(1, len(said) + 1))
        assert [line["event"] for line in said][-3:] == ["refused", "reference", "acted"]
        assert await exchange.stop() == 0
    finally:
        if exchange.process.returncode is None:
            await exchange.kill()
        broker.stop()
    asked = [command for _, _, who, command in open_log(tmp_path).commands() if getattr(command, "operator", "")]
    assert [command.operator for command in asked] == ["olga", "olga", "omar"]  # type: ignore[union-attr]
