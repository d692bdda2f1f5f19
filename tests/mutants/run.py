"""Would the tests notice? Every small change to ``engine/matching`` that mutmut knows is made, and the tests are run.

A *mutant* is the engine with one change: ``<`` for ``<=``, a number one larger, an argument left out. It is *killed*
when a test fails, or takes far longer than before. One that survives shows a line whose meaning no test holds: a test
is missing, or the line has no effect, or the change means the same. The last are listed in ``explained.toml``, each
with the reason; ``make mutants`` fails on a survivor that is not listed, and on a list entry that fits no survivor.

mutmut writes the mutants. What runs them is here, because mutmut starts pytest for each, which for 2,800 mutants takes
hours. Here pytest collects the tests once; each mutant is a fork of that process, in which one function is given the
mutant's code, and in which the tests that call this function run until one fails. Before that, the unchanged engine has
to pass, a mutant that changes nothing has to survive, and a known one has to die.

The verdicts are kept in ``build/mutants.json``. A run that was broken off goes on there; when engine, tests or Python
have changed, the old verdicts only say which test to try first.

    make mutants                              all of engine/matching
    make mutants ARGS='itayose book.Texts*'   functions by module, or by pattern
    make mutants ARGS=--json                  for a program

Exit status: 0 when all survivors are explained, 1 when not, 2 when the run proves nothing.
"""

from __future__ import annotations

import argparse
import difflib
import fnmatch
import gc
import hashlib
import importlib
import importlib.metadata
import inspect
import json
import os
import signal
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

# The mutants' code is given to functions of Python; compiled ones have none. To be said before the engine is loaded.
os.environ["DOJIMA_BACKEND"] = "interpreted"

import pytest
from mutmut.mutation.file_mutation import mutate_file_contents

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGE = "engine.matching"
VERDICTS = ROOT / "build" / "mutants.json"
EXPLAINED = Path(__file__).with_name("explained.toml")
#: The tests that hold each module, by themselves: whatever else would notice does not count, and costs nothing.
TESTS = {
    "auction": ["tests/engine/test_auction.py"],
    "bare": ["tests/engine/test_book.py"],
    "book": ["tests/engine/test_book.py"],
    "continuous": ["tests/engine/test_continuous.py"],
    "fastbook": ["tests/engine/test_book.py", "tests/engine/test_fastbook.py"],
    "itayose": ["tests/engine/test_itayose.py", "tests/engine/test_itayose_properties.py"],
}
#: A mutant that must die: after a fill, an incoming order would want more instead of less.
KNOWN = ("continuous._trade", "left -= quantity", "left += quantity")

KILLED, TIMEOUT, SURVIVED, UNTESTED, BROKEN = "killed", "timeout", "survived", "untested", "broken"
DEAD = (KILLED, TIMEOUT)
_EXITS = {10: KILLED, 11: TIMEOUT, 12: SURVIVED}
_CODES = {name: code for code, name in _EXITS.items()}
#: A test is hung when it has used so many times the processor time that it needs, and one second.
_PATIENCE = 10
#: Bytes that a mutant may take beyond what was there.
_MEMORY = 1 << 30


@dataclass
class Mutant:
    """One change of one function, named ``module.function`` or ``module.Class.method`` within ``engine.matching``."""

    function: str
    before: str  #: the changed lines as they are, in one, without comments
    after: str
    number: int = 1  #: which of those that read the same
    verdict: str = ""
    test: str = ""  #: the test that killed it
    reason: str = ""  #: why it may survive

    @property
    def key(self) -> str:
        return f"{self.function}\n{self.before}\n{self.after}\n{self.number}"


def _one_line(lines: Iterable[str]) -> str:
    return " ".join(" ".join(line.split("  #")[0] for line in lines).split())


def _find(space: dict[str, Any], dotted: str) -> FunctionType:
    """A function of a module's or a class's names, what decorates it taken off."""
    first, _, rest = dotted.partition(".")
    found = space[first]
    if rest:
        return _find(vars(found), rest)
    function = inspect.unwrap(getattr(found, "__func__", found))
    assert isinstance(function, FunctionType), dotted
    return function


def mutants_of(module: str) -> list[tuple[Mutant, FunctionType, FunctionType]]:
    """The mutants of ``engine.matching.MODULE``: what each is, the function it changes, and what it makes of it."""
    real = importlib.import_module(f"{PACKAGE}.{module}")
    source = Path(str(real.__file__)).read_text("utf-8")
    mutated = mutate_file_contents(str(real.__file__), source)
    lines = mutated.code.splitlines()
    space: dict[str, Any] = {"__name__": f"{PACKAGE}.{module} with its mutants"}
    exec(compile(mutated.code, f"mutants of {real.__file__}", "exec"), space)

    def text(name: str, as_name: str) -> list[str]:
        span = mutated.line_span_by_function_name[name]
        return [line.replace(name, as_name) for line in lines[span.start - 1 : span.end]]

    found: list[tuple[Mutant, FunctionType, FunctionType]] = []
    alike: Counter[str] = Counter()
    for name in mutated.mutant_names:
        base = name.rpartition("__mutmut_")[0]
        if base.startswith("xǁ"):
            _, owner, function = base.split("ǁ")
            dotted, mangled = f"{owner}.{function}", f"{owner}.{name}"
        else:
            dotted, mangled = base.removeprefix("x_"), name
        changes = list(difflib.ndiff(text(f"{base}__mutmut_orig", dotted), text(name, dotted)))
        mutant = Mutant(
            f"{module}.{dotted}",
            _one_line(line[2:] for line in changes if line.startswith("- ")),
            _one_line(line[2:] for line in changes if line.startswith("+ ")),
        )
        alike[mutant.key] += 1
        mutant.number = alike[mutant.key]
        found.append((mutant, _find(vars(real), dotted), _find(space, mangled)))
    return found


def digest() -> str:
    """Of all that a verdict depends on."""
    total = hashlib.sha256(f"{sys.version} {importlib.metadata.version('mutmut')}".encode())
    for path in sorted(
        [*ROOT.glob("engine/**/*.py"), *ROOT.glob("tests/**/*.py"), *ROOT.glob("tests/cases/**/*.json*")]
    ):
        total.update(f"\n{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return total.hexdigest()


def modules(patterns: list[str]) -> list[str]:
    """Modules that the patterns may mean, and the one with the known mutant."""
    if not patterns or any(pattern.split(".")[0] not in TESTS for pattern in patterns):
        return sorted(TESTS)
    return sorted({KNOWN[0].split(".")[0], *(pattern.split(".")[0] for pattern in patterns)})


class Runner:
    """What takes the place of pytest's own loop over the collected tests (a pytest plugin)."""

    def __init__(self, patterns: list[str], jobs: int, quiet: bool) -> None:
        self.patterns = patterns
        self.jobs = jobs
        self.quiet = quiet
        self.mutants: list[Mutant] = []
        self.finished = False
        self._failed = False
        self._seconds: dict[str, float] = {}  #: processor time of each test
        self._tests: dict[int, list[pytest.Item]] = {}  #: by the id of a function's code: the tests that call it
        self._kills: dict[str, Counter[str]] = {}
        self._deadline = 0.0
        self._memory = 0
        self._digest = digest()

    def say(self, text: str) -> None:
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    # --- hooks --------------------------------------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self) -> None:
        """Few examples, and none made smaller: that one fails is all we want to know."""
        from hypothesis import Phase, settings  # not before pytest, which wants to see it imported

        quick = settings.get_profile("quick")
        settings.register_profile("mutants", quick, phases=[Phase.explicit, Phase.generate])
        settings.load_profile("mutants")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._failed = self._failed or report.failed

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        work = [entry for module in modules(self.patterns) for entry in mutants_of(module)]
        if not self._clean_run(session.items, {id(function.__code__) for _, function, _ in work}):
            print("Expected the tests to pass without any mutant; they do not.", file=sys.stderr)
            return True
        session.config.pluginmanager.unregister(name="terminalreporter")  # the processes to come have nothing to say
        gc.collect()
        gc.freeze()
        if self._proof(work):
            self._all(work)
        return True

    # --- tests --------------------------------------------------------------------------------------------------------

    def _run(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool:
        """Run one test; whether it passed."""
        self._failed = False
        item.ihook.pytest_runtest_protocol(item=item, nextitem=nextitem)
        return not self._failed

    def _clean_run(self, items: Sequence[pytest.Item], codes: set[int]) -> bool:
        """Run all tests as they are, to know how long each takes and which functions it calls."""
        called: set[int] = set()

        def profile(frame: FrameType, event: str, _: object) -> None:
            if event == "call":
                called.add(id(frame.f_code))

        for i, item in enumerate(items):
            called.clear()
            start = time.process_time()
            sys.setprofile(profile)
            try:
                passed = self._run(item, items[i + 1] if i + 1 < len(items) else None)
            finally:
                sys.setprofile(None)
            self._seconds[item.nodeid] = time.process_time() - start
            if not passed:
                return False
            for code in called & codes:
                self._tests.setdefault(code, []).append(item)
        self.say(f"{len(items)} tests pass without a mutant, in {sum(self._seconds.values()):.0f} s")
        return True

    def _in_order(self, mutant: Mutant, code: int, hint: str) -> list[pytest.Item]:
        """The tests of a function, those first that are likely to kill soon."""
        kills = self._kills.setdefault(mutant.function, Counter())
        files = TESTS[mutant.function.split(".")[0]]
        ours = [item for item in self._tests.get(code, []) if item.nodeid.split("::")[0] in files]
        cost = {item.nodeid: self._seconds[item.nodeid] / (1 + kills[item.nodeid]) for item in ours}
        return sorted(ours, key=lambda item: (item.nodeid != hint, cost[item.nodeid]))

    # --- mutants ------------------------------------------------------------------------------------------------------

    def _watch(self, *_: object) -> None:
        with open("/proc/self/statm") as file:
            resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        if time.process_time() > self._deadline or resident > self._memory:
            os._exit(_CODES[TIMEOUT])

    def _fork(self, function: FunctionType, code: CodeType, defaults: Any, tests: list[pytest.Item]) -> tuple[int, int]:
        """Begin to test a mutant in a process of its own: its number, and a pipe with the test that failed."""
        reading, writing = os.pipe()
        process = os.fork()
        if process:
            os.close(writing)
            return process, reading
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
            with open("/proc/self/statm") as file:
                self._memory = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") + _MEMORY
            function.__code__ = code
            function.__defaults__, function.__kwdefaults__ = defaults
            self._deadline = time.process_time() + 60
            signal.signal(signal.SIGPROF, self._watch)
            signal.setitimer(signal.ITIMER_PROF, 0.2, 0.2)
            for i, item in enumerate(tests):
                self._deadline = time.process_time() + 1 + _PATIENCE * self._seconds[item.nodeid]
                if not self._run(item, tests[i + 1] if i + 1 < len(tests) else item):
                    os.write(writing, item.nodeid.encode())
                    os._exit(_CODES[KILLED])
            os._exit(_CODES[SURVIVED])
        finally:  # whatever came up to here came from this file, and says nothing about the mutant
            os._exit(1)

    @staticmethod
    def _verdict(status: int, pipe: int) -> tuple[str, str]:
        with os.fdopen(pipe, "rb") as file:
            test = file.read().decode()
        if os.WIFEXITED(status):
            return _EXITS.get(os.WEXITSTATUS(status), BROKEN), test
        return BROKEN, test

    def _judge(self, mutant: Mutant, function: FunctionType, changed: FunctionType) -> str:
        """The verdict on one mutant, awaited."""
        tests = self._in_order(mutant, id(function.__code__), "")
        defaults = (changed.__defaults__, changed.__kwdefaults__)
        process, pipe = self._fork(function, changed.__code__, defaults, tests)
        return self._verdict(os.waitpid(process, 0)[1], pipe)[0] if tests else UNTESTED

    def _proof(self, work: list[tuple[Mutant, FunctionType, FunctionType]]) -> bool:
        """That a mutant that changes nothing survives, and that a known one dies: else no verdict means anything."""
        known = [entry for entry in work if (entry[0].function, entry[0].before, entry[0].after) == KNOWN]
        if not known:
            print(f"Expected a mutant {' | '.join(KNOWN)}; there is none. Name another one.", file=sys.stderr)
            return False
        mutant, function, changed = known[0]
        unchanged = self._judge(mutant, function, function)
        verdict = self._judge(mutant, function, changed)
        if unchanged != SURVIVED or verdict != KILLED:
            print(
                f"Expected {KNOWN[0]} as it is to survive and with `{KNOWN[2]}` to be killed;"
                f" they {unchanged} and {verdict}.",
                file=sys.stderr,
            )
            return False
        self.say(f"{KNOWN[0]} as it is survives; with `{KNOWN[2]}` for `{KNOWN[1]}` it is killed")
        return True

    def _wanted(self, function: str) -> bool:
        if not self.patterns:
            return True
        return any(function.split(".")[0] == p or fnmatch.fnmatch(function, p) for p in self.patterns)

    def _all(self, work: list[tuple[Mutant, FunctionType, FunctionType]]) -> None:
        kept = json.loads(VERDICTS.read_text("utf-8")) if VERDICTS.exists() else {"digest": "", "verdicts": {}}
        verdicts: dict[str, list[str]] = kept["verdicts"]
        same = kept["digest"] == self._digest
        if not same:
            verdicts = {key: ["", test] for key, (_, test) in verdicts.items()}
        pending: list[tuple[Mutant, FunctionType, FunctionType]] = []
        for entry in work:
            mutant = entry[0]
            if self._wanted(mutant.function):
                self.mutants.append(mutant)
                mutant.verdict, mutant.test = verdicts.get(mutant.key, ("", ""))
                if not mutant.verdict:
                    pending.append(entry)
        self.say(f"{len(self.mutants)} mutants, {len(self.mutants) - len(pending)} of them judged before")
        running: dict[int, tuple[Mutant, int]] = {}
        pending.reverse()
        said = time.monotonic()
        try:
            while pending or running:
                while pending and len(running) < self.jobs:
                    mutant, function, changed = pending.pop()
                    tests = self._in_order(mutant, id(function.__code__), mutant.test)
                    if not tests:
                        mutant.verdict = UNTESTED
                        continue
                    defaults = (changed.__defaults__, changed.__kwdefaults__)
                    process, pipe = self._fork(function, changed.__code__, defaults, tests)
                    running[process] = (mutant, pipe)
                if running:
                    process, status = os.wait()
                    mutant, pipe = running.pop(process)
                    mutant.verdict, mutant.test = self._verdict(status, pipe)
                    self._kills[mutant.function][mutant.test] += mutant.verdict == KILLED
                    if mutant.verdict not in DEAD:
                        self.say(f"{mutant.verdict}: {mutant.function}: {mutant.before} => {mutant.after}")
                if time.monotonic() > said + 10:
                    said = time.monotonic()
                    self._keep(verdicts)
                    self.say(f"{len(pending) + len(running)} to go, {_summary(self.mutants)}")
            self.finished = True
        finally:
            for process in running:
                os.kill(process, signal.SIGKILL)
            self._keep(verdicts)

    def _keep(self, verdicts: dict[str, list[str]]) -> None:
        """Write down what has been judged, so that a run that is broken off can go on."""
        for mutant in self.mutants:
            if mutant.verdict and mutant.verdict != BROKEN:
                verdicts[mutant.key] = [mutant.verdict, mutant.test]
        VERDICTS.parent.mkdir(exist_ok=True)
        new = VERDICTS.with_suffix(".new")
        new.write_text(json.dumps({"digest": self._digest, "verdicts": verdicts}, indent=0), "utf-8")
        new.replace(VERDICTS)


def _summary(mutants: list[Mutant]) -> str:
    counts = Counter(mutant.verdict for mutant in mutants if mutant.verdict)
    return ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items()))


def explain(mutants: list[Mutant], wanted: Any) -> list[str]:
    """Give survivors their reasons from ``explained.toml``; returns the explanations that fit none of them."""
    left: list[str] = []
    for entry in tomllib.loads(EXPLAINED.read_text("utf-8"))["mutant"]:
        for after in entry["after"]:
            fits = [
                mutant
                for mutant in mutants
                if (mutant.function, mutant.before, mutant.after) == (entry["function"], entry["before"], after)
                and mutant.verdict in (SURVIVED, UNTESTED)
            ]
            for mutant in fits:
                mutant.reason = entry["reason"]
            if not fits and wanted(entry["function"]):
                left.append(f"{entry['function']}\n    - {entry['before']}\n    + {after}")
    return left


def main() -> int:
    parser = argparse.ArgumentParser(prog="make mutants", description="Are there changes that no test notices?")
    parser.add_argument("patterns", nargs="*", help="modules of engine/matching, or patterns of functions")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="mutants at a time")
    parser.add_argument("--json", action="store_true", help="the result for a program, on standard output")
    options = parser.parse_args()
    os.chdir(ROOT)
    runner = Runner(options.patterns, options.jobs, options.json)
    tests = sorted({test for module in modules(options.patterns) for test in TESTS[module]})
    arguments = ["-q", "-x", "-p", "no:xdist", "-p", "no:cacheprovider", "--no-header", "--no-summary", *tests]
    # pytest's own lines would mix with ours.
    out = os.dup(1)
    os.dup2(2, 1)
    status = pytest.main(arguments, plugins=[runner])
    sys.stdout.flush()
    os.dup2(out, 1)
    if not runner.finished:
        print(f"The run has not finished, pytest says {status}; what was judged is kept.", file=sys.stderr)
        return 2
    left = explain(runner.mutants, runner._wanted)
    bad = [mutant for mutant in runner.mutants if mutant.verdict not in DEAD and not mutant.reason]
    table = []
    for module in sorted({mutant.function.split(".")[0] for mutant in runner.mutants}):
        ours = [mutant for mutant in runner.mutants if mutant.function.split(".")[0] == module]
        counts = Counter(mutant.verdict for mutant in ours)
        table.append(
            {
                "module": module,
                "mutants": len(ours),
                "killed": counts[KILLED],
                "timeout": counts[TIMEOUT],
                "explained": sum(mutant.reason != "" for mutant in ours),
                "unexplained": sum(mutant in bad for mutant in ours),
            }
        )
    if options.json:
        result = {"modules": table, "unexplained": [asdict(mutant) for mutant in bad], "fit_nothing": left}
        print(json.dumps(result, indent=1, ensure_ascii=False))
    else:
        for mutant in bad:
            print(f"{mutant.verdict}: {mutant.function}\n    - {mutant.before}\n    + {mutant.after}")
        for text in left:
            print(f"explained, but no survivor is like this: {text}")
        names = list(table[0]) if table else []
        for row in [dict(zip(names, names, strict=True)), *table]:
            print(f"{row['module']:<12}" + "".join(f"{row[name]:>13}" for name in names[1:]))
    return 1 if bad or left else 0


if __name__ == "__main__":
    sys.exit(main())
