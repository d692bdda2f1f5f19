"""How every command says that it could not do what was asked: one line on standard error, and under ``--json`` the same
text on standard output too, so that a program that reads only there never has to guess why nothing came.

Mistakes in the command line itself (an unknown option) are Typer's to tell: standard error, status 2.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

import typer
from rich.console import Console


def leave(text: str, status: int, *, as_json: bool, title: str = "", **beside: Any) -> NoReturn:
    """Say ``text`` and end with ``status``. ``beside`` are further fields of the JSON object."""
    if as_json:
        typer.echo(json.dumps({**beside, "error": {"what": text}}, ensure_ascii=False))
    shown = f"{title}: {text}" if title else text
    Console(stderr=True, highlight=False, markup=False).print(shown, style="red", soft_wrap=True)
    raise typer.Exit(status)
