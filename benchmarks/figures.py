"""How is a figure said? A median with its extremes over rounds; percentiles with the worst beside them.

A round runs every case once, so that what disturbs the machine for a while disturbs all cases alike, and their medians
can be compared. All benchmarks of this folder print and hand over their figures through here.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

from benchmarks import machine

Case = TypeVar("Case")
Answer = TypeVar("Answer")

PERCENTILES = (50, 90, 99, 99.9)


def spread(values: Sequence[float], digits: int = 1) -> dict[str, float]:
    """Median, least and largest of what the rounds gave."""
    return {
        "median": round(statistics.median(values), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
        "rounds": len(values),
    }


def percentiles(values_ns: Sequence[int]) -> dict[str, float]:
    """In microseconds: p50, p90, p99, p99.9 and max. A percentile is a value that was measured (nearest rank)."""
    ordered = sorted(values_ns)
    found = {
        f"p{percent:g}": round(ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] / 1000, 1)
        for percent in PERCENTILES
    }
    found["max"] = round(ordered[-1] / 1000, 1)
    return found


def percentiles_over(rounds: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Each percentile's median, least and largest over rounds."""
    return {name: spread([answer[name] for answer in rounds]) for name in rounds[0]}


def interleaved(cases: Sequence[Case], rounds: int, run: Callable[[Case], Answer]) -> dict[Case, list[Answer]]:
    """Every case once per round, in turn."""
    answers: dict[Case, list[Answer]] = {case: [] for case in cases}
    for _ in range(rounds):
        for case in cases:
            answers[case].append(run(case))
    return answers


def parser(module: str, doc: str | None) -> argparse.ArgumentParser:
    """Options that every benchmark has."""
    made = argparse.ArgumentParser(prog=f"python -m benchmarks.{module}", description=(doc or "").partition("\n")[0])
    made.add_argument("--rounds", type=positive, default=5, help="how often each case is run, in turns")
    made.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    return made


def positive(text: str) -> int:
    """For argparse."""
    if not text.replace("_", "").isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text!r}")
    return int(text)


def numbers(text: str) -> list[int]:
    """For argparse: ``1,16,64``."""
    return [positive(part) for part in text.split(",")]


def cells(value: Mapping[str, float]) -> list[str]:
    """Median, least and largest for a row of a table."""
    digits = 0 if value["median"] >= 100 else 1 if value["median"] >= 10 else 2
    return [f"{value[name]:,.{digits}f}" for name in ("median", "min", "max")]


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    made = Table(title=title, title_justify="left", title_style="bold")
    made.add_column(columns[0], no_wrap=True)
    for column in columns[1:]:
        made.add_column(column, justify="right")
    for row in rows:
        made.add_row(*row)
    return made


def finish(result: dict[str, Any], show: Callable[[Console, dict[str, Any]], None], *, as_json: bool) -> int:
    """Print a result with its circumstances; the status to leave with: 1 when something was wrong.

    ``result`` has ``wrong``, one line for everything that was not as it must be.
    """
    if as_json:
        print(json.dumps(result))
    else:
        # A file or a pipe has no width; 80 columns would break the tables.
        console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
        show(console, result)
        console.print(f"{result['workload']['about']}", style="dim", soft_wrap=True)
        console.print(machine.banner(result["environment"]), style="dim", soft_wrap=True)
        console.print("checked: " + ("WRONG" if result["wrong"] else result["checked"]), style="dim", soft_wrap=True)
    for line in result["wrong"]:
        print(line, file=sys.stderr)
    return 1 if result["wrong"] else 0
