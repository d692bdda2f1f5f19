"""A command that cannot do what was asked says why in one line, and to a program on standard output as well."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway.cli import main
from gateway.cli.main import COMMANDS, load
from gateway.cli.run import _Screen


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def invoke(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(load(COMMANDS[words[0]][0]), words[1:], env={"COLUMNS": "400"})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        ("run --dir {dir} --config {dir}/none.toml", 2, "none.toml"),
        ("run --dir {dir} --broker http://x", 2, "broker.url"),
        ("demo --dir {dir} --crash-at 300%", 2, "Expected a point of the day"),
        (
            "demo --dir {dir} --tokens 1 --broker mqtt://127.0.0.1:{port}",
            2,
            "Expected a broker that lets 'exchange'",
        ),
        ("ledger {dir}/none", 2, "outbox"),
        ("book KDX-1 --url mqtt://127.0.0.1:{port} --timeout 0.3", 2, "No connection to the broker"),
        ("client orders -p alfa --url mqtt://127.0.0.1:{port} --timeout 0.3", 2, "No connection to the broker"),
        ("client orders -p Alfa", 2, "Alfa"),
        ("replay {dir}/none", 2, "none"),
        ("replay {dir} --order 0", 2, "Expected PARTICIPANT/CLIENT_ORDER_ID or an order number, got '0' - at --order"),
        ("export {dir}/none --out {dir}/out", 2, "Expected an order log"),
        ("config show --dir {dir}/none", 2, "Expected the directory of an exchange"),
    ],
)
def test_under_json_the_reason_is_on_standard_output_too(tmp_path: Path, words: str, status: int, says: str) -> None:
    given = words.format(dir=tmp_path, port=free_port()).split()
    found, out, err = invoke(*given, "--json")
    assert found == status
    text = json.loads(out.splitlines()[-1])["error"]["what"]
    assert says in text
    assert text in err
    assert "Traceback" not in err


def test_settings_of_a_directory_that_is_not_there_are_not_ok(tmp_path: Path) -> None:
    status, out, err = invoke("config", "check", "--dir", str(tmp_path / "none"))
    assert (status, out) == (2, "")
    assert f"found none at {tmp_path / 'none'} - at --dir" in err


def test_a_failed_run_is_an_event_like_the_others(tmp_path: Path) -> None:
    _, out, _ = invoke("run", "--dir", str(tmp_path), "--broker", "http://x", "--json")
    assert json.loads(out)["event"] == "failed"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_demo_that_a_signal_ends_says_which(tmp_path: Path, number: int, status: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway.cli.main", "demo", "--json", "--tokens", "1", "--dir", str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ),
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if "broker at" in line:
            break
    process.send_signal(number)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == status
    assert "ended before its time" in json.loads(out)["error"]["what"]


def test_the_screen_shows_what_operators_ask_whatever_their_ids_look_like(capsys: pytest.CaptureFixture[str]) -> None:
    screen = _Screen()
    screen("operator", answer=["acted", "olga", "[/r]", ["suspend", "KDX-1"], "omar", "c", False])
    screen("operator", answer=["refused", "olga", "r-2", 3, "Expected [/a] book", "", "", False])
    shown = capsys.readouterr().out
    assert "operator olga, [/r]: acted: suspend KDX-1" in shown
    assert "operator olga, r-2: refused: Expected [/a] book" in shown


def test_an_engine_that_must_be_compiled_anew_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ImportError("Expected the compiled engine to be built from the sources beside it")

    monkeypatch.setattr(main, "import_module", refuse)
    result = CliRunner().invoke(main.app, ["replay", "x", "--json"], env={"COLUMNS": "400"})
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"]["what"].startswith("Expected the compiled engine")
    assert result.stderr.startswith("dojima: Expected the compiled engine")


@pytest.mark.parametrize("words", ["client reports -p alfa", "operator reports -o olga"])
def test_a_report_number_beyond_the_contract_is_refused_before_anything_is_sent(words: str) -> None:
    status, _, said = invoke(
        *words.split(), "--url", "mqtt://127.0.0.1:1", "--timeout", "0.1", "--from", str(2**53 + 1)
    )
    assert status == 2
    assert "--from" in said
    assert str(2**53) in said
