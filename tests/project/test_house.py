"""What holds for every file of the project, whoever wrote it."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
THIS = Path(__file__).relative_to(ROOT)

#: Postponed work, and what belongs to one machine. Written so that this file does not contain what it looks for.
UNWELCOME = {
    "postponed work": re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b"),
    "a path of one machine": re.compile(r"(?<![\w.~$}])/(?:home|Users|ro" + r"ot|work|mnt)/\w"),
    "a package index": re.compile(
        r"(?:files\.python" + r"hosted\.org|py" + r"pi\.org/simple|--(?:extra-)?index-" + r"url)"
    ),
    "a secret": re.compile(r"-----BEGIN [A-Z ]*PRIVATE" + r" KEY-----"),
}
NOT_OURS = {Path("LICENSE")}


def tracked() -> list[Path]:
    """The project's files: those git knows, or, without git, all that tools do not make."""
    if shutil.which("git") and (ROOT / ".git").exists():
        listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        paths = [Path(name) for name in listing.split("\0") if name]
    else:
        rooms = ("engine", "gateway", "tests", "benchmarks", "docs", "deploy", ".ci")
        everything = [*ROOT.glob("*"), *(path for room in rooms for path in (ROOT / room).rglob("*"))]
        paths = [path.relative_to(ROOT) for path in everything if "__pycache__" not in path.parts]
    return sorted(path for path in paths if (ROOT / path).is_file() and path not in NOT_OURS)


def unwelcome(text: str) -> list[str]:
    return [
        f"line {text.count(chr(10), 0, match.start()) + 1}: {what}: {match.group()}"
        for what, pattern in UNWELCOME.items()
        for match in pattern.finditer(text)
    ]


def test_no_file_holds_postponed_work_or_what_belongs_to_one_machine() -> None:
    found = {}
    for path in tracked():
        try:
            text = (ROOT / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a binary sample of a test
        if lines := unwelcome(text):
            found[str(path)] = lines
    assert found == {}


@pytest.mark.parametrize(
    "text",
    [
        "# TO" + "DO later",
        "open('/ho" + "me/me/x')",
        "path=/wo" + "rk/main",
        "https://py" + "pi.org/simple",
        "-----BEGIN RSA PRIVATE" + " KEY-----",
    ],
)
def test_what_is_unwelcome_is_noticed(text: str) -> None:
    assert unwelcome(text)


def test_every_python_file_opens_with_its_reason() -> None:
    silent = [
        str(path)
        for path in tracked()
        if path.suffix == ".py"
        and (source := (ROOT / path).read_text(encoding="utf-8")).strip()
        and not ast.get_docstring(ast.parse(source))
    ]
    assert silent == []


def undocumented(source: str) -> list[str]:
    """Public functions and methods without a docstring, up to three plain statements excepted.

    One explanation is enough: of an interface in the same file, or in the docstring of a class, as ``name``.
    """
    tree = ast.parse(source)
    functions = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_")
    ]
    explained = {node.name for node in functions if ast.get_docstring(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            explained |= set(re.findall(r"``(\w+)", ast.get_docstring(node) or ""))
    return [f"{node.lineno}: {node.name}" for node in functions if len(node.body) > 3 and node.name not in explained]


@pytest.mark.parametrize("path", [p for p in tracked() if p.parts[0] == "engine" and p.suffix == ".py"], ids=str)
def test_public_functions_of_the_engine_say_what_they_do(path: Path) -> None:
    assert undocumented((ROOT / path).read_text(encoding="utf-8")) == []


def test_a_silent_function_is_noticed() -> None:
    assert undocumented("def f(x):\n    a = x\n    b = a\n    c = b\n    return c")
    assert not undocumented("def f(x):\n    'Says what it does.'\n    a = x\n    b = a\n    return b")


def test_the_changelog_names_the_version_of_the_package() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert re.search(rf"^## {re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("path", [".ci/run", "deploy/ci-setup"])
def test_scripts_that_are_called_by_name_may_be_executed(path: str) -> None:
    assert os.access(ROOT / path, os.X_OK)


@pytest.mark.parametrize("path", ["deploy/venv.sh", ".ci/run", "deploy/ci-setup"])
def test_shell_scripts_are_well_formed(path: str) -> None:
    shell = (ROOT / path).read_text().partition("\n")[0].removeprefix("#!").removeprefix("/usr/bin/env ")
    subprocess.run([shell, "-n", path], cwd=ROOT, check=True)
