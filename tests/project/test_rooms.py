"""Which room may use what, read from the source: the engine is a pure function, and only the bus knows MQTT.

The promise "same log, same bytes out" rests on what the engine cannot reach: no clock, no randomness, no sockets, no
floats. So the engine's imports are an allow-list, and each rule here is first shown to catch a bad sample.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: All that the engine may import. Nothing here can tell the time, draw a number or reach outside.
ENGINE_MAY_IMPORT = {
    *("__future__", "abc", "bisect", "collections", "dataclasses", "datetime", "enum", "functools", "hashlib", "heapq"),
    *("itertools", "math", "operator", "re", "struct", "typing", "zlib"),
    *("engine", "librt", "msgspec", "mypy_extensions", "sortedcontainers"),
}
#: Looks for binaries and reads one variable of the environment, on import and never again.
BACKEND_MAY_IMPORT = ENGINE_MAY_IMPORT | {"importlib", "json", "os", "pathlib", "sys", "types"}
#: The log writes files, in a thread of its own where the caller wishes.
LOG_MAY_IMPORT = ENGINE_MAY_IMPORT | {"errno", "fcntl", "io", "os", "pathlib", "sys", "threading"}
#: What a gateway needs to ask for something and to say what happened; of ``core`` the ``Engine``, the only way in.
OUTER_ROOMS = {
    *("calendar", "checks", "commands", "core", "events", "faults", "log", "profiles", "tables", "ticket", "types"),
    "wire",
}
ROOMS = {path.stem for path in (ROOT / "engine").iterdir()}
DATABASES = {"psycopg", "sqlalchemy", "sqlite3", "web3"}
MQTT = {"aiomqtt", "amqtt", "asyncio_mqtt", "gmqtt", "paho"}
#: Answers differ from run to run (hash seed, address) or come from outside. Where ids are found in a table, a hash that
#: nobody can foresee is wanted; that nothing comes of it but places, test_core_library.py says with several seeds.
HASHES = {"names.py"}
NEVER_CALLED_IN_ENGINE = {"hash", "id", "open", "input", "eval", "exec", "__import__", "print"}
CLOCKS = {"now", "today", "utcnow", "fromtimestamp", "time", "time_ns", "monotonic", "monotonic_ns", "perf_counter"}


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and full name of everything imported, in functions and under TYPE_CHECKING too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.module or "." * node.level


def outside(source: str, allowed: set[str]) -> list[str]:
    """Imports of ``source`` whose top-level package is not allowed."""
    return [f"{line}: {name}" for line, name in imports(ast.parse(source)) if name.partition(".")[0] not in allowed]


def inner_rooms(source: str) -> list[str]:
    """Rooms of the engine that ``source`` imports and that are nobody's but the engine's: books, matching, auctions."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module or ''}.{name}" for name in names]
        rooms = {name.split(".")[1] for name in names if name.startswith("engine.")}
        found += [f"{node.lineno}: {room}" for room in rooms & ROOMS - OUTER_ROOMS]
    return found


def floats(source: str) -> list[str]:
    """Where ``source`` could bring a float into being: a literal, a true division, the word itself.

    Where ``pathlib`` is imported, which only the log may, a division joins paths.
    """
    tree = ast.parse(source)
    joins_paths = "pathlib" in {name for _, name in imports(tree)}
    found = []
    for node in ast.walk(tree):
        literal = isinstance(node, ast.Constant) and isinstance(node.value, float | complex)
        division = isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div) and not joins_paths
        word = isinstance(node, ast.Name) and node.id in {"float", "Decimal", "Fraction"}
        if literal or division or word:
            assert isinstance(node, ast.expr | ast.stmt)
            found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


def impure(source: str, excused: frozenset[str] = frozenset()) -> list[str]:
    """Awaits, clocks, and calls whose answer is not a function of the arguments' values, but for those ``excused``."""
    tree = ast.parse(source)
    # A class may say how its values hash; what the engine must not do is look at the number.
    definitions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "__hash__"]
    excepted = {node for definition in definitions for node in ast.walk(definition)}
    found = []
    for node in ast.walk(tree):
        if node in excepted:
            continue
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith):
            found.append(f"{node.lineno}: async")
        elif isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else ""
            method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            if name in NEVER_CALLED_IN_ENGINE - excused or method in CLOCKS:
                found.append(f"{node.lineno}: {ast.unparse(node.func)}()")
        elif isinstance(node, ast.Global):
            found.append(f"{node.lineno}: global {', '.join(node.names)}")
    return found


def sources(folder: str, *, without: tuple[str, ...] = ()) -> list[Path]:
    return [
        path
        for path in sorted((ROOT / folder).rglob("*.py"))
        if not any(path.is_relative_to(ROOT / other) for other in without)
    ]


def each(paths: list[Path]) -> pytest.MarkDecorator:
    """One test per file, named after it."""
    return pytest.mark.parametrize("path", [pytest.param(p, id=str(p.relative_to(ROOT))) for p in paths])


# --- the rules hold ----------------------------------------------------------------------------------------------


@each(sources("engine", without=("engine/log", "engine/backend.py")))
def test_the_engine_imports_nothing_that_could_surprise_it(path: Path) -> None:
    assert outside(path.read_text(), ENGINE_MAY_IMPORT) == []


def test_what_chooses_the_engine_reaches_little_else() -> None:
    assert outside((ROOT / "engine" / "backend.py").read_text(), BACKEND_MAY_IMPORT) == []


@each(sources("engine/log"))
def test_the_log_reaches_files_and_nothing_else(path: Path) -> None:
    assert outside(path.read_text(), LOG_MAY_IMPORT) == []


@each(sources("engine"))
def test_no_float_exists_in_the_engine(path: Path) -> None:
    assert floats(path.read_text()) == []


@each(sources("engine", without=("engine/log",)))
def test_the_engine_waits_for_nothing_and_asks_nobody(path: Path) -> None:
    assert impure(path.read_text(), frozenset({"hash"} if path.name in HASHES else ())) == []


@each(sources("gateway", without=("gateway/bus",)))
def test_only_the_bus_knows_mqtt(path: Path) -> None:
    found = [f"{line}: {name}" for line, name in imports(ast.parse(path.read_text())) if name.split(".")[0] in MQTT]
    assert found == []


@each(sources("gateway"))
def test_the_gateway_decides_no_trade(path: Path) -> None:
    assert inner_rooms(path.read_text()) == []


@each(sources("gateway", without=("gateway/settlement", "gateway/cli")))
def test_only_settlement_knows_databases(path: Path) -> None:
    """The shell, too, knows how theirs can fail, to say it with advice."""
    used = [f"{line}: {name}" for line, name in imports(ast.parse(path.read_text())) if name.split(".")[0] in DATABASES]
    assert used == []


@each(
    sources(
        "gateway",
        without=(
            "gateway/bus",
            "gateway/cli",
            "gateway/client.py",
            "gateway/clock.py",
            "gateway/demo",
            "gateway/operator_client.py",
        ),
    )
)
def test_the_exchange_has_its_clock_handed_in_and_draws_no_numbers(path: Path) -> None:
    """So that a simulator can drive it. The bus waits for sockets; clients and people live in their own time."""
    own = {"random", "secrets", "time", "uuid"}
    assert [f"{line}: {name}" for line, name in imports(ast.parse(path.read_text())) if name in own] == []


@each(sources("gateway/settlement"))
def test_settlement_knows_neither_bus_nor_exchange(path: Path) -> None:
    rooms = ("gateway.bus", "gateway.sequencer", "gateway.service", "gateway.cli", "gateway.client", "gateway.demo")
    assert [name for _, name in imports(ast.parse(path.read_text())) if name.startswith(rooms)] == []


@pytest.mark.parametrize("package", ["engine", "engine.log", "gateway.settlement"])
def test_it_can_be_imported_without_mqtt_and_without_an_event_loop_of_others(package: str) -> None:
    """What counts is what gets loaded, through whatever chain of imports."""
    code = (
        "import importlib, pkgutil, sys\n"
        f"package = importlib.import_module({package!r})\n"
        f"for module in pkgutil.walk_packages(package.__path__, {package + '.'!r}):\n"
        "    importlib.import_module(module.name)\n"
        "print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    forbidden = (
        MQTT | {"uvloop"} | ({"asyncio", "gateway", "socket", "random"} if package.startswith("engine") else set())
    )
    assert not forbidden & {name.partition(".")[0] for name in loaded.split()}


# --- the rules can fail ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "import time",
        "from time import time_ns",
        "import random as r",
        "from gateway import clock",
        "import os.path",
        "def f():\n    import socket",
        "if TYPE_CHECKING:\n    import asyncio",
        "from . import book",
    ],
)
def test_a_surprising_import_is_noticed(line: str) -> None:
    assert outside(f"import struct\n{line}\n", ENGINE_MAY_IMPORT)


@pytest.mark.parametrize(
    "line", ["x = 1.5", "x = a / b", "x /= 2", "x = float(y)", "def f(x: float) -> int: ...", "1e3"]
)
def test_a_float_is_noticed(line: str) -> None:
    assert floats(line)


@pytest.mark.parametrize(
    "line",
    [
        "from engine.matching import continuous",
        "from engine.matching.itayose import equilibrium",
        "from engine import matching",
        "import engine.trading",
        "def f():\n    from engine.quotes import Quoting",
    ],
)
def test_a_gateway_that_matches_is_noticed(line: str) -> None:
    assert inner_rooms(f"from engine import Engine\n{line}\n")


def test_whole_numbers_are_no_floats() -> None:
    assert floats("x = (a // b) % 10\nx //= 2\ny: int = 1_000") == []


@pytest.mark.parametrize(
    "line",
    ["async def f(): ...", "datetime.datetime.now()", "date.today()", "hash(x)", "open('f')", "def f():\n    global x"],
)
def test_an_impure_call_is_noticed(line: str) -> None:
    assert impure(line)
