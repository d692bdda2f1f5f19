"""The example of the documents draws what was exported, and its curves cross where the auction found its price."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from engine.log import FileStorage
from gateway.cli.export import COLUMNS
from gateway.cli.main import app
from tests.log.day import OTHER, TOKEN, write_day

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "explore.py"


@pytest.fixture(scope="module")
def explore() -> ModuleType:
    spec = importlib.util.spec_from_file_location("explore", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["csv", "both"])
def tables(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "both":
        pytest.importorskip("pyarrow", reason="the extra dojima[research] brings it")
    write_day(FileStorage(tmp_path / "exchange"))
    out = tmp_path / "tables"
    arguments = [
        "export",
        str(tmp_path / "exchange"),
        "--out",
        str(out),
        "--format",
        request.param,
        "--depth-every",
        "1",
    ]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    return out


def test_the_page_has_every_instrument_and_auction(explore: ModuleType, tables: Path, tmp_path: Path) -> None:
    page = tmp_path / "market.html"
    assert explore.main([str(tables), "--out", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"<h2>(.*?)</h2>", text) == [TOKEN, OTHER]
    assert "OpeningAuction 20251125: 12 at 100,500" in text
    assert "ClosingAuction 20251125: 2 at 101,000" in text
    assert "://" not in text  # nothing is fetched from anywhere
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(drawings) == 6  # trades and depth of each, two auctions
    for drawing in drawings:
        ElementTree.fromstring(drawing)
        assert "nan" not in drawing


def test_demand_meets_supply_at_the_auctions_price(explore: ModuleType, tables: Path) -> None:
    auctions = explore.load(tables, "auctions")
    books = explore.states(row for row in explore.load(tables, "book") if row["instrument"] == TOKEN)
    assert auctions
    for auction in auctions:
        demand, supply = explore.curves(books[auction["sequence"], "before_auction"])
        wanted = min(quantity for price, quantity in demand if price <= auction["price"])
        offered = max(quantity for price, quantity in supply if price <= auction["price"])
        assert min(wanted, offered) == auction["volume"]
        assert wanted - offered == auction["surplus"]


def test_one_instrument_can_be_drawn_alone(explore: ModuleType, tables: Path) -> None:
    assert f"<h2>{OTHER}</h2>" in explore.page(tables, OTHER)
    assert f"<h2>{TOKEN}</h2>" not in explore.page(tables, OTHER)


def test_what_is_not_there_is_said(
    explore: ModuleType, tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert explore.main([str(tables), "--instrument", "NO", "--out", str(tmp_path / "page")]) == 2
    assert f"Expected an instrument of {TOKEN}, {OTHER}, got 'NO'" in capsys.readouterr().err
    assert explore.main([str(tmp_path), "--out", str(tmp_path / "page")]) == 2
    assert "dojima export" in capsys.readouterr().err


def test_the_example_knows_which_columns_are_text(explore: ModuleType) -> None:
    text = {name for columns in COLUMNS.values() for name, kind in columns.items() if kind is str}
    assert text == explore.TEXT
