"""``dojima``: one command line for everything a person does with the exchange.

A command's module is imported when the command is used, not before: ``dojima --help`` and a typing error are answered
without loading an MQTT library. So the table below names each command and says in one line what it does; options and
the rest of the help are the command's own.
"""

from __future__ import annotations

import importlib.metadata
import platform
from importlib import import_module
from typing import Annotated, Final

import typer

from gateway.cli.failure import leave

#: Command: where it lives (a function, or a Typer application with commands of its own), and what it does.
COMMANDS: Final = {
    "demo": ("gateway.cli.demo:demo", "Let eight member firms trade an accelerated START day, settle and replay it."),
    "run": ("gateway.cli.run:run", "Run the exchange: start or resume what is in a directory."),
    "client": ("gateway.cli.client:app", "Trade as a member: submit, cancel, amend, watch one's reports."),
    "operator": (
        "gateway.cli.operator:app",
        "Control the market as an operator: request, confirm, see what waits.",
    ),
    "book": ("gateway.cli.book:book", "Watch one instrument: live depth and tape."),
    "replay": ("gateway.cli.replay:replay", "Rebuild the market from an order log, verify it, explain an order."),
    "export": ("gateway.cli.export:export", "Write trades, orders, books and auctions of a log as CSV and Parquet."),
    "ledger": ("gateway.cli.ledger:ledger", "Show balances, instructions and the reconciliation with the ledger."),
    "bench": ("gateway.cli.bench:bench", "Measure this machine: neutral workloads and micro benchmarks."),
    "config": ("gateway.cli.config:config_app", "Show, check and create the settings of an exchange."),
}

app = typer.Typer(
    name="dojima",
    help="A market for security tokens: matching engine, MQTT gateway, settlement.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,  # a traceback must not print members' orders
)


def load(target: str) -> typer.Typer:
    """The command that ``module:name`` points to, as an application of its own."""
    module, _, name = target.partition(":")
    found = getattr(import_module(module), name)
    if isinstance(found, typer.Typer):
        return found
    single = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)
    single.command()(found)
    return single


def _register(name: str, target: str, summary: str) -> None:
    # Everything behind the name, --help included, goes to the command itself.
    @app.command(
        name,
        help=summary,
        add_help_option=False,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False},
    )
    def forward(context: typer.Context) -> None:
        try:
            command = typer.main.get_command(load(target))
        except ImportError as error:
            if error.name:  # a module that is not there; without a name it is the engine, which says what to do
                raise
            leave(str(error), 2, as_json="--json" in context.args, title="dojima")
        command(args=context.args, prog_name=f"dojima {name}")


for _name, (_target, _summary) in COMMANDS.items():
    _register(_name, _target, _summary)


def _print_version(wanted: bool) -> None:
    if wanted:
        implementation = f"{platform.python_implementation()} {platform.python_version()}"
        typer.echo(f"dojima {importlib.metadata.version('dojima')} on {implementation}, {platform.platform()}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options that come before the command."""


if __name__ == "__main__":
    app()
