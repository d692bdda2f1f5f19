"""Every benchmark runs, in its smallest form, checks what it timed, and notices when that is wrong.

No test looks at a time: what is fast is said by the benchmarks on a quiet machine, not by a test on a busy one.
"""

from __future__ import annotations

import asyncio
import importlib
import itertools
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks import bus, command_path, durable, figures, flow, large, machine, mqtt_load, report, rules
from engine import CancelOrder, Engine, ListInstrument, NewOrder, Phase, SetPhase, Traded
from gateway.journal import DiskJournal
from tests.require import require

CIRCUMSTANCES = {"cpu", "cores", "system", "python", "packages", "backend", "commit"}


def answer_of(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert set(answer["environment"]) >= CIRCUMSTANCES
    assert answer["wrong"] == []
    return answer


def words(text: str) -> list[str]:
    return text.split()


def is_spread(value: dict[str, float]) -> bool:
    return 0 <= value["min"] <= value["median"] <= value["max"] and value["rounds"] >= 1


# --- the flow ----------------------------------------------------------------------------------------------------


def test_the_flow_is_the_same_on_every_machine() -> None:
    judge = flow.Judge()
    made = list(flow.messages(3_000, 16, judge))
    assert flow.digest(made) == "39391a6f"
    assert (judge.truth.commands, judge.truth.trades) == (3_000, 160)


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_workload_whose_reader_has_gone_ends_without_a_word(tmp_path: Path, options: list[str]) -> None:
    subprocess.run([sys.executable, "-m", "benchmarks.generate", tmp_path, "1000", "--only", "steady"], check=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.workload", tmp_path / "steady.bin", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert (said, process.wait()) == (b"", -signal.SIGPIPE)


def test_the_engine_makes_of_the_flow_what_the_plain_matcher_does() -> None:
    engine, judge = Engine(), flow.Judge()
    flow.open_market(engine)
    made = list(flow.messages(4_000, 7, judge))
    events = [engine.apply(command, message.participant) for message in made for command in message.commands]
    assert flow.differences(judge.truth, flow.found(events)) == []
    assert judge.truth.trades > 100
    assert judge.truth.refused > 10
    assert len({message.participant for message in made}) == flow.MEMBERS


def test_members_cancel_their_own_orders_only() -> None:
    owners: dict[str, str] = {}
    for message in flow.messages(3_000, 5, flow.Judge()):
        for command in message.commands:
            if isinstance(command, NewOrder):
                owners[command.client_order_id] = message.participant
            else:
                assert isinstance(command, CancelOrder)
                assert owners[command.client_order_id] == message.participant


def test_a_wrong_trade_is_noticed() -> None:
    engine, judge = Engine(), flow.Judge()
    flow.open_market(engine)
    made = flow.messages(4_000, 7, judge)
    events = [engine.apply(command, message.participant) for message in made for command in message.commands]
    place = next(place for place, answer in enumerate(events) if any(isinstance(event, Traded) for event in answer))
    trade = next(event for event in events[place] if isinstance(event, Traded))
    trade.price += 1
    assert [line.partition(":")[0] for line in flow.differences(judge.truth, flow.found(events))] == [
        "notional",
        "checksum",
    ]


# --- figures -----------------------------------------------------------------------------------------------------


def test_a_percentile_is_a_value_that_was_measured() -> None:
    found = figures.percentiles([1000 * number for number in range(1, 1001)])
    assert found == {"p50": 500, "p90": 900, "p99": 990, "p99.9": 999, "max": 1000}
    assert figures.percentiles([7000]) == dict.fromkeys(found, 7)


def test_cases_take_turns() -> None:
    turns = itertools.count(1)
    assert figures.interleaved(["a", "b"], 2, lambda case: next(turns)) == {"a": [1, 3], "b": [2, 4]}


# --- each benchmark ----------------------------------------------------------------------------------------------


def test_command_path(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_path.main(["--commands", "1500", "--batch", "8", "--rounds", "2", "--json"]) == 0
    answer = answer_of(capsys)
    assert list(answer["ns_per_command"]) == ["path", *command_path.STAGES]
    assert all(is_spread(value) and value["median"] > 0 for value in answer["ns_per_command"].values())
    assert answer["workload"]["commands"] == 1500
    # An accepted order stays in the engine, and what it is made of in memory.
    assert answer["kept_per_command"]["apply"]["blocks"] > 1


def test_command_path_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_path.main(["--commands", "300", "--rounds", "1"]) == 0
    shown = capsys.readouterr().out
    assert "engine " + machine.backend() in shown
    assert "digest" in shown
    assert all(stage in shown for stage in command_path.STAGES)
    assert command_path.main(["--commands", "300", "--profile"]) == 0
    assert "tottime" in capsys.readouterr().out


def test_a_benchmark_ends_with_1_when_the_market_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = flow.found
    monkeypatch.setattr(flow, "found", lambda events: right(list(events)[:-50]))
    assert command_path.main(["--commands", "1500", "--rounds", "1", "--json"]) == 1
    assert "expected 1500" in capsys.readouterr().err


def test_rules(capsys: pytest.CaptureFixture[str]) -> None:
    assert rules.main(["--commands", "600", "--rounds", "1", "--json"]) == 0
    answer = answer_of(capsys)
    assert [case["name"] for case in answer["cases"]] == [case.name for case in rules.CASES]
    assert all(is_spread(case["ratio"]) for case in answer["cases"])
    assert all(is_spread(case["ns_per_command"]) for case in answer["cases"])
    assert answer["unused_median"] > 0


def test_rules_notices_a_rule_that_changes_the_trades(capsys: pytest.CaptureFixture[str]) -> None:
    prevents = rules.Case("prevention", rules.PASSED, (("self_trade", "cancel_newest"),))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rules, "CASES", (rules.CASES[0], rules.CASES[1], prevents))
        assert rules.main(["--commands", "2000", "--rounds", "1"]) == 1
    said = capsys.readouterr()
    assert "prevention: trades: expected" in said.err
    assert "WRONG" in said.out


def test_durable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--commands",
        "800",
        "--batches",
        "1,16",
        "--rates",
        "2000",
        "--seconds",
        "0.2",
        "--rounds",
        "1",
        "--window",
        "64",
        "--json",
    ]
    assert durable.main([*options, "--directory", str(tmp_path)]) == 0
    answer = answer_of(capsys)
    assert set(answer["commands_per_second"]) == {"1", "16"}
    waits = answer["latency_us"]["2000"]["percentiles"]
    assert 0 < waits["p50"]["median"] <= waits["p99.9"]["median"] <= waits["max"]["median"]
    assert list(tmp_path.iterdir()) == []


def test_durable_counts_the_waiting_of_what_was_due_meanwhile(tmp_path: Path) -> None:
    """A market that stands still for a while delays everything due in that time, not one command."""
    made, right = durable.payloads(400, 1)
    stalled = False
    append = DiskJournal.append

    async def slow(self: DiskJournal, mark: Any, groups: Any) -> None:
        nonlocal stalled
        if not stalled:
            stalled = True
            await asyncio.sleep(0.3)
        await append(self, mark, groups)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiskJournal, "append", slow)
        found, _, wrong = durable.latency(made, right, 1_000, tmp_path)
    assert wrong == []
    # Of 400 commands, some 300 were due during the 0.3 s: the median has waited about 0.15 s, and so it says.
    assert found["p50"] > 50_000
    assert found["max"] >= 299_000


def test_durable_notices_a_log_that_says_something_else(tmp_path: Path) -> None:
    made, right = durable.payloads(200, 4)
    verify = durable.Market.verify

    def meddled(self: durable.Market, truth: flow.Truth) -> list[str]:
        self.digest.update(1, 1, [])
        return verify(self, truth)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(durable.Market, "verify", meddled)
        _, wrong = durable.rate(made, right, 64, tmp_path)
    assert wrong == ["log: replayed, it gives other events or another state"]


@pytest.mark.parametrize("broker", ["mosquitto", "embedded"])
def test_bus(broker: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if broker == "mosquitto":
        require("mosquitto")
        require("mosquitto_passwd", part_of="mosquitto")
    options = [
        "--batches",
        "16",
        "--commands",
        "320",
        "--rate",
        "200",
        "--embedded-rate",
        "100",
        "--seconds",
        "0.3",
        "--rounds",
        "1",
        "--json",
    ]
    assert bus.main([*options, "--brokers", broker, "--directory", str(tmp_path)]) == 0
    answer = answer_of(capsys)
    fast, paced = answer["rows"]
    assert (fast["broker"], fast["batch"], fast["rate"], fast["commands"]) == (broker, 16, 0, 320)
    assert is_spread(fast["commands_per_second"])
    if sys.platform == "linux":
        assert is_spread(fast["cpu_us_gateway"])
        assert is_spread(fast["cpu_us_broker"])
    assert paced["rate"] in (200, 100)
    assert paced["latency_us"]["p50"]["median"] > 0
    assert answer["absent"] == {}
    assert list(tmp_path.iterdir()) == []


def test_bus_says_when_mosquitto_is_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda *names, **options: None)
    assert bus.main(["--brokers", "mosquitto", "--batches", "1", "--rounds", "1", "--directory", str(tmp_path)]) == 0
    assert "mosquitto: mosquitto is not installed, not measured" in capsys.readouterr().out


def test_the_load_reads_packets_in_whatever_pieces_they_come() -> None:
    server, client = socket.socketpair()
    heard: list[bytes] = []
    connection = object.__new__(mqtt_load.Connection)
    connection.socket, connection.receive = client, lambda payload, now: heard.append(payload)
    connection.acknowledged, connection._in, connection._out, connection._ready = 0, bytearray(), bytearray(), []
    payloads = [b"x" * size for size in (0, 5, 130, 20_000)]
    stream = b"".join(mqtt_load.publish("a/b", number, payload) for number, payload in enumerate(payloads))
    with server, client:
        for start in range(0, len(stream), 61):
            server.sendall(stream[start : start + 61])
            connection.read()
        assert heard == payloads
        assert server.recv(100) == b"".join(b"\x40\x02" + (n + 1).to_bytes(2, "big") for n in range(4))


@pytest.fixture
def tiny_large(tmp_path: Path) -> list[str]:
    sizes = [
        "--orders",
        "300",
        "--cancels",
        "50",
        "--commands",
        "600",
        "--sizes",
        "100,400",
        "--probes",
        "300",
        "--rounds",
        "1",
    ]
    return [*sizes, "--directory", str(tmp_path)]


def test_large(tiny_large: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert large.main([*tiny_large, "--json"]) == 0
    answer = answer_of(capsys)
    assert set(answer["figures"]) == {"auction", "mass-cancel", "replay", "bare-book"}
    assert set(answer["book_size"]) == {"100", "400"}
    assert all(is_spread(value["ns_per_command"]) for value in answer["book_size"].values())


def test_an_auction_that_is_wrong_is_noticed() -> None:
    orders = [order for _, order in large.call_orders(300)]
    engine = Engine()
    for command in (
        flow.OPENING[0],
        ListInstrument(flow.CODE, reference_price=large.MIDDLE),
        flow.OPENING[2],
        SetPhase(flow.CODE, Phase.PRE_OPEN),
    ):
        engine.apply(command)
    for participant, order in large.call_orders(300):
        engine.apply(order, participant)
    engine.apply(SetPhase(flow.CODE, Phase.PRE_OPEN_NCP))
    events = engine.apply(SetPhase(flow.CODE, Phase.OPENING_AUCTION))
    assert large.wrong_auction(orders, events) == []
    trade = next(event for event in events if isinstance(event, Traded))
    trade.quantity += 1
    assert large.wrong_auction(orders, events)
    trade.quantity -= 1
    trade.buy_order_id = trade.sell_order_id
    assert large.wrong_auction(orders, events)


def test_a_book_that_forgets_is_noticed_at_every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    _, wrong = large.book_size(200, 200)
    assert wrong == []
    right = large.checksum_from
    monkeypatch.setattr(large, "checksum_from", lambda answers, numbered: right(answers, numbered + 1))
    _, wrong = large.book_size(200, 200)
    assert [line.partition(": expected ")[2].split()[0] for line in wrong] == ["checksum"]


# --- the page ----------------------------------------------------------------------------------------------------


def drawings(page: str) -> Iterator[ElementTree.Element]:
    for drawing in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        assert "nan" not in drawing
        assert "inf" not in drawing
        yield ElementTree.fromstring(drawing)


def test_the_page_draws_what_was_measured_and_names_what_was_not(
    tmp_path: Path, tiny_large: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    answers = tmp_path / "answers"
    assert not report.run("command_path", ["--commands", "300", "--rounds", "1"], answers)
    assert not report.run("large", [*tiny_large, "--only", "mass-cancel,book-size"], answers)
    assert report.main(["--only", "none", "--answers", str(answers)]) == 0
    page = (tmp_path / "answers.html").read_text(encoding="utf-8")
    assert len(list(drawings(page))) == 4  # path and memory, cost and pauses
    assert page.count("Not measured.") == 3
    assert "://" not in page  # nothing is fetched from anywhere
    assert "engine " + machine.backend() in page
    told = capsys.readouterr().out
    assert "| whole path | ns per command |" in told
    assert "| mass cancel of 50 | ms |" in told


def test_the_page_draws_peers_latencies_and_brokers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert durable.main(["--commands", "200", "--rates", "1000", "--seconds", "0.1", "--rounds", "1", "--json"]) == 0
    durable_answer = answer_of(capsys)
    spread = {"median": 5.0, "min": 4.0, "max": 9.0, "rounds": 3}
    waits = dict.fromkeys(report.PERCENTILES, spread)
    row = {"broker": "embedded", "batch": 1, "rate": 0, "commands_per_second": spread, "latency_us": waits,
           "cpu_us_gateway": spread, "cpu_us_broker": spread}  # fmt: skip
    rows: list[dict[str, Any]] = [
        {"program": "dojima", "ns": 180.0, "times_floor": 9.0, "rounds": [{"ns_median": 180.0}]},
        {"program": "other", "ns": 5000.0, "times_floor": 250.0, "rounds": [{"ns_median": 5000.0}]},
        {"program": "broken", "ns": None, "times_floor": None, "rounds": []},
    ]
    environment = machine.environment()
    page = report.page(
        {
            "durable": durable_answer,
            "bus": {
                "environment": environment,
                "rows": [row, {**row, "rate": 500, "sustained": False}],
                "absent": {"mosquitto": "mosquitto is not installed"},
            },
            "peers": {"environment": environment, "workloads": {"steady": {"commands": 5, "rows": rows}}, "status": 1},
        },
        ["something went wrong"],
    )
    assert len(list(drawings(page))) == 6
    assert "mosquitto: mosquitto is not installed, not measured" in page
    assert "500/s not kept up" in page
    assert "something went wrong" in page
    assert "This run was wrong" in page


def test_before_and_after_stand_side_by_side() -> None:
    before = {"a": report.Figure("ns", 200, 190, 210), "gone": report.Figure("ns", 1, 1, 1)}
    after = {"a": report.Figure("ns", 50, 50, 50), "new": report.Figure("ns", 1, 1, 1)}
    assert report.markdown(after, before).splitlines()[2:] == ["| a | ns | 200 (190-210) | 50.0 | 0.25 |"]


@pytest.mark.parametrize("name", report.BENCHMARKS)
def test_the_report_runs_each_benchmark_with_options_that_it_has(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        importlib.import_module(f"benchmarks.{name}").main(["--help"])
    known = capsys.readouterr().out
    assert set(re.findall(r"--[a-z-]+", " ".join(report.BENCHMARKS[name]))) <= set(re.findall(r"--[a-z-]+", known))


def test_history_follows_figures_that_are_measured() -> None:
    history = (machine.ROOT / "benchmarks" / "HISTORY.md").read_text(encoding="utf-8")
    named = {row.split("|")[1].strip() for row in history.splitlines() if row.startswith("| ")} - {"figure", "---"}
    assert named
    patterns = (
        r"book, (steady|deep|sweep|multi)(, bulk)?(, against the floor)?",
        r"whole path|stage: (decode|apply|encode|reports|market data)",
        r"durable, batches of \d+|durable at [\d,]+/s(, not kept up)?, p\d+",
        r"(mosquitto|embedded), batches of \d+(, gateway)?",
        r"(mosquitto|embedded) at [\d,]+/s(, not kept up)?, p\d+",
        r"(itayose|mass cancel|replay) of [\d,]+",
        r"bare book, (memory|longest order)",
        r"[\d,]+ resting(, memory|, longest command)?",
    )
    assert [name for name in sorted(named) if not any(re.fullmatch(pattern, name) for pattern in patterns)] == []
    assert all(re.search(r"commit [0-9a-f]{12}", entry) for entry in history.split("\n## ")[1:])
