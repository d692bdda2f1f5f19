"""``dojima export``: the tables say what the log says, in CSV and Parquet alike, and a doubtful log gives none."""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from engine.commands import AmendOrder, BustTrade, Command, ListInstrument, NewOrder, SetCalendar, SetPhase, StartDay
from engine.core import Engine
from engine.events import Accepted, AuctionUncrossed, Cancelled, Event, Traded
from engine.faults import InvariantBroken
from engine.log import FileStorage, Log
from engine.log.replay import replay
from engine.types import OrderType, Phase, Side, TimeInForce
from gateway.cli import export as module
from gateway.cli.export import COLUMNS, Exporter, Format
from gateway.cli.main import app
from tests.log.day import HEADER, OTHER, TOKEN, Exchange, buy, sell, write_day

ARROW = importlib.util.find_spec("pyarrow") is not None
needs_arrow = pytest.mark.skipif(not ARROW, reason="pyarrow is not installed (the extra dojima[research] brings it)")
Row = dict[str, str]


@pytest.fixture
def day(tmp_path: Path) -> Path:
    """The log of a short day with a bit of everything."""
    place = tmp_path / "exchange"
    write_day(FileStorage(place))
    return place


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, ["export", *map(str, arguments)], env={"COLUMNS": "200"})


def read(directory: Path, table: str) -> list[Row]:
    with (directory / f"{table}.csv").open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def exported(place: Path, out: Path, *options: str) -> dict[str, list[Row]]:
    answer = run(place, "--out", out, "--format", "csv", *options)
    assert answer.exit_code == 0, answer.output
    return {name: read(out, name) for name in COLUMNS}


def what_happened(place: Path) -> Iterator[Event]:
    events: list[Event] = []
    replay(place, on_events=lambda sequence, time_ns, who, command, answer: events.extend(answer)).reader.close()
    yield from events


def test_every_trade_of_the_log_is_a_row(day: Path, tmp_path: Path) -> None:
    rows = exported(day, tmp_path / "out")["trades"]
    trades = [event for event in what_happened(day) if isinstance(event, Traded)]
    assert trades
    assert [
        (int(row["trade_id"]), row["instrument"], int(row["price"]), int(row["quantity"]), row["buyer"], row["seller"])
        for row in rows
    ] == [(t.trade_id, t.instrument, t.price, t.quantity, t.buyer, t.seller) for t in trades]
    assert {row["maker"] for row in rows if row["instrument"] == TOKEN} == {"auction"}
    assert {row["maker"] for row in rows if row["instrument"] == OTHER} == {"buy"}
    assert {row["date"] for row in rows} == {"20251125"}


def test_every_accepted_order_is_one_row_with_its_whole_life(day: Path, tmp_path: Path) -> None:
    rows = exported(day, tmp_path / "out")["orders"]
    accepted = [event for event in what_happened(day) if isinstance(event, Accepted) and not event.repeat]
    by_id = {int(row["order_id"]): row for row in rows}
    assert sorted(by_id) == [event.order_id for event in accepted]
    assert len(by_id) == len(rows)
    for row in rows:
        assert row["state"] == "open" or int(row["open"]) == 0
        assert (row["state"] == "filled") == (row["filled"] == row["quantity_last"])
        assert (row["reason"] == "") == (row["state"] != "cancelled")
    amended = next(row for row in rows if row["client_order_id"] == "a-2")
    assert (amended["quantity"], amended["quantity_last"], amended["amends"]) == ("5", "4", "1")
    assert (amended["state"], amended["reason"]) == ("cancelled", "member")
    partly = next(row for row in rows if row["client_order_id"] == "a-1")
    assert (partly["filled"], partly["fills"], partly["state"]) == ("9", "2", "cancelled")


def test_auctions_stand_with_their_results(day: Path, tmp_path: Path) -> None:
    rows = exported(day, tmp_path / "out")["auctions"]
    held = [event for event in what_happened(day) if isinstance(event, AuctionUncrossed)]
    assert [(row["phase"], int(row["price"]), int(row["volume"]), int(row["surplus"])) for row in rows] == [
        (Phase(event.phase).label, event.price, event.volume, event.surplus) for event in held
    ]


def state(rows: list[Row], cause: str, number: int = 0) -> list[tuple[str, int, int, int]]:
    """(side, price, quantity, orders) of the n-th book state of that cause."""
    sequences = list(dict.fromkeys(row["sequence"] for row in rows if row["cause"] == cause))
    return [
        (row["side"], int(row["price"]), int(row["quantity"]), int(row["orders"]))
        for row in rows
        if row["cause"] == cause and row["sequence"] == sequences[number]
    ]


def test_books_are_shown_as_an_auction_finds_and_leaves_them(day: Path, tmp_path: Path) -> None:
    rows = exported(day, tmp_path / "out")["book"]
    assert state(rows, "before_auction") == [
        ("buy", 0, 3, 1),  # the market order stands before all
        ("buy", 100_500, 10, 1),
        ("buy", 99_000, 4, 1),
        ("sell", 99_500, 8, 1),
        ("sell", 100_500, 4, 1),
        ("sell", 101_000, 7, 1),
    ]
    assert state(rows, "after_auction") == [("buy", 100_500, 1, 1), ("buy", 99_000, 4, 1), ("sell", 101_000, 7, 1)]


def test_the_folded_book_is_the_engines_after_every_command(day: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    rows = exported(day, out, "--depth-every", "1")["book"]
    by_sequence: dict[int, dict[str, list[tuple[str, int, int]]]] = {}
    for row in rows:
        if row["cause"] == "every":
            found = by_sequence.setdefault(int(row["sequence"]), {}).setdefault(row["instrument"], [])
            found.append((row["side"], int(row["price"]), int(row["quantity"])))
    compared = 0
    engine = Engine()

    def compare(sequence: int, time_ns: int, who: str, command: Command, events: list[Event]) -> None:
        nonlocal compared
        for code, levels in by_sequence.get(sequence, {}).items():
            resting: dict[tuple[str, int], int] = {}
            for order in open_orders(engine):
                if order.instrument == code:
                    key = (Side(order.side).name.lower(), order.price)
                    resting[key] = resting.get(key, 0) + order.open_quantity
            assert {(side, price): quantity for side, price, quantity in levels} == resting
            compared += 1

    replay(day, engine, compare).reader.close()
    assert compared > 8


def open_orders(engine: Engine) -> list[Any]:
    return [order for participant in engine.participants() for order in engine.open_orders(participant)]


@needs_arrow
def test_parquet_holds_what_csv_holds(day: Path, tmp_path: Path) -> None:
    from pyarrow.parquet import read_table

    out = tmp_path / "out"
    assert run(day, "--out", out).exit_code == 0  # both, since pyarrow is here
    for name, columns in COLUMNS.items():
        table = read_table(out / f"{name}.parquet")
        assert table.column_names == list(columns)
        assert [{key: str(value) for key, value in row.items()} for row in table.to_pylist()] == read(out, name)
        assert read(out, name) or name == "busts"  # that day has none


@needs_arrow
def test_rows_are_written_in_groups_and_none_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyarrow.parquet import ParquetFile

    monkeypatch.setattr(module, "ROW_GROUP", 4)
    table = module.Table("auctions", tmp_path, Format.BOTH)
    for number in range(10):
        table.add(number, 1, 20261124, "A", "OpeningAuction", 5, 6, 7, 8)
        assert len(table._buffer) < 4
    table.finish()
    with ParquetFile(tmp_path / "auctions.parquet") as file:
        assert file.num_row_groups == 3
        assert file.read().column("sequence").to_pylist() == list(range(10))
    assert [row["sequence"] for row in read(tmp_path, "auctions")] == [str(number) for number in range(10)]


def test_without_pyarrow_csv_is_written_and_parquet_is_refused_with_advice(
    day: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find: Callable[[str], Any] = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pyarrow" else find(name))
    answer = run(day, "--out", tmp_path / "out")
    assert answer.exit_code == 0
    assert "dojima[research]" in answer.output
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".csv"}
    answer = run(day, "--out", tmp_path / "other", "--format", "parquet")
    assert answer.exit_code == 2
    assert "Expected pyarrow" in answer.output
    assert "dojima[research]" in answer.output
    assert not (tmp_path / "other").exists()


def test_json_names_the_files_and_their_rows(day: Path, tmp_path: Path) -> None:
    answer = json.loads(run(day, "--out", tmp_path / "out", "--format", "csv", "--json").output)
    assert answer["sequence"] == 36
    for name, table in answer["tables"].items():
        assert table["rows"] == len(read(tmp_path / "out", name))
        assert Path(table["csv"]) == tmp_path / "out" / f"{name}.csv"


def test_a_damaged_log_gives_no_tables_and_keeps_those_there_were(day: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    before = exported(day, out)
    log = day / "market.log"
    data = bytearray(log.read_bytes())
    data[400] ^= 1
    log.write_bytes(data)
    answer = run(day, "--out", out, "--format", "csv")
    assert answer.exit_code == 1, answer.output
    assert {name: read(out, name) for name in COLUMNS} == before
    assert not list(out.glob(".*"))
    fresh = tmp_path / "fresh"
    assert run(day, "--out", fresh, "--format", "csv").exit_code == 1
    assert list(fresh.iterdir()) == []


def test_a_log_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    answer = run(tmp_path / "nowhere", "--out", tmp_path / "out", "--json")
    assert answer.exit_code == 2
    assert "Expected an order log" in json.loads(answer.stdout)["error"]["what"]


def test_orders_still_open_come_last_with_what_is_left(tmp_path: Path) -> None:
    exchange = Exchange(Log.open(FileStorage(tmp_path / "exchange"), HEADER))
    exchange.commit(("", [SetCalendar(20251101, 20251231, []), ListInstrument(OTHER, "CONTINUOUS", 5000)]))
    exchange.commit(("", [StartDay(20251125), SetPhase(OTHER, Phase.CONTINUOUS)]))
    exchange.commit(("alpha", [buy("rests", 50, 5000, OTHER), buy("lower", 9, 4000, OTHER)]))
    exchange.commit(("beta", [sell("takes", 20, 4990, OTHER), AmendOrder("x", "takes", 10)]))
    exchange.commit(("alpha", [AmendOrder("y", "lower", 12, 4100)]))
    exchange.log.close()
    tables = exported(tmp_path / "exchange", tmp_path / "out")
    told = [
        (row["client_order_id"], row["state"], row["filled"], row["open"], row["price_last"], row["ended_ns"])
        for row in tables["orders"]
    ]
    ended = tables["trades"][0]["time_ns"]
    assert told == [
        ("takes", "filled", "20", "0", "4990", ended),
        ("rests", "open", "20", "30", "5000", "0"),
        ("lower", "open", "0", "12", "4100", "0"),
    ]


def test_a_busted_trade_stays_a_trade_and_is_named_as_busted(tmp_path: Path) -> None:
    exchange = Exchange(Log.open(FileStorage(tmp_path / "exchange"), HEADER))
    exchange.commit(("", [SetCalendar(20251101, 20251231, []), ListInstrument(OTHER, "CONTINUOUS", 5000)]))
    exchange.commit(("", [StartDay(20251125), SetPhase(OTHER, Phase.CONTINUOUS)]))
    exchange.commit(("alpha", [buy("b", 50, 5000, OTHER)]))
    exchange.commit(("beta", [sell("s", 20, 4990, OTHER)]))
    exchange.commit(("", [BustTrade(1)]))
    exchange.log.close()
    tables = exported(tmp_path / "exchange", tmp_path / "out")
    assert [row["trade_id"] for row in tables["trades"]] == ["1"]
    (bust,) = tables["busts"]
    assert (bust["trade_id"], bust["date"], bust["price"], bust["quantity"]) == ("1", "20251125", "5000", "20")


def test_an_order_that_waits_outside_the_book_is_in_no_book_until_it_joins(tmp_path: Path) -> None:
    exchange = Exchange(Log.open(FileStorage(tmp_path / "exchange"), HEADER))
    exchange.commit(("", [SetCalendar(20251101, 20251231, []), ListInstrument(TOKEN)]))
    exchange.commit(("", [StartDay(20251125), SetPhase(TOKEN, Phase.PRE_OPEN)]))
    late = NewOrder("late", TOKEN, Side.BUY, 5, 100, OrderType.LIMIT, TimeInForce.ON_CLOSE)
    exchange.commit(("alpha", [late, buy("day", 3, 90)]))
    phases = (Phase.PRE_OPEN_NCP, Phase.OPENING_AUCTION, Phase.BREAK, Phase.PRE_CLOSE)
    exchange.commit(("", [SetPhase(TOKEN, phase) for phase in phases]))
    exchange.log.close()
    rows = exported(tmp_path / "exchange", tmp_path / "out")["book"]
    assert state(rows, "before_auction") == [("buy", 90, 3, 1)]
    assert state(rows, "phase", -1) == [("buy", 100, 5, 1), ("buy", 90, 3, 1)]


def test_events_that_contradict_one_another_stop_the_export(tmp_path: Path) -> None:
    exporter = Exporter(tmp_path, Format.CSV)
    engine = Engine()
    commands: list[tuple[str, Command]] = [
        ("", SetCalendar(20251101, 20251231, [])),
        ("", ListInstrument(OTHER, "CONTINUOUS", 5000)),
        ("", StartDay(20251125)),
        ("", SetPhase(OTHER, Phase.CONTINUOUS)),
        ("alpha", buy("a", 5, 5000, OTHER)),
    ]
    for participant, command in commands:
        exporter.fold(engine.sequence + 1, 1, participant, command, engine.apply(command, participant, 1))
    more = Cancelled("alpha", "a", 1, OTHER, Side.BUY, 5000, 6, 0)  # type: ignore[arg-type]
    with pytest.raises(InvariantBroken):
        exporter.fold(6, 2, "alpha", commands[-1][1], [more])
    exporter.discard()
    assert list(tmp_path.iterdir()) == []
