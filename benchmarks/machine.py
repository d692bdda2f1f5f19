"""On what was this measured? A number means nothing without its circumstances, so every benchmark prints them first.

``environment()`` answers as plain values for ``--json``; ``banner()`` as two lines for a person.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

#: What the measured paths run on. A package that is not installed is named as absent, not left out.
PACKAGES = ("librt", "msgspec", "msgpack", "sortedcontainers", "aiomqtt", "uvloop")


def cpu_model() -> str:
    """The processor's own name, for instance ``AMD EPYC``; the bare architecture where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """Cores this process may use, not those the machine has."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1


def memory_gib() -> float | None:
    """Main memory in GiB, or None where the system does not tell."""
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def commit() -> str:
    """The commit measured, ``+changes`` behind it when the tree differs from it; ``unknown`` outside a checkout."""
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+changes" if changes.stdout.strip() else "")


def backend() -> str:
    """``compiled`` or ``interpreted``: which engine this interpreter loads."""
    import engine

    return str(getattr(engine, "BACKEND", "interpreted"))


def package_versions(names: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def environment() -> dict[str, object]:
    """Everything a reader needs to compare a figure with one of another day, as JSON values."""
    return {
        "cpu": cpu_model(),
        "cores": cores(),
        "memory_gib": memory_gib(),
        "load_1min": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": package_versions(),
        "backend": backend(),
        "commit": commit(),
    }


def banner(values: dict[str, object] | None = None) -> str:
    """Two lines for a person. ``values`` is an answer of ``environment()``; None asks now."""
    e = environment() if values is None else values
    packages = e["packages"]
    assert isinstance(packages, dict)
    listed = "  ".join(f"{name} {number}" for name, number in packages.items())
    return (
        f"{e['cpu']}, {e['cores']} cores, {e['memory_gib']} GiB, load {e['load_1min']}   {e['system']}\n"
        f"{e['python']}   {listed}   engine {e['backend']}   commit {e['commit']}"
    )


if __name__ == "__main__":
    if "--json" in sys.argv[1:]:
        import json

        print(json.dumps(environment()))
    else:
        print(banner())
