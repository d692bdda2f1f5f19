"""What ``make test`` runs: ruff, mypy and the tests, on each Python from 3.11 that this machine has.

A promise such as "same log, same bytes out, on any Python from 3.11" is only worth what is run. So every interpreter
at hand gets a venv of its own. The main Python runs the suite with the engine compiled, where that could be done, and
what concerns the engine once more with its source interpreted; the others run the source: all of them engine and log,
the newest also gateway and settlement. Each run is told which engine it is to load, and the test session makes sure of
it. What runs again draws fewer random examples: it may differ in how the source is run, not in what it means. A table
at the end says which ran and which are absent. Versions are looked for on PATH and where pyenv and uv keep theirs, and
each is tried before it is believed: a pyenv shim named ``python3.12`` exists and fails where 3.12 is not selected.

It runs inside ``.venv`` (the main Python) but imports the standard library only.
Words given on the command line go to pytest: ``python deploy/test_matrix.py tests/log -x``.
Exit status: 0 when everything passed, 1 when anything failed.
"""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST = 11
NEWEST = 14  #: the newest that the dependencies are known to ship wheels for
#: Tests that wait for processes leave the cores to others, so two workers pay even on one core.
WORKERS = str(max(2, min(8, os.cpu_count() or 1)))
PROBE = (
    "import ensurepip, sys, sysconfig, venv\n"
    "final = sys.version_info.releaselevel == 'final' and not sysconfig.get_config_var('Py_GIL_DISABLED')\n"
    "print(*sys.version_info[:3] if final else 'unsuitable')"
)

COMPILED, INTERPRETED = "compiled", "interpreted"
#: Profile of Hypothesis with few examples: what runs a second time is to find how a run differs, not what it means.
QUICK = "quick"
#: What is left to other Pythons: see the markers in pyproject.toml.
ONCE = ["-m", "not slow and not once"]
#: What the engine's source decides.
ENGINE = ["tests/engine", "tests/log", "tests/cases"]
#: What the newest of the other Pythons might do differently: all but what starts many processes (demo, client) and the
#: documents. Those between run what the engine's source decides.
NEWEST_OTHER = [*ENGINE, "tests/settlement", "tests/gateway"]


@dataclass
class Row:
    """One line of the table."""

    what: str
    outcome: str
    passed: str = ""
    skipped: str = ""
    seconds: float | None = None

    @property
    def failed(self) -> bool:
        return self.outcome.startswith("FAILED")


def candidates(minor: int) -> Iterator[Path]:
    """Where a ``python3.minor`` may be, the most deliberate choice first."""
    home = Path.home()
    for folder in os.get_exec_path():
        yield Path(folder, f"python3.{minor}")
        yield Path(folder, "python3")
    pyenv = Path(os.environ.get("PYENV_ROOT") or home / ".pyenv", "versions")
    uv = Path(os.environ.get("UV_PYTHON_INSTALL_DIR") or home / ".local/share/uv/python")
    for pattern, base in ((f"3.{minor}.*", pyenv), (f"cpython-3.{minor}.*", uv)):
        if base.is_dir():
            for version in sorted(base.glob(pattern), reverse=True):
                yield version / "bin" / f"python3.{minor}"


def find_python(minor: int) -> tuple[Path, str] | None:
    """The first released CPython 3.minor that runs and can make a venv, with its full version."""
    for path in candidates(minor):
        if not os.access(path, os.X_OK):
            continue
        try:
            answer = subprocess.run([path, "-c", PROBE], capture_output=True, text=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired):
            continue
        words = answer.stdout.split()
        if answer.returncode == 0 and words[:2] == ["3", str(minor)]:
            return path, ".".join(words)
    return None


def run(*command: str | Path, **environment: str) -> tuple[int, float]:
    """Run in the project's folder with the output shown; exit status and seconds."""
    print("\n$", *(f"{name}={value}" for name, value in environment.items()), *command, flush=True)
    started = time.monotonic()
    surroundings = {**os.environ, **environment}
    status = subprocess.run(command, cwd=ROOT, env=surroundings, stdin=subprocess.DEVNULL, check=False).returncode
    return status, time.monotonic() - started


def is_compiled() -> bool:
    """Whether ``make build`` has compiled the engine for this Python, from the sources as they are."""
    return not runpy.run_path(str(ROOT / "engine" / "backend.py"))["outdated"]()


def check(what: str, *command: str | Path) -> Row:
    status, seconds = run(*command)
    return Row(what, "passed" if status == 0 else f"FAILED ({status})", seconds=seconds)


def run_pytest(what: str, python: Path, arguments: list[str], backend: str, profile: str = "default") -> Row:
    """Run the suite on one backend; the counts come from pytest's own record, not from its prose."""
    what = f"{what}, {backend}"
    with tempfile.TemporaryDirectory(prefix="dojima-test-") as folder:
        record = Path(folder, "junit.xml")
        status, seconds = run(
            *(python, "-m", "pytest", "-n", WORKERS, f"--junitxml={record}", *arguments),
            DOJIMA_BACKEND=backend,
            DOJIMA_PROFILE=os.environ.get("DOJIMA_PROFILE", profile),
        )
        if not record.exists():
            return Row(what, f"FAILED ({status}, no test ran)", seconds=seconds)
        suites = ElementTree.parse(record).getroot().findall("testsuite")
    total, bad, skipped = (
        sum(int(suite.get(name, 0)) for suite in suites for name in names)
        for names in (("tests",), ("failures", "errors"), ("skipped",))
    )
    outcome = "passed" if status == 0 else f"FAILED ({bad} of {total}, exit status {status})"
    return Row(what, outcome, str(total - bad - skipped), str(skipped), seconds)


def prepare(minor: int) -> tuple[Row, Path | None]:
    """Make the venv of another Python: a row to amend, and the interpreter in the venv when there is one."""
    found = find_python(minor)
    if found is None:
        return Row(f"Python 3.{minor}", "absent"), None
    path, version = found
    venv = ROOT / f".venv-3.{minor}"
    made = subprocess.run(
        ["sh", "deploy/venv.sh", venv.name, path],
        cwd=ROOT,
        env={**os.environ, "EXTRA": "test"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if made.returncode:
        print(made.stdout, flush=True)
        return Row(f"Python {version}", f"FAILED to install ({made.returncode})"), None
    return Row(f"Python {version}", "installed"), venv / "bin" / "python"


def table(rows: list[Row]) -> str:
    lines = [("", "outcome", "passed", "skipped", "seconds")]
    lines += [(r.what, r.outcome, r.passed, r.skipped, "" if r.seconds is None else f"{r.seconds:.0f}") for r in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def main(arguments: list[str]) -> int:
    started = time.monotonic()
    tools = Path(sys.executable).parent
    version = ".".join(map(str, sys.version_info[:3]))
    others = [minor for minor in range(NEWEST, OLDEST - 1, -1) if minor != sys.version_info.minor]
    with ThreadPoolExecutor(max_workers=1) as pool:  # pip works while the main Python is checked
        prepared = pool.map(prepare, others)
        rows = [
            check("ruff check", tools / "ruff", "check", "."),
            check("ruff format", tools / "ruff", "format", "--check", "."),
            check("mypy --strict", tools / "mypy"),
        ]
        python = Path(sys.executable)
        if is_compiled():
            rows.append(run_pytest(f"Python {version}", python, arguments, COMPILED))
            rows.append(run_pytest(f"Python {version}", python, arguments or ENGINE, INTERPRETED, QUICK))
        else:
            rows.append(Row(f"Python {version}, {COMPILED}", "absent"))
            rows.append(run_pytest(f"Python {version}", python, arguments, INTERPRETED))
        suite = NEWEST_OTHER
        for row, other in prepared:
            if other:
                row = run_pytest(row.what, other, [*ONCE, *(arguments or suite)], INTERPRETED, QUICK)
                suite = ENGINE
            rows.append(row)
    print(f"\n{table(rows)}\n")
    wanted = os.environ.get("DOJIMA_REQUIRE", "")
    print(f"mosquitto: {shutil.which('mosquitto', path=os.environ.get('PATH', '') + ':/usr/sbin') or 'absent'}", end="")
    print(f", required: {wanted or 'nothing'}, {time.monotonic() - started:.0f} s in all")
    return 1 if any(row.failed for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
