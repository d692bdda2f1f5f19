"""Which engine is loaded: the source as it stands, or the same source compiled by mypyc.

``DOJIMA_BACKEND`` chooses, ``compiled`` or ``interpreted``; without it, what is compiled is used where it lies beside
its source. A binary wins over an edited source without a word, and then what runs is not what one reads. So whoever
builds records the hash of every source, and a binary whose source has changed since refuses to load.

This module is the only one of the engine that looks at its surroundings. It has to work without the others:
``setup.py`` and ``deploy/build.py`` run it by its path, where there may be nothing yet to import.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from types import ModuleType
from typing import Final

COMPILED: Final = "compiled"
INTERPRETED: Final = "interpreted"
VARIABLE: Final = "DOJIMA_BACKEND"

FOLDER: Final = Path(__file__).resolve().parent
#: What the file of a binary ends with; names this Python and machine, so that several can lie side by side.
SUFFIX: Final = importlib.machinery.EXTENSION_SUFFIXES[0]
#: mypyc drops the keywords of a Struct class without a word, so modules that define Structs stay as they are; the
#: others here hold nothing that is worth compiling. The log reads files and waits for disks.
_STAY: Final = ("__init__", "backend", "commands", "events", "faults", "types")
_PACKAGES: Final = (".", "matching")


def sources() -> dict[str, Path]:
    """Every module that is compiled, by its full name."""
    found = {}
    for package in _PACKAGES:
        for path in sorted((FOLDER / package).glob("*.py")):
            if path.stem not in _STAY:
                found[".".join(["engine", *path.relative_to(FOLDER).with_suffix("").parts])] = path
    return found


def hashes() -> dict[str, str]:
    """The sources as they stand now."""
    return {name: blake2b(path.read_bytes(), digest_size=16).hexdigest() for name, path in sources().items()}


def binary(source: Path) -> Path:
    """Where the compiled module of a source lies."""
    return source.with_name(source.stem + SUFFIX)


def record(folder: Path = FOLDER) -> Path:
    """Where a build for this Python notes what it was made from."""
    return folder / f"_build{SUFFIX}.json"


def outdated() -> list[str]:
    """Modules whose binary is absent, or older or newer than the source; empty when all is as it was built."""
    try:
        built = json.loads(record().read_text(encoding="utf-8"))["sources"]
    except (OSError, ValueError, KeyError):
        return sorted(sources())
    now = hashes()
    changed = {name for name in built.keys() | now.keys() if built.get(name) != now.get(name)}
    return sorted(changed.union(name for name, path in sources().items() if not binary(path).exists()))


def is_built() -> bool:
    """Whether any binary for this Python lies beside its source."""
    return any(any((FOLDER / package).glob("*" + SUFFIX)) for package in _PACKAGES)


class _SourceFirst:
    """Finds the engine's sources although binaries lie beside them."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        source = sources().get(fullname) if fullname.startswith("engine.") else None
        return importlib.util.spec_from_file_location(fullname, source) if source is not None else None


class _SharedBinary:
    """Finds what the compiled modules share. It lies beside the package, where an editable install does not look."""

    NAME: Final = "engine__mypyc"
    PATH: Final = FOLDER.parent / (NAME + SUFFIX)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_file_location(fullname, self.PATH) if fullname == self.NAME else None


def choose() -> str:
    """Settle which engine will be imported, and return its name.

    Raises ``ImportError`` with advice where what was asked for is not there, or is not what the sources say.
    """
    wish = os.environ.get(VARIABLE, "")
    if wish not in ("", COMPILED, INTERPRETED):
        raise ImportError(f"Expected {COMPILED} or {INTERPRETED}, got {wish!r} - at {VARIABLE}")
    if wish == INTERPRETED:
        sys.meta_path.insert(0, _SourceFirst())
        return INTERPRETED
    if not is_built():
        if wish == COMPILED:
            raise ImportError(
                f"Expected a compiled engine (*{SUFFIX}), found none in {FOLDER}: run `make build`, "
                f"or set {VARIABLE}={INTERPRETED}"
            )
        return INTERPRETED
    changed = outdated()
    if changed:
        names = ", ".join(changed[:4]) + (f" and {len(changed) - 4} more" if len(changed) > 4 else "")
        raise ImportError(
            f"Expected the compiled engine to be built from the sources beside it, got other sources of {names}: "
            f"run `make build`, or set {VARIABLE}={INTERPRETED} - in {FOLDER}"
        )
    if _SharedBinary.PATH.exists():
        sys.meta_path.insert(0, _SharedBinary())
    return COMPILED


#: Settled when ``engine`` imports this module, ahead of its others. Run by its path, it only answers questions.
CHOSEN: Final = choose() if __name__ == "engine.backend" else ""


def confirm() -> str:
    """The engine that was chosen. Raises ``ImportError`` if a module that has been imported is not of that kind."""
    for name, source in sources().items():
        module = sys.modules.get(name)
        if module is not None and (module.__file__ == str(source)) != (CHOSEN == INTERPRETED):
            raise ImportError(f"Expected the {CHOSEN} engine, got {name} from {module.__file__}")
    return CHOSEN
