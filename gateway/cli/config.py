"""``dojima config``: show, check and create settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import msgspec
import typer

from engine import Engine, ListInstrument, Rejected
from gateway import config as settings
from gateway.cli.failure import leave
from gateway.holidays import load_calendar

config_app = typer.Typer(
    no_args_is_help=True, help="Show, check and create the settings of an exchange.", add_completion=False
)

Directory = Annotated[Path, typer.Option("--dir", help="The exchange's directory.")]
File = Annotated[
    Path | None, typer.Option("--config", help="A settings file elsewhere; default: dojima.toml in --dir.")
]

#: What ``init`` writes: the keys most people change, and where the others are.
TEMPLATE = """\
# Settings of a Dojima exchange. Every key has a default: `dojima config show --dir .` lists all of them.

members = "any"                # or a list: ["alfa", "bravo"]

[broker]
url = "embedded://"            # or "mqtt://host:1883", "mqtts://host:8883"
# user = "exchange"
# password_file = "broker-password"   # or the environment variable DOJIMA_BROKER_PASSWORD

[clock]
# An accelerated market: 600 market seconds a second, from this time on.
# factor = 600
# start = "2026-11-24T08:59:00+09:00"
# skip_idle = true

[instruments]
# file = "instruments.csv"     # a column `instrument`, further ones named as the fields below
reference_price = 100000

[[instrument]]
instrument = "KDX-2107"
"""


def _load(directory: Path, file: Path | None, as_json: bool = False) -> settings.Config:
    if file is None and not directory.is_dir():
        _leave(f"Expected the directory of an exchange, found none at {directory} - at --dir", as_json)
    try:
        return settings.load(file) if file is not None else settings.load_directory(directory)
    except settings.ConfigError as error:
        _leave(str(error), as_json)


def _leave(text: str, as_json: bool = False) -> NoReturn:
    leave(text, 2, as_json=as_json, title="Settings")


@config_app.command()
def show(
    directory: Directory = Path(),
    file: File = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Print all settings in force, defaults included, in the form of the file itself."""
    config = _load(directory, file, as_json)
    typer.echo(msgspec.json.encode(config).decode() if as_json else settings.to_toml(config), nl=as_json)


@config_app.command()
def check(
    directory: Directory = Path(),
    file: File = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Say whether an exchange could start with these settings; name the key if not. Exit status 0 or 2."""
    config = _load(directory, file, as_json)
    try:
        tables = settings.tables(config)
        listed = settings.listings(config, directory)
        openings = settings.openings(config, directory)
    except settings.ConfigError as error:
        _leave(str(error), as_json)
    calendar = load_calendar()
    # What the file cannot say by its types, names of profiles, tables and rules, the engine itself is asked.
    market = Engine()
    for command in (calendar, *tables, *listed):
        for event in market.apply(command):
            if isinstance(event, Rejected):
                what = f"{command.instrument}: " if isinstance(command, ListInstrument) else ""
                _leave(f"{what}{event.text}", as_json)
    profiles = sorted({listing.profile for listing in listed} - config.schedule.sessions.keys())
    if config.schedule.enabled and profiles:
        _leave(f"Expected session times for profile {', '.join(profiles)} - at schedule.sessions", as_json)
    if as_json:
        said = {
            "ok": True,
            "instruments": [listing.instrument for listing in listed],
            "openings": len(openings),
            "broker": config.broker.url.rpartition("@")[2],
            "calendar": [calendar.first, calendar.last],
        }
        typer.echo(msgspec.json.encode(said).decode())
        return
    typer.echo(
        f"ok: {len(listed)} instruments, {len(openings)} opening balances, "
        f"broker {config.broker.url.rpartition('@')[2]}, calendar {calendar.first} to {calendar.last}"
    )


@config_app.command()
def init(
    directory: Directory = Path(),
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a commented dojima.toml to start from."""
    path = directory / settings.CONFIG_NAME
    if path.exists() and not force:
        _leave(f"{path} is there already; --force replaces it")
    directory.mkdir(parents=True, exist_ok=True)
    path.write_text(TEMPLATE, encoding="utf-8")
    typer.echo(f"wrote {path}; now: dojima run --dir {directory}")
