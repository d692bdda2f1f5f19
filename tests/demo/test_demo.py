"""The demo in a short form, as anybody would run it: one process for the command, the rest are its children."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from engine.commands import NewOrder
from engine.log.replay import replay
from engine.types import Phase
from gateway.cli.demo import percent, spark
from gateway.demo.audit import Audit, read_journal
from gateway.demo.member import Progress
from gateway.demo.strategy import FIRMS, plan
from gateway.demo.tokens import PRICE_UNKNOWN, load_tokens
from tests.conftest import processes_with
from tests.require import require

#: A hang shows as a failure; says nothing about speed.
PATIENCE = 150.0


def start(directory: Path, *options: str, mark: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "gateway.cli.main", "demo", "--json", "--dir", str(directory), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "DEMO_TEST": mark or str(directory)},
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any], str]:
    try:
        out, err = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        pytest.fail(f"the demo hangs: {err}")
    assert out, err
    return process.returncode, json.loads(out), err


def test_a_day_is_played_settled_and_proven_and_a_changed_journal_is_noticed(tmp_path: Path) -> None:
    status, summary, err = finish(start(tmp_path, "--tokens", "3", "--seconds", "4"))

    assert (status, summary["agrees"]) == (0, True), err
    assert [check["name"] for check in summary["checks"]] == ["replay", "reports", "settlement", "reconciliation"]
    assert len(summary["tokens"]) == 3
    assert all(token["opening"]["price"] and token["closing"]["price"] for token in summary["tokens"])
    assert summary["settled"] == summary["trades"] == sum(token["trades"] for token in summary["tokens"]) > 0
    assert summary["crashes"] == summary["restarts"] == 0
    # The mistakes that the firms make on purpose are refused, each for its own reason.
    assert {"OFF_TICK", "ABOVE_LIMIT", "BELOW_LIMIT", "UNKNOWN_INSTRUMENT", "UNKNOWN_ORDER"} <= set(summary["refused"])

    # A judge that cannot say no proves nothing.
    audit = Audit()
    replay(tmp_path, None, audit.take)
    journal = tmp_path / "firms" / f"{FIRMS[0]}.journal"
    entries = [{"number": n, "sequence": s, "time_ns": t, "event": e} for n, s, t, e in read_journal(journal)]
    changes = {
        "never told": entries[:3] + entries[4:],
        "read twice": [*entries, entries[3]],
        "the log has": [*entries, {**entries[3], "number": len(entries) + 1}],
        "the log says": [*entries[:3], {**entries[3], "sequence": 1}, *entries[4:]],
    }
    assert audit.compare(FIRMS[0], journal) == len(entries)
    assert audit.found == 0
    for word, changed in changes.items():
        journal.write_bytes(b"".join(msgspec.msgpack.encode(entry) for entry in changed))
        fresh = Audit()
        fresh.told = audit.told
        fresh.compare(FIRMS[0], journal)
        assert fresh.found == 1
        assert word in fresh.problems[0]

    # The directory has a market now, and a demo begins with none.
    status, said, err = finish(start(tmp_path))
    assert status == 2
    assert "Expected a directory without a market" in said["error"]["what"]
    assert said["error"]["what"] in err


def test_kills_at_named_points_and_from_outside_lose_and_double_nothing(tmp_path: Path) -> None:
    process = start(tmp_path, "--tokens", "3", "--seconds", "6", "--crash-at", "0%,45%", "--crash-at", "100%")
    assert process.stderr is not None
    said = []
    killed = False
    for line in process.stderr:
        said.append(line)
        if "PreClose " in line and not killed:
            killed = True
            os.kill(json.loads((tmp_path / "broker.json").read_text())["pid"], signal.SIGKILL)
        if "kill -9 of the exchange at 100 %" in line:
            break
    status, summary, err = finish(process)

    assert (status, summary["agrees"]) == (0, True), "".join(said) + err
    assert killed
    assert (summary["crashes"], summary["restarts"]) == (3, 4)
    assert summary["settled"] == summary["trades"] > 0


def test_no_child_outlives_a_demo_that_is_killed(tmp_path: Path) -> None:
    if not Path("/proc/self/environ").exists():
        pytest.skip("needs /proc to see which processes are left")
    mark = f"DEMO_TEST={tmp_path}"
    process = start(tmp_path, "--tokens", "1", "--seconds", "60")
    assert process.stderr is not None
    for line in process.stderr:
        if "PreOpen" in line:
            break
    assert len(processes_with(mark)) >= 3 + len(FIRMS)
    process.kill()
    process.wait()
    until = time.monotonic() + 20
    while (left := processes_with(mark)) and time.monotonic() < until:
        time.sleep(0.05)
    process.communicate()
    assert left == {}


def test_the_same_seed_is_the_same_day_and_another_is_not() -> None:
    tokens = load_tokens()
    first, again, other = plan("sakura", tokens, 1), plan("sakura", tokens, 1), plan("sakura", tokens, 2)
    assert first == again
    assert first != other
    assert plan("momiji", tokens, 1) != first


def test_a_plan_is_in_time_order_with_ids_of_its_own() -> None:
    steps = plan("sakura", load_tokens(), 1)
    assert [(step.phase, step.permille) for step in steps] == sorted((step.phase, step.permille) for step in steps)
    orders = [step.command.client_order_id for step in steps if isinstance(step.command, NewOrder)]
    assert len(orders) == len(set(orders)) > 100
    assert {step.phase for step in steps} == {
        Phase.PRE_OPEN,
        Phase.PRE_OPEN_NCP,
        Phase.BREAK,
        Phase.PRE_CLOSE,
        Phase.PRE_CLOSE_NCP,
    }


def test_every_token_of_the_file_can_be_listed() -> None:
    tokens = load_tokens()
    assert len(tokens) == len({token.code for token in tokens}) == 35
    assert {token.reference_price for token in tokens} == {PRICE_UNKNOWN}
    kdx = next(token for token in tokens if token.code == "KDX-2107")
    assert (kdx.ledger_platform, kdx.units_outstanding) == ("Progmat", 28_000)


def test_a_token_file_with_a_mistake_names_its_place(tmp_path: Path) -> None:
    path = tmp_path / "tokens.csv"
    path.write_text("code,description,asset_class,ledger_platform,size_jpy_million,reference_price\nA,,,,2.5,\n")
    with pytest.raises(ValueError, match=r"Expected a whole number of size_jpy_million, got '2.5' - in tokens.csv:2"):
        load_tokens(path)


@pytest.mark.parametrize(("text", "number"), [("30%", 30), ("0", 0), ("100 %".replace(" ", ""), 100)])
def test_a_point_of_the_day_is_read(text: str, number: int) -> None:
    assert percent(text) == number


@pytest.mark.parametrize("text", ["101%", "-1", "half", "3.5%", ""])
def test_what_is_no_point_of_the_day_is_an_answer(text: str) -> None:
    with pytest.raises(ValueError, match="Expected a point of the day as 0% to 100%, got"):
        percent(text)


def test_moves_are_drawn_between_lowest_and_highest() -> None:
    assert spark([100, 200, 150]) == "▁█▄"
    assert spark([100, 100]) == "▁▁"
    assert spark([]) == ""


def test_a_firms_word_about_itself_survives_the_pipe() -> None:
    progress = Progress("sakura", sent=3, done=True)
    assert msgspec.json.decode(msgspec.json.encode(progress), type=Progress) == progress


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_kills_at_any_points_lose_and_double_nothing(tmp_path: Path, seed: int) -> None:
    points = ",".join(str(point) for point in sorted(Random(seed).sample(range(101), 5)))
    options = ("--tokens", "8", "--seconds", "8", "--seed", str(seed), "--crash-at", points)
    status, summary, err = finish(start(tmp_path, *options))
    assert (status, summary["agrees"], summary["crashes"]) == (0, True, 5), f"{points}: {summary['problems']} {err}"


@pytest.mark.slow
def test_a_day_on_mosquitto_with_passwords_and_an_access_list(tmp_path: Path) -> None:
    """Twice, so that the second market meets what the broker kept of the first."""
    mosquitto = require("mosquitto")
    require("mosquitto_passwd", part_of="mosquitto")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    setup = Path(__file__).parents[2] / "deploy" / "mosquitto" / "setup.py"
    subprocess.run([sys.executable, setup, tmp_path / "broker", *FIRMS, "--port", port], check=True)
    broker = subprocess.Popen([mosquitto, "-c", tmp_path / "broker" / "mosquitto.conf"], stderr=subprocess.DEVNULL)
    try:
        for run in ("first", "second"):
            road = ("--broker", f"mqtt://127.0.0.1:{port}", "--secrets", str(tmp_path / "broker" / "secrets"))
            day = ("--tokens", "3", "--seconds", "5", "--crash-at", "40%")
            status, summary, err = finish(start(tmp_path / run, *road, *day))
            assert (status, summary["agrees"], summary["restarts"]) == (0, True, 1), err
    finally:
        broker.kill()
        broker.wait()
