"""What ``make build`` runs: compile the engine where that is possible and needed, and say so.

Nothing happens when the binaries are those of the sources, or when ``DOJIMA_BACKEND=interpreted`` asks for none.
Without a C compiler or Python's headers the engine runs interpreted: that is said once, binaries of older sources are
removed, and the exit status is 0. A compiler that is there and fails is a fault, with status 1.

It runs inside ``.venv`` but imports the standard library only.
"""

from __future__ import annotations

import os
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SAID = ROOT / "build" / "no-compiler"


def missing() -> str:
    """What a compilation needs and this machine does not have; "" if it has all."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
    if shutil.which(compiler) is None:
        return f"the C compiler {compiler} (CC=… names another one)"
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        return f"Python's headers, {header} (on Debian and Ubuntu: python3-dev)"
    return ""


def main() -> int:
    backend = runpy.run_path(str(ROOT / "engine" / "backend.py"))
    if os.environ.get(backend["VARIABLE"]) == backend["INTERPRETED"]:
        return 0
    changed = backend["outdated"]()
    if not changed:
        return 0
    lacks = missing()
    if lacks:
        backend["record"]().unlink(missing_ok=True)
        for source in backend["sources"]().values():
            backend["binary"](source).unlink(missing_ok=True)
        if not SAID.exists():
            print(f"The engine runs interpreted, several times slower: to compile it, this machine lacks {lacks}.")
            SAID.parent.mkdir(exist_ok=True)
            SAID.touch()
        return 0
    print(f"Compiling the engine ({len(backend['sources']())} modules, a minute or two)", flush=True)
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    wrong = backend["outdated"]()
    if done.returncode or wrong:
        print(done.stdout)
        print(f"The engine could not be compiled ({', '.join(wrong)}): see above, or set DOJIMA_BACKEND=interpreted.")
        return 1
    SAID.unlink(missing_ok=True)
    print(f"Compiled in {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
