"""Compiled or interpreted: the same answers, byte for byte, and never one taken for the other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import get_args

import msgspec
import pytest

import engine
from engine import backend, commands, events
from engine.core import BOOKS
from tests.engine.invent import outcome

ROOT = Path(__file__).resolve().parents[2]
is_compiled = pytest.mark.skipif(bool(backend.outdated()), reason="nothing is compiled here: make build")


def python(code: str, folder: Path, chosen: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a Python that finds the engine in ``folder``."""
    environment = {name: value for name, value in os.environ.items() if name != backend.VARIABLE}
    if chosen:
        environment[backend.VARIABLE] = chosen
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


LOADED = "import engine; print(engine.BACKEND, engine.core.__file__.rpartition('.')[2])"


def test_the_engine_says_what_is_loaded_and_it_is_what_was_asked_for() -> None:
    assert os.environ.get(backend.VARIABLE, engine.BACKEND) == engine.BACKEND
    suffixes = {str(sys.modules[name].__file__).endswith(".py") for name in backend.sources() if name in sys.modules}
    assert suffixes == {engine.BACKEND == "interpreted"}


@is_compiled
@pytest.mark.parametrize(
    ("chosen", "answer"), [("", "compiled so"), ("compiled", "compiled so"), ("interpreted", "interpreted py")]
)
def test_a_variable_chooses(chosen: str, answer: str) -> None:
    assert python(LOADED, ROOT, chosen).stdout.strip() == answer


# --- a copy of the sources, with files that pass for binaries ----------------------------------------------------


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(
        ROOT / "engine", tmp_path / "engine", ignore=shutil.ignore_patterns("*.so", "_build*", "__pycache__")
    )
    return tmp_path


def pretend(folder: Path) -> None:
    """Lay an empty file beside every source, and a record that fits."""
    for path in backend.sources().values():
        backend.binary(folder / path.relative_to(ROOT)).touch()
    backend.record(folder / "engine").write_text(json.dumps({"sources": backend.hashes()}))


def test_without_binaries_the_source_runs(copy: Path) -> None:
    assert python(LOADED, copy, "").stdout.strip() == "interpreted py"


def test_what_is_asked_for_and_not_there_is_refused_with_advice(copy: Path) -> None:
    done = python("import engine", copy, "compiled")

    assert done.returncode == 1
    assert "Expected a compiled engine" in done.stderr
    assert "run `make build`" in done.stderr


def test_another_word_is_refused(copy: Path) -> None:
    assert "Expected compiled or interpreted, got 'fast' - at DOJIMA_BACKEND" in python(LOADED, copy, "fast").stderr


@pytest.mark.parametrize("chosen", ["", "compiled"])
def test_a_binary_whose_source_has_changed_refuses_to_load(copy: Path, chosen: str) -> None:
    pretend(copy)
    source = copy / "engine" / "market.py"
    source.write_text(source.read_text() + "#\n")

    done = python("import engine", copy, chosen)

    assert done.returncode == 1
    assert "got other sources of engine.market: run `make build`, or set DOJIMA_BACKEND=interpreted" in done.stderr


@pytest.mark.parametrize("harm", ["record", "binary", "source"])
def test_an_unfinished_build_refuses_to_load(copy: Path, harm: str) -> None:
    pretend(copy)
    if harm == "record":
        backend.record(copy / "engine").unlink()
    elif harm == "binary":
        backend.binary(copy / "engine" / "core.py").unlink()
    else:
        (copy / "engine" / "new.py").touch()

    assert "run `make build`" in python("import engine", copy, "").stderr


def test_the_source_runs_beside_a_stale_binary_when_asked_for(copy: Path) -> None:
    pretend(copy)
    source = copy / "engine" / "market.py"
    source.write_text(source.read_text() + "#\n")

    assert python(LOADED, copy, "interpreted").stdout.strip() == "interpreted py"


def test_a_module_of_the_other_kind_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    other = ModuleType("engine.core")
    other.__file__ = "core.so" if engine.BACKEND == "interpreted" else str(backend.sources()["engine.core"])
    monkeypatch.setitem(sys.modules, "engine.core", other)

    with pytest.raises(ImportError, match=f"Expected the {engine.BACKEND} engine, got engine.core from"):
        backend.confirm()


# --- what mypyc would spoil ------------------------------------------------------------------------------------------


def test_structs_keep_their_keywords_in_modules_that_stay_interpreted() -> None:
    for module, keywords in ((commands, {"array_like", "forbid_unknown_fields"}), (events, {"array_like"})):
        assert str(module.__file__).endswith(".py")
        structs = [
            value
            for value in vars(module).values()
            if isinstance(value, type) and issubclass(value, msgspec.Struct) and value.__module__ == module.__name__
        ]
        assert len(structs) > 10
        for struct in structs:
            config = struct.__struct_config__
            assert config.array_like, struct
            if issubclass(struct, (commands._Command, events._Event)):
                assert not config.gc, struct
                assert all(getattr(config, keyword) for keyword in keywords), struct
                assert config.tag is not None or struct.__name__.startswith("_"), struct


def test_no_compiled_module_defines_a_struct() -> None:
    for name, path in backend.sources().items():
        assert "(Struct" not in path.read_text(), name


# --- both give the same ----------------------------------------------------------------------------------------------


@is_compiled
@pytest.mark.parametrize("seed", [3, 4])
def test_both_backends_write_the_same_log_and_say_the_same(seed: int) -> None:
    outcomes = {}
    for chosen in ("compiled", "interpreted"):
        done = python(f"import runpy, sys; sys.argv[1:] = ['{seed}', '4000']; {RUN}", ROOT, chosen)
        assert done.returncode == 0, done.stderr
        outcome = json.loads(done.stdout)
        assert outcome.pop("backend") == chosen
        outcomes[chosen] = outcome

    assert outcomes["compiled"] == outcomes["interpreted"]
    happened = outcomes["compiled"]["events"]
    assert min(happened[kind] for kind in ("Accepted", "Traded", "Cancelled", "Amended", "AuctionUncrossed")) >= 10


def test_both_books_write_the_same_log_and_the_life_in_it_has_everything() -> None:
    reference, fast = (outcome(2, 4_000, book=book) for book in BOOKS)

    assert reference == fast
    # A book that contradicts itself comes of a defect, and no command brings it about.
    of_defects = {"InstrumentSetAside", "InstrumentRebuilt"}
    assert {kind.__name__ for kind in get_args(events.Event)} - set(reference["events"]) == of_defects


RUN = "runpy.run_module('tests.engine.invent', run_name='__main__')"


@pytest.mark.skipif(engine.BACKEND != "compiled", reason="the engine is not compiled here")
def test_the_compiled_engine_loads_from_any_directory(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import engine; print(engine.BACKEND)"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("compiled", "")
