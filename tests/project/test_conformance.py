"""The conformance table is true as far as a program can tell: every place and every test that it names is there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "conformance.md"
ROW = re.compile(r"^\| (?!Rule \|)(?P<rule>[^|]+) \| (?P<code>[^|]+) \| (?P<proof>[^|]+) \|$", re.MULTILINE)
SPAN = re.compile(r"`([^`]+)`")
#: The sections of the market rules that are rules; the others are reference.
RULES = ("1", "2", "3", "5", "6", "7", "8")


@cache
def defined(path: Path) -> frozenset[str]:
    """Every class, function, method and assigned name of a file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
    return frozenset(names)


def missing(row: re.Match[str]) -> list[str]:
    """What a row names and is not there."""
    wrong = []
    codes, proofs = SPAN.findall(row["code"]), SPAN.findall(row["proof"])
    if not codes or not proofs:
        wrong.append("Expected at least one place and one test")
    for code in codes:
        path, _, name = code.partition(":")
        if not (ROOT / path).is_file() or name not in defined(ROOT / path):
            wrong.append(f"Expected a name defined in a file, got {code}")
    for proof in proofs:
        file, _, name = proof.partition("::")
        found = list((ROOT / "tests").glob(f"**/{file}"))
        if len(found) != 1 or name not in defined(found[0]):
            wrong.append(f"Expected a test of one file, got {proof}")
    return wrong


def test_every_place_and_every_test_of_the_table_exists():
    rows = list(ROW.finditer(PAGE.read_text(encoding="utf-8")))
    assert len(rows) > 80
    assert {row["rule"]: wrong for row in rows if (wrong := missing(row))} == {}


def test_every_section_with_rules_is_in_the_table():
    found = re.findall(r"^## (\d+)\.", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert tuple(found) == RULES


@pytest.mark.parametrize(
    "row",
    [
        "| A rule | `engine/nowhere.py:Thing` | `test_tables.py::test_one_unit_at_every_price` |",
        "| A rule | `engine/tables.py:Thing` | `test_tables.py::test_one_unit_at_every_price` |",
        "| A rule | `engine/tables.py:TickTable` | `test_tables.py::test_that_is_not_there` |",
        "| A rule | somewhere | `test_tables.py::test_one_unit_at_every_price` |",
    ],
)
def test_a_row_that_names_what_is_not_there_is_noticed(row: str):
    found = ROW.search(row)
    assert found is not None
    assert missing(found)
