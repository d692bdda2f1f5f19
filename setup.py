"""Compiles the engine with mypyc. What else there is to say about the package stands in pyproject.toml.

Without a C compiler the build goes on and the engine runs interpreted (``optional``). ``DOJIMA_BACKEND=interpreted``
builds nothing. When all of it is built, the hashes of the sources are recorded beside the binaries: see
``engine/backend.py``, which refuses a binary that is not of its source.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
backend = runpy.run_path(str(ROOT / "engine" / "backend.py"))
wanted = os.environ.get(backend["VARIABLE"]) != backend["INTERPRETED"]


def _together(sources: list[str], room: str) -> list[str]:
    """``sources`` with the files of one room made one, so that what calls across it can be inlined."""
    parts = sorted(source for source in sources if f"___{room}___" in Path(source).name)
    if not parts:
        return sources
    whole = Path(parts[0]).with_name(f"__native_engine___{room}.c")
    whole.write_text("".join(f'#include "{Path(part).name}"\n' for part in parts), encoding="utf-8")
    return [source for source in sources if source not in parts] + [str(whole)]


class BuildEngine(build_ext):
    """Translates only when something is built: pip runs this file several times just to ask for names."""

    def finalize_options(self) -> None:
        self.done: list[str] = []
        if wanted:
            from mypyc.build import mypycify

            self.hashes = backend["hashes"]()  # of what is translated, should somebody edit meanwhile
            files = [str(path.relative_to(ROOT)) for path in backend["sources"]().values()]
            # A file per module, so that all cores compile.
            self.distribution.ext_modules = mypycify(
                ["--strict", *files], group_name="engine", debug_level="0", multi_file=True
            )
            for extension in self.distribution.ext_modules:
                extension.optional = True
                extension.sources = _together(extension.sources, "matching")
                if sys.platform == "linux":
                    # All modules are one library: nobody puts other functions in place of ours, so calls may be direct.
                    extension.extra_compile_args += ["-fno-semantic-interposition"]
                    extension.extra_link_args += ["-Wl,-Bsymbolic-functions"]
        super().finalize_options()

    def run(self) -> None:
        if not wanted:
            return
        built = Path(self.build_lib, "engine")
        records = [backend["record"](built)]
        if self.inplace or self.editable_mode:
            records.append(backend["record"](ROOT / "engine"))
        for record in records:  # a build that is cut short leaves binaries that nobody vouches for
            record.unlink(missing_ok=True)
        super().run()
        if len(self.done) == len(self.extensions):
            for record in records:
                record.parent.mkdir(parents=True, exist_ok=True)
                record.write_text(json.dumps({"sources": self.hashes}, indent=1) + "\n", encoding="utf-8")

    def build_extensions(self) -> None:
        compile_all = self.compiler.compile

        def compile_each(sources: list[str], **options: object) -> list[str]:
            """One file after the other keeps one core busy; the largest first, for it takes longest."""
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                done = {
                    source: pool.submit(compile_all, [source], **options)
                    for source in sorted(sources, key=os.path.getsize, reverse=True)
                }
            return [found for source in sources for found in done[source].result()]

        self.compiler.compile = compile_each
        super().build_extensions()

    def build_extension(self, ext: Extension) -> None:
        super().build_extension(ext)  # raises where it fails; the caller goes on, since the extension is optional
        self.done.append(ext.name)


# The one extension named here only says that there are some; ``BuildEngine`` puts the real ones in its place.
setup(ext_modules=[Extension("engine.core", [])] if wanted else [], cmdclass={"build_ext": BuildEngine})
