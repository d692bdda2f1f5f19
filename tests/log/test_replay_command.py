"""``dojima replay`` tells a person and a program the truth about a log, and its exit status is the verdict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from engine.commands import BustTrade
from engine.log import FileStorage, Log
from engine.log.digest import STATE_VERSION
from gateway.cli.replay import replay
from tests.log.day import DAY, HEADER, OTHER, Exchange, buy, sell, write_day

app = typer.Typer()
app.command()(replay)


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.output


def told(*arguments: object) -> tuple[int, dict]:  # type: ignore[type-arg]
    result = CliRunner().invoke(app, [str(argument) for argument in (*arguments, "--json")])
    found = json.loads(result.stdout)
    if "error" in found:
        assert found["error"]["what"] in " ".join(result.stderr.split())
    return result.exit_code, found


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_day(FileStorage(tmp_path / "market"))
    return tmp_path / "market"


def test_a_log_that_agrees_is_summed_up_and_leaves_0(directory: Path) -> None:
    status, output = run(directory)

    assert status == 0
    assert "2025-11-25 09:00:00" in output
    assert "Opening 12 @ 100,500, Closing 2 @ 101,000" in output
    assert "36 commands replayed, 3 digest marks compared, all agrees" in output


def test_a_program_gets_the_same_as_json(directory: Path) -> None:
    status, shown = told(directory / "market.log")

    assert status == 0
    assert shown["verdict"] == "agrees"
    assert shown["sequence"] == 36
    assert shown["commands"]["new"] == 13
    assert shown["rejections"] == {
        "UNKNOWN_ORDER": 2,
        "DUPLICATE_CLIENT_ORDER_ID": 1,
        "WRONG_PHASE": 1,
        "BAD_TRANSITION": 1,
    }
    assert shown["repeats"] == 1
    assert shown["participants"] == ["alpha", "beta", "gamma"]
    assert shown["days"] == [20251125, 20251126]
    assert (shown["trades"], shown["volume"]) == (5, 44)
    assert shown["value_yen"] == 12 * 100_500 + 2 * 101_000 + 30 * 5005 // 10
    auctions = shown["instruments"]["KDX-2107"]["auctions"]
    assert [(a["date"], a["phase"], a["price"], a["volume"], a["surplus"], a["trades"]) for a in auctions] == [
        (20251125, "OpeningAuction", 100_500, 12, 1, 3),
        (20251125, "ClosingAuction", 101_000, 2, -5, 1),
    ]
    assert auctions[0]["time"] == "2025-11-25T12:50:00+09:00"
    assert shown["torn_tail"] is None
    assert shown["durable_mark"] == "agrees"


def test_busted_trades_are_counted_among_the_trades_and_by_themselves(tmp_path: Path) -> None:
    exchange = Exchange(Log.open(FileStorage(tmp_path / "market"), HEADER))
    exchange.commit(*DAY[:3])
    exchange.commit(
        ("gamma", [sell("c-1", 30, 5_000, OTHER)]),
        ("beta", [buy("b-1", 20, 5_000, OTHER), buy("b-2", 10, 5_000, OTHER)]),
        ("", [BustTrade(1)]),
    )
    exchange.log.close()

    status, output = run(tmp_path / "market")
    _, shown = told(tmp_path / "market")

    assert status == 0
    assert (shown["trades"], shown["volume"], shown["value_yen"]) == (2, 30, 15_000)
    assert shown["busted"] == {"trades": 1, "volume": 20, "value_yen": 10_000}
    assert " ".join(next(line for line in output.splitlines() if "busted" in line).replace("│", " ").split()) == (
        "of these busted 1 20 10,000"
    )


def steps(shown: dict) -> list[tuple[int, str, int]]:  # type: ignore[type-arg]
    return [(step["sequence"], step["what"], step["open_quantity"]) for step in shown["order"]["steps"]]


def test_an_order_is_explained_step_by_step(directory: Path) -> None:
    status, shown = told(directory, "--order", "alpha/a-1")

    assert status == 0
    assert steps(shown) == [
        (7, "accepted", 10),
        (16, "repeat", 10),
        (22, "phase", 10),
        (24, "auction", 10),
        (24, "fill", 5),
        (24, "fill", 1),
        (25, "phase", 1),
        (26, "cancelled", 0),
    ]
    fill = shown["order"]["steps"][4]
    assert fill["text"] == "buys 5 at 100,500 with order 4 of beta, in the auction: trade 3, settles 2025-11-27"
    assert (fill["phase"], fill["time"]) == ("OpeningAuction", "2025-11-25T12:50:00+09:00")
    assert shown["order"]["steps"][-1]["text"] == "1 open are withdrawn: its member asked for it (request a-8)"
    assert shown["order"]["filled"] == 9


def test_the_engine_s_number_leads_to_the_same_order(directory: Path) -> None:
    by_name = told(directory, "--order", "alpha/a-2")
    by_number = told(directory, "--order", "2")

    assert by_name == by_number
    assert [what for _, what, _ in steps(by_name[1])] == [
        "accepted", "amended", "phase", "refused", "auction", "unfilled", "phase", "cancelled",
    ]  # fmt: skip
    texts = [step["text"] for step in by_name[1]["order"]["steps"]]
    assert texts[3].startswith("cancel request a-7 is refused: WRONG_PHASE: ")
    assert texts[5] == "nothing for this order: its limit 99,000 is below the price"


def test_an_order_of_the_continuous_book_says_who_rested_and_who_came_in(directory: Path) -> None:
    _, maker = told(directory, "--order", "gamma/c-1")
    _, taker = told(directory, "--order", "beta/b-4")

    assert maker["order"]["steps"][1]["text"] == (
        "buys 30 at 500.5 with order 9 of beta, at its own price, from the book; beta came in: "
        "trade 1, settles 2025-11-27"
    )
    assert taker["order"]["steps"][1]["text"].startswith("sells 30 at 500.5 with order 7 of gamma, on entry")
    assert maker["order"]["steps"][-1]["text"].endswith("its member asked for a mass cancel (request c-4)")


def test_an_id_used_twice_and_an_expiry_are_explained(directory: Path) -> None:
    _, used_twice = told(directory, "--order", "beta/b-1")
    _, expired = told(directory, "--order", "beta/b-3")

    assert used_twice["order"]["steps"][1]["text"].startswith(
        "another order under the same id is refused: DUPLICATE_CLIENT_ORDER_ID"
    )
    assert expired["order"]["steps"][-1]["text"] == (
        "5 open are withdrawn: its validity ended: the book went to Closed"
    )


def test_an_order_never_accepted_is_explained_too(tmp_path: Path) -> None:
    exchange = Exchange(Log.open(FileStorage(tmp_path), HEADER))
    exchange.commit(DAY[3])  # orders before anything is listed
    exchange.log.close()
    _, shown = told(tmp_path, "--order", "alpha/a-1")

    assert steps(shown) == [(1, "refused", 0)]
    assert "UNKNOWN_INSTRUMENT" in shown["order"]["steps"][0]["text"]
    status, output = run(tmp_path, "--order", "alpha/a-1")
    assert status == 0
    assert "never accepted" in output


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("12", "Expected an order number from 1 to 11, got 12"),
        ("alpha/a-99", "alpha sent no order a-99 (but for instance a-1, a-2, a-3)"),
        ("delta/a-1", "Expected an order of a member in this log (alpha, beta, gamma), got delta/a-1"),
        ("alpha", "Expected PARTICIPANT/CLIENT_ORDER_ID or an order number"),
        ("0", "Expected PARTICIPANT/CLIENT_ORDER_ID or an order number"),
    ],
)
def test_a_wrong_order_leaves_2_and_says_what_there_is(directory: Path, order: str, expected: str) -> None:
    status, output = run(directory, "--order", order)
    assert status == 2
    assert expected in output


def test_a_missing_log_leaves_2(tmp_path: Path) -> None:
    status, output = run(tmp_path)
    assert status == 2
    assert "Expected an order log, found no" in output
    status, shown = told(tmp_path / "none.log")
    assert status == 2
    assert shown["verdict"] == "not replayed"


def test_until_stops_there_and_beyond_the_end_leaves_2(directory: Path) -> None:
    status, shown = told(directory, "--until", 10)
    assert (status, shown["sequence"], shown["complete"]) == (0, 10, False)
    status, output = run(directory, "--until", 37)
    assert status == 2
    assert "Expected a sequence of at most 36, got --until 37" in output


def test_a_torn_tail_is_reported_and_is_no_failure(directory: Path) -> None:
    size = (directory / "market.log").stat().st_size
    with open(directory / "market.log", "ab") as file:
        file.write(b"DREC half a record")
    status, shown = told(directory)
    assert status == 0
    assert shown["torn_tail"]["offset"] == size
    assert shown["torn_tail"]["bytes"] == 18
    status, output = run(directory)
    assert status == 0
    assert f"A torn write of 18 bytes at byte {size:,} was never acknowledged" in output
    assert (directory / "market.log").stat().st_size == size + 18


def test_damage_leaves_1_and_says_where_and_what_to_do(directory: Path) -> None:
    data = bytearray((directory / "market.log").read_bytes())
    at = data.index(b"b-5")
    data[at] ^= 1
    (directory / "market.log").write_bytes(data)
    offset = data.rindex(b"DREC", 0, at)

    status, shown = told(directory)
    assert status == 1
    assert shown["verdict"] == "damaged"
    assert (shown["error"]["offset"], shown["error"]["sequence"]) == (offset, 19)
    assert "good copy" in shown["error"]["advice"]
    status, output = run(directory)
    assert status == 1
    assert f"The log is damaged at byte {offset}" in output
    assert run(directory, "--until", 19)[0] == 0


def test_a_market_that_differs_from_its_record_leaves_1(tmp_path: Path) -> None:
    exchange = Exchange(Log.open(FileStorage(tmp_path), HEADER))
    exchange.commit(*DAY[:3])
    exchange.log.write_mark(exchange.engine.sequence, bytes(32), exchange.engine.mark_digest())
    exchange.log.close()

    status, shown = told(tmp_path)
    assert status == 1
    assert shown["verdict"] == "differs"
    assert shown["error"]["sequence"] == exchange.engine.sequence
    status, output = run(tmp_path)
    assert status == 1
    assert "differs" in output


def test_a_mark_in_the_terms_of_another_build_is_told_and_leaves_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.log.log.STATE_VERSION", STATE_VERSION + 1)
    write_day(FileStorage(tmp_path), mark_every=5)

    status, shown = told(tmp_path)
    assert (status, shown["digest_marks"], shown["digest_marks_of_other_states"]) == (0, 3, 3)
    status, output = run(tmp_path)
    assert status == 0
    assert "Of 3 digest marks, 3 tell the state in the terms of another build" in " ".join(output.split())


def test_a_running_exchange_is_not_disturbed(tmp_path: Path) -> None:
    exchange = Exchange(Log.open(FileStorage(tmp_path), HEADER))
    for i, message in enumerate(DAY):
        exchange.commit(message)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        status, shown = told(tmp_path)
        assert status == 0
        assert shown["sequence"] == sum(len(commands) for _, commands in DAY[: i + 1])
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    exchange.log.close()
