"""The documents are true as far as a program can tell: links lead somewhere, commands and their options exist."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from typer import Typer
from typer.testing import CliRunner

from engine import Engine, Rejected
from engine.profiles import PROFILES
from gateway import config as settings
from gateway.cli.main import COMMANDS, app, load
from gateway.cli.operator import parse

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("*.md", "docs/**/*.md", "deploy/**/*.md", "gateway/**/*.md", "tests/**/*.md", "benchmarks/**/*.md")
DOCUMENTS = sorted(path for pattern in PAGES for path in ROOT.glob(pattern))
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.search(r"^\.PHONY:(.*)$", MAKEFILE, re.MULTILINE)[1].split())  # type: ignore[index]

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^```(?:sh|bash|console|text)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
OURS = re.compile(r"^(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?(dojima|make)(?: (.*))?$")


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def each_document() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", DOCUMENTS, ids=named)


def anchors(text: str) -> set[str]:
    """The names under which a page's headings can be linked to, as forges make them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(path: Path, text: str) -> list[str]:
    broken = []
    for link in LINK.findall(FENCE.sub("", text)):
        if re.match(r"[a-z]+:", link):
            continue
        place, _, anchor = link.partition("#")
        target = (path.parent / place).resolve() if place else path
        if not target.exists():
            broken.append(f"{link}: no such file")
        elif anchor and anchor not in anchors(target.read_text() if place else text):
            broken.append(f"{link}: no such heading")
    return broken


def lost_paths(text: str) -> list[str]:
    """Files and folders of this project that the text names in code and that are not there."""
    rooms = r"(?:engine|gateway|tests|benchmarks|docs|deploy)"
    named = re.findall(rf"(?<![\w/.])({rooms}/[\w./-]*\w)", " ".join(SPAN.findall(FENCE.sub("", text))))
    return [path for path in named if not (ROOT / path).exists()]


def commands(text: str) -> Iterator[list[str]]:
    """Every ``dojima …`` and ``make …`` in code, as words."""
    lines = [line for block in FENCE.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    for code in [*lines, *SPAN.findall(FENCE.sub("", text))]:
        found = OURS.match(re.split(r"\s#|\s[|>&]", code.strip())[0].strip())
        if found:
            yield [found[1], *shlex.split(found[2] or "")]


def wrong(words: list[str]) -> str | None:
    """What is wrong with one command line; None when all its parts exist. ``…`` and ``a | b`` stand for any."""
    tool, *rest = words
    if tool == "make":
        unknown = [word for word in rest if "=" not in word and word not in {"…", *TARGETS}]
        return f"make has no target {', '.join(unknown)}" if unknown else None
    options = [word.partition("=")[0] for word in rest if word.startswith("-")]
    names = [word for word in rest if not word.startswith("-")]
    if not names or names[0] == "…":
        return None
    if names[0] not in COMMANDS:
        return f"dojima has no command {names[0]}"
    known = help_of(names[0], names[1:])
    unknown = [option for option in options if option not in {"--help", "…"} and option not in known]
    return f"dojima {names[0]} has no option {', '.join(unknown)}" if unknown else None


def help_of(name: str, words: list[str]) -> str:
    """Help of a command and, where it has commands of its own, of the one that ``words`` name."""
    command: Typer = load(COMMANDS[name][0])
    wide = {"COLUMNS": "300", "NO_COLOR": "1", "TERM": "dumb"}
    text = ""
    for path in ([], words[:1]):
        answer = CliRunner().invoke(command, [*path, "--help"], env=wide)
        text += answer.output if answer.exit_code == 0 else ""
    return text


@each_document()
def test_links_lead_somewhere(path: Path) -> None:
    assert broken_links(path, path.read_text()) == []


@each_document()
def test_files_that_are_named_are_there(path: Path) -> None:
    assert lost_paths(path.read_text()) == []


def blocks(path: Path, language: str) -> list[str]:
    """The code of one language on a page."""
    return [code for name, code in BLOCK.findall(path.read_text()) if name == language]


def strange_imports(code: str) -> list[str]:
    """What a program imports of ours that is not there; raises SyntaxError for what is no Python."""
    tree = compile(code, "page", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return [
        f"{node.module}.{alias.name}"
        for node in imports
        if (node.module or "").partition(".")[0] in {"engine", "gateway"}
        for alias in node.names
        if alias.name != "*" and not hasattr(import_module(node.module or ""), alias.name)
    ]


@each_document()
def test_programs_are_python_and_what_they_import_of_ours_exists(path: Path) -> None:
    assert [name for code in blocks(path, "python") for name in strange_imports(code)] == []


@each_document()
def test_settings_on_a_page_are_settings_that_the_market_takes(path: Path) -> None:
    for text in blocks(path, "toml"):
        config = settings.parse(text, named(path))
        market = Engine()
        for command in (*settings.tables(config), *settings.listings(config, ROOT)):
            assert not [event for event in market.apply(command) if isinstance(event, Rejected)]


def test_the_table_of_rules_is_each_profile_s_own() -> None:
    page = (ROOT / "docs" / "settings.md").read_text().partition("## Rules and their defaults")[2].partition("\n## ")[0]
    head, *rows = re.findall(r"^\| (\w+|`\w+`) \| (.*) \|$", page, re.MULTILINE)
    told: dict[str, dict[str, str]] = {profile: {} for profile in head[1].split(" | ")}
    for rule, values in rows:
        for profile, value in zip(told, values.split(" | "), strict=True):
            if value != "–":
                told[profile][rule.strip("`")] = value
    assert told == {
        name: {rule: str(value) for rule, value in profile.parameters.items()} for name, profile in PROFILES.items()
    }


@each_document()
def test_what_operators_are_told_to_request_can_be_requested(path: Path) -> None:
    for words in commands(path.read_text()):
        if words[:3] == ["dojima", "operator", "request"] and words[3:4] != ["…"]:
            parse(words[3], [word for word in words[4:] if "=" in word and not word.startswith("-")])


def modules(room: str) -> set[str]:
    """The modules of a room, from the top of the checkout on, without suffix."""
    return {
        str(path.relative_to(ROOT).with_suffix(""))
        for path in (ROOT / room).rglob("*.py")
        if not path.name.startswith("__init__")
    }


def test_architecture_names_each_module_and_no_other() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    rooms = text.partition("## Rooms")[2].partition("\n## ")[0]
    told: set[str] = set()
    for first, second in re.findall(r"^\| (.*?) \| (.*) \|$", rooms, re.MULTILINE):
        names = [name.removesuffix(".py") for name in re.findall(r"`([\w./]+)`", first)]
        folder = ""
        for name in names:
            if name.endswith("/"):  # a room with its modules in the other column, or one that speaks for itself
                inside = set(re.findall(r"`(\w+)`", second))
                told |= {f"{name}{module}" for module in inside} if inside & stems(name) else modules(name)
                continue
            folder = name.rpartition("/")[0] or folder
            told.add(name if "/" in name else f"{folder}/{name}")
    assert told == modules("engine") | modules("gateway")


def stems(room: str) -> set[str]:
    return {Path(module).name for module in modules(room)}


@each_document()
def test_commands_and_options_exist(path: Path) -> None:
    problems = [f"{' '.join(words)}: {problem}" for words in commands(path.read_text()) if (problem := wrong(words))]
    assert problems == []


def test_make_help_tells_of_every_target() -> None:
    told = set(re.findall(r"make ([a-z-]+)", MAKEFILE))
    assert told >= TARGETS - {"help"}


def test_every_command_answers_help_with_what_the_overview_says() -> None:
    overview = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "300"})
    assert overview.exit_code == 0
    for name, (_, summary) in COMMANDS.items():
        assert summary in overview.output
        assert "Usage" in help_of(name, [])


def test_a_broken_link_is_noticed() -> None:
    here = ROOT / "README.md"
    assert broken_links(here, "[x](no/such/file.md) [y](#no-such-heading) [z](LICENSE) [w](https://example.com)") == [
        "no/such/file.md: no such file",
        "#no-such-heading: no such heading",
    ]


def test_a_lost_file_is_noticed() -> None:
    assert lost_paths("`engine/core.py`, `engine/nonsense.py` and `python -m pytest tests/nonsense`") == [
        "engine/nonsense.py",
        "tests/nonsense",
    ]


@pytest.mark.parametrize("line", ["make nonsense", "dojima nonsense", "dojima replay --nonsense LOG"])
def test_a_command_that_does_not_exist_is_noticed(line: str) -> None:
    [words] = commands(f"Run `{line}`.")
    assert wrong(words)
    assert list(commands(f"```sh\n{line}  # and so on\n```")) == [words]
