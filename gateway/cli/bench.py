"""``dojima bench``: what this machine does, said together with the circumstances.

The benchmarks live beside the packages, in ``benchmarks/`` of a checkout; this command makes the workloads, runs the
real book on them and prints one table. Each run compares its result with what the workload says is right, and a
difference fails the command: a wrong book has no speed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table

ROOT: Final = Path(__file__).resolve().parents[2]
WORKLOADS: Final = ("steady", "deep", "sweep", "multi")
#: What the runner must reproduce of the workload's own JSON.
CHECKED: Final = ("trades", "volume", "notional", "resting", "checksums")


def _python(*arguments: str | Path) -> str:
    """Standard output of ``python -m …`` in the checkout; what went wrong is shown and ends the command."""
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        typer.echo(done.stdout, nl=False)
        typer.echo(f"python -m {' '.join(map(str, arguments))} ended with {done.returncode}", err=True)
        raise typer.Exit(1)
    return done.stdout


def _run_workloads(directory: Path, commands: int, console: Console) -> tuple[dict[str, Any], list[str]]:
    """Each workload through the real book; the answers by name, and what was wrong with them."""
    answers, wrong = {}, []
    for name in WORKLOADS:
        with console.status(f"{name}: {commands:,} commands"):
            _python("benchmarks.generate", directory, str(commands), "--only", name)
            answer = json.loads(_python("benchmarks.workload", directory / f"{name}.bin", "--json"))
        right = json.loads((directory / f"{name}.json").read_text())
        wrong += [
            f"{name}.{key}: expected {right[key]}, got {answer[key]}" for key in CHECKED if answer[key] != right[key]
        ]
        answers[name] = answer
    return answers, wrong


def _table(answers: dict[str, Any], commands: int) -> Table:
    table = Table(
        title=f"The book: neutral workloads of {commands:,} commands, one Python call per command",
        caption="not included: identities, events, log, MQTT; every trade is checked",
    )
    table.add_column("workload")
    for column in ("ns best", "ns median", "commands/s", "trades", "resting", "backend"):
        table.add_column(column, justify="right")
    for name, answer in answers.items():
        median = round(answer["ns_median"])
        cells = (round(answer["ns_best"]), median, 10**9 // max(1, median), answer["trades"], answer["resting"])
        table.add_row(name, *(f"{cell:,}" for cell in cells), answer["backend"])
    return table


def bench(
    commands: Annotated[int, typer.Option(min=10_000, help="Commands in each workload.")] = 100_000,
    kinds: Annotated[bool, typer.Option(help="Also measure each kind of command (pytest-benchmark).")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")] = False,
) -> None:
    """Measure this machine: neutral workloads and micro benchmarks.

    Makes four neutral streams of orders (the same bytes everywhere), runs them through the real book, checks every
    trade, and prints nanoseconds per command with the circumstances. Needs a checkout with `benchmarks/`.
    """
    if not (ROOT / "benchmarks").is_dir():
        typer.echo(f"Expected a checkout with benchmarks/, found none in {ROOT}", err=True)
        raise typer.Exit(2)
    console = Console(stderr=as_json)
    environment = json.loads(_python("benchmarks.machine", "--json"))
    if not as_json:
        typer.echo(_python("benchmarks.machine"))
    with tempfile.TemporaryDirectory(prefix="dojima-bench-") as scratch:
        answers, wrong = _run_workloads(Path(scratch), commands, console)
        if not as_json:
            console.print(_table(answers, commands))
        measured = []
        if kinds:
            record = Path(scratch, "kinds.json")
            columns = "--benchmark-columns=min,median,max,rounds"
            with console.status("each kind of command"):
                report = _python(
                    *("pytest", "benchmarks", "-q", "--benchmark-only", columns, f"--benchmark-json={record}")
                )
            measured = json.loads(record.read_text())["benchmarks"]
            if not as_json:
                typer.echo(report)
    if as_json:
        kinds_ms = {m["name"]: {key: m["stats"][key] * 1000 for key in ("min", "median", "max")} for m in measured}
        typer.echo(json.dumps({"environment": environment, "workloads": answers, "kinds_ms": kinds_ms, "wrong": wrong}))
    for line in wrong:
        typer.echo(line, err=True)
    if wrong:
        raise typer.Exit(1)
