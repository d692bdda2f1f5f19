"""How fast is our book beside every Python package that can be installed by name and matches orders?

Each peer gets a virtual environment of its own under ``.venv-peers/`` (made on demand, versions pinned below) and a
driver that uses it as its documentation says, with nothing needless around it (``peer_drivers.py``). Ours, the floor
and the peers run the same files, one Python call per command, in turns: ours, floor, peer, peer, …, ours, floor, … so
that a slow minute of the machine falls on all. A figure is the median of the rounds; within a round each program
repeats the file, each time with a fresh book, and gives its median.

    python -m benchmarks.peers [--workloads steady,deep,sweep,multi] [--commands N] [--rounds R] [--json]

Every result is compared with what the workload says is right, as far as the peer tells what it did.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import floor, machine

ENVIRONMENTS = machine.ROOT / ".venv-peers"
DRIVERS = Path(__file__).with_name("peer_drivers.py")
OURS = "dojima"
FLOOR = "floor (C++)"
WORKLOADS = ("steady", "deep", "sweep", "multi")


class CannotRun(Exception):
    """A program has no figure in this run; the text says why."""


@dataclass(frozen=True)
class Peer:
    name: str
    requirements: tuple[str, ...]  #: exact versions of it and of what it needs on the measured path
    licence: str
    about: str  #: what it is, and what a reader of its row must know


PEERS = (
    Peer(
        "limit-order-book",
        ("limit-order-book==2.0.0",),
        "MIT",
        "C++ behind ctypes. No IOC (place, then cancel). Tells neither trades nor prices, so only what rests is "
        "compared. A cancel of an order that is gone ends the process, so each cancel asks first.",
    ),
    Peer(
        "pyorderbook",
        ("pyorderbook==0.4.9",),
        "MIT",
        "Pure Python, heap and dict; UUID per order, Decimal prices. No IOC (place, then cancel).",
    ),
    Peer(
        "lightmatchingengine",
        ("lightmatchingengine==2019.1.4",),
        "MIT",
        "Pure Python; the best price is a min() over all prices. No IOC (place, then cancel). Keeps filled orders in "
        "its map, so a late cancel may fail an assertion, which the driver takes as the refusal.",
    ),
    Peer(
        "order-matching",
        ("order-matching==0.12.0", "polars==2.1.0", "pandera==0.35.0", "loguru==0.7.3", "Faker==40.54.0"),
        "none stated in its package",
        "Pure Python, float prices. Looks for every order by walking the book. No IOC (place, then cancel).",
    ),
)


@dataclass
class Row:
    """One program on one workload."""

    program: str
    about: str = ""
    problem: str = ""  #: why there is no figure, or where the result differs from what is right
    rounds: list[dict[str, Any]] = field(default_factory=list)  #: what the program printed, round by round
    ns: float | None = None  #: median over the rounds, per command
    done: int = 0  #: commands measured; fewer than the file has when the time limit cut the run
    verified: list[str] = field(default_factory=list)
    not_told: list[str] = field(default_factory=list)
    times_ours: float | None = None
    times_floor: float | None = None


def prepare(peer: Peer) -> Path:
    """The peer's own interpreter, installed if need be. Raises ``CannotRun`` with what the installer said."""
    home = ENVIRONMENTS / peer.name
    python = home / "bin" / "python"
    installed = home / "installed.txt"
    wanted = "\n".join((sys.version, *peer.requirements))
    if installed.exists() and installed.read_text() == wanted:
        return python
    venv.create(home, with_pip=True, clear=True)
    done = subprocess.run(
        [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *peer.requirements],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        raise CannotRun(f"cannot be installed: {lines[-1] if lines else f'pip ended with {done.returncode}'}")
    installed.write_text(wanted)
    return python


def answer_of(command: list[str]) -> dict[str, Any]:
    """Run a program that prints one JSON object. Raises ``CannotRun`` with the last line of its complaint."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=machine.ROOT)
    if done.returncode:
        complaint = done.stderr.strip().splitlines()
        raise CannotRun(f"ended with {done.returncode}: {complaint[-1] if complaint else 'without a word'}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def judge(row: Row, expected: dict[str, Any], commands: int) -> None:
    """Compare the last round with what is right; a difference becomes the row's problem."""
    answer = row.rounds[-1]
    row.done = answer.get("done", commands)
    if row.done < commands:
        row.problem = (
            f"stopped by the time limit after {row.done:,} of {commands:,} commands; "
            "the figure is for those, the result not comparable"
        )
        return
    for name in ("trades", "volume", "notional", "resting", "resting_quantity", "checksums"):
        if name not in expected:
            continue
        if answer.get(name) is None:
            row.not_told.append(name)
        elif answer[name] == expected[name]:
            row.verified.append(name)
        elif name == "checksums":
            row.problem += " trades or their order differ;"
        else:
            row.problem += f" {name}: expected {expected[name]:,}, got {answer[name]:,};"
    row.problem = row.problem.strip(" ;")
    if row.verified and row.not_told == ["resting_quantity"]:
        row.not_told = []  # it adds nothing where every trade is known


def measure(
    workload: Path, rounds: int, seconds: float, repeats: int, floor_built: floor.Floor | None, problems: dict[str, str]
) -> list[Row]:
    """All programs on one file, in turns. ``problems`` names the programs that cannot run, with the reason."""
    expected = json.loads(workload.with_suffix(".json").read_text())
    commands = expected["ops"]
    programs: dict[str, list[str]] = {OURS: [sys.executable, "-m", "benchmarks.workload", str(workload), "--json"]}
    rows = {OURS: Row(OURS, f"this project's book, {machine.backend()}")}
    if floor_built is not None:
        programs[FLOOR] = [str(floor_built.program), str(workload), str(max(5, repeats))]
        rows[FLOOR] = Row(FLOOR, f"{floor_built.compiler}, {floor_built.flags}")
    for peer in PEERS:
        python = ENVIRONMENTS / peer.name / "bin" / "python"
        programs[peer.name] = [str(python), str(DRIVERS), peer.name, str(workload), str(repeats), str(seconds)]
        rows[peer.name] = Row(peer.name, peer.about)
    for name, problem in problems.items():
        rows[name].problem = problem
    for _ in range(rounds):
        for name, command in programs.items():
            row = rows[name]
            if row.problem:
                continue
            try:
                row.rounds.append(answer_of(command))
            except CannotRun as error:
                row.problem = str(error)
    if FLOOR in rows and rows[FLOOR].rounds:
        # The workload's JSON has no quantity left in the book; the floor's is taken once its checksums are right.
        expected["resting_quantity"] = rows[FLOOR].rounds[-1]["resting_quantity"]
    for row in rows.values():
        if row.rounds and not row.problem:
            row.ns = statistics.median(answer["ns_median"] for answer in row.rounds)
            judge(row, expected, commands)
    for row in rows.values():
        if row.ns is not None:
            ours, base = rows[OURS].ns, rows[FLOOR].ns if FLOOR in rows else None
            row.times_ours = row.ns / ours if ours else None
            row.times_floor = row.ns / base if base else None
    return list(rows.values())


def figure(value: float | None, unit: str = "") -> str:
    if value is None:
        return "-"
    if value >= 100_000:
        return f"{value / 1000:,.0f}k{unit}"
    return (f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 0.1 else f"{value:.3f}") + unit


def show(console: Console, name: str, commands: int, rows: list[Row], with_floor: bool) -> None:
    table = Table(title=f"{name}   {commands:,} commands", title_justify="left", title_style="bold")
    table.add_column("program", no_wrap=True)
    table.add_column("ns", justify="right", no_wrap=True)
    table.add_column("range", justify="right", no_wrap=True)
    table.add_column("x ours", justify="right", no_wrap=True)
    if with_floor:
        table.add_column("x floor", justify="right", no_wrap=True)
    table.add_column("result", no_wrap=True)
    notes = []
    for row in rows:
        each = [answer["ns_median"] for answer in row.rounds]
        spread = f"{100 * (max(each) - min(each)) / row.ns:.0f}%" if row.ns else "-"
        result = "right"
        if row.problem:
            result = "cut" if 0 < row.done < commands else "none" if row.ns is None else "DIFFERS"
            notes.append(f"{row.program}: {row.problem}")
        elif row.not_told:
            result = "right in part"
            notes.append(f"{row.program}: {', '.join(row.verified)} right; does not tell {', '.join(row.not_told)}")
        cells = [row.program, figure(row.ns), spread, figure(row.times_ours)]
        if with_floor:
            cells.append(figure(row.times_floor))
        table.add_row(*cells, result)
    console.print(table)
    for note in notes:
        console.print("  " + note, highlight=False, soft_wrap=True)


def generate(directory: Path, commands: int) -> None:
    """The four workloads at this size, with what is right beside them."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.generate", str(directory), str(commands)],
        capture_output=True,
        text=True,
        check=False,
        cwd=machine.ROOT,
    )
    if done.returncode:
        raise SystemExit(f"benchmarks.generate ended with {done.returncode}: {done.stderr.strip()[-500:]}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__.partition("\n")[0])
    parser.add_argument("--workloads", default=",".join(WORKLOADS), help="some of " + ",".join(WORKLOADS))
    parser.add_argument("--commands", type=int, default=20_000, help="size of each workload")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3, help="runs of the file within a round, time permitting")
    parser.add_argument("--seconds", type=float, default=10.0, help="limit for one peer's runs within a round")
    parser.add_argument(
        "--files", type=Path, help="directory with NAME.bin and NAME.json to use instead of making them"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    names = options.workloads.split(",")
    unknown = sorted(set(names) - set(WORKLOADS))
    if unknown and options.files is None:
        parser.error(f"expected workloads of {', '.join(WORKLOADS)}, got {', '.join(unknown)} - at --workloads")
    if min(options.commands, options.rounds, options.repeats) < 1 or options.seconds <= 0:
        parser.error("expected numbers above 0 - at --commands, --rounds, --repeats, --seconds")

    console = Console(stderr=options.json)
    environment = machine.environment()
    problems: dict[str, str] = {}
    with console.status("installing peers …"):
        for peer in PEERS:
            try:
                prepare(peer)
            except CannotRun as error:
                problems[peer.name] = str(error)
    built: floor.Floor | None = None
    no_floor = ""
    try:
        built = floor.build()
    except floor.NoCompiler as error:
        no_floor = str(error)

    if not options.json:
        console.print(machine.banner(environment), highlight=False)
        console.print(
            f"ns per command, one call each: median of {options.rounds} rounds in turns, range between them; per round "
            f"the median of up to {options.repeats} runs within {options.seconds:g} s (floor and ours: at least 5)",
            highlight=False,
        )
        if no_floor:
            console.print(f"No 'times the floor': {no_floor}", highlight=False)
    results: dict[str, Any] = {}
    wrong = False
    with tempfile.TemporaryDirectory(prefix="dojima-peers-") as scratch:
        directory = options.files
        if directory is None:
            directory = Path(scratch)
            with console.status("making the workloads …"):
                generate(directory, options.commands)
        for name in names:
            with console.status(f"{name} …"):
                rows = measure(
                    directory / f"{name}.bin", options.rounds, options.seconds, options.repeats, built, problems
                )
            commands = json.loads((directory / f"{name}.json").read_text())["ops"]
            wrong |= any(row.problem for row in rows if row.program in (OURS, FLOOR))
            results[name] = {"commands": commands, "rows": [vars(row) for row in rows]}
            if not options.json:
                show(console, name, commands, rows, built is not None)
    if options.json:
        peers = [vars(peer) for peer in PEERS]
        print(
            json.dumps({"environment": environment, "floor": no_floor or "built", "peers": peers, "workloads": results})
        )
    else:
        for peer in PEERS:
            console.print(f"{peer.requirements[0]} (licence: {peer.licence}). {peer.about}", highlight=False)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
