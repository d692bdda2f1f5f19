"""How fast can this machine match the neutral workloads at all, with nothing around the book?

Compiles ``floor.cpp`` with the system's C++ compiler, runs it on a workload, and compares what it did with what the
workload says is right. Every other figure can then be read as "times the floor". Without a compiler there is no floor,
and whoever asks is told so.

    python -m benchmarks.floor FILE.bin [--runs N] [--json]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine

SOURCE = Path(__file__).with_name("floor.cpp")
BUILD = machine.ROOT / "build" / "benchmarks"
#: First choice first. Compilers that lack a flag are given the next line.
FLAGS = (("-O3", "-march=native", "-std=c++17"), ("-O2", "-std=c++17"))
COMPILERS = ("g++", "clang++", "c++")
#: What a run must reproduce of the workload's own JSON.
CHECKED = ("trades", "volume", "notional", "resting", "checksums")


class NoCompiler(Exception):
    """No C++ compiler that can build the floor: there is nothing to divide by."""


@dataclass(frozen=True)
class Floor:
    """The compiled program and how it came to be."""

    program: Path
    compiler: str  #: first line of ``--version``
    flags: str


def build() -> Floor:
    """Compile the floor, or find it compiled from the same source by the same compiler.

    ``CXX`` chooses the compiler, as everywhere. Raises ``NoCompiler`` with what was tried.
    """
    tried = []
    source = SOURCE.read_bytes()
    for name in (os.environ["CXX"],) if os.environ.get("CXX") else COMPILERS:
        path = shutil.which(name)
        if path is None:
            tried.append(f"{name}: not found")
            continue
        about = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
        compiler = about.partition("\n")[0].strip() or name
        for flags in FLAGS:
            # The processor is part of the name: -march=native code of one machine may not run on the next.
            stamp = "\0".join((compiler, machine.cpu_model(), *flags)).encode() + source
            program = BUILD / f"floor-{hashlib.sha256(stamp).hexdigest()[:16]}"
            if not program.exists():
                BUILD.mkdir(parents=True, exist_ok=True)
                part = program.with_suffix(f".{os.getpid()}")
                done = subprocess.run(
                    [path, *flags, str(SOURCE), "-o", str(part)], capture_output=True, text=True, check=False
                )
                if done.returncode:
                    tried.append(f"{name} {' '.join(flags)}: {done.stderr.strip().partition(chr(10))[0]}")
                    continue
                part.replace(program)
            return Floor(program, compiler, " ".join(flags))
    raise NoCompiler("Expected a C++17 compiler, found none: " + "; ".join(tried))


def run(floor: Floor, workload: Path, runs: int = 5) -> dict[str, Any]:
    """Run the floor on ``workload``; ns per command and the facts of the workload's JSON, in one object.

    Raises ``RuntimeError`` when the file is not a workload.
    """
    done = subprocess.run([str(floor.program), str(workload), str(runs)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip() or f"floor ended with {done.returncode} on {workload}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def differences(answer: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """What ``answer`` got wrong, one line each; empty when all is right."""
    return [
        f"{name}: expected {expected[name]}, got {answer[name]}"
        for name in CHECKED
        if name in expected and answer[name] != expected[name]
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.floor", description=__doc__.partition("\n")[0])
    parser.add_argument("workload", type=Path, help="FILE.bin; FILE.json beside it says what is right")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    try:
        floor = build()
        answer = run(floor, options.workload, options.runs)
    except (NoCompiler, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 2
    truth = options.workload.with_suffix(".json")
    wrong = differences(answer, json.loads(truth.read_text())) if truth.exists() else None
    answer.update(
        compiler=floor.compiler, flags=floor.flags, correct=None if wrong is None else not wrong, wrong=wrong or []
    )
    if options.json:
        print(json.dumps(answer))
    else:
        verdict = "no expectation to compare with" if wrong is None else "correct" if not wrong else "WRONG"
        print(f"{floor.compiler}   {floor.flags}   {machine.cpu_model()}")
        print(
            f"{options.workload.name}   {answer['ops']:,} commands   best {answer['ns_best']:.1f} ns   "
            f"median {answer['ns_median']:.1f} ns of {answer['runs']} runs   {verdict}"
        )
        for line in wrong or []:
            print("  " + line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
