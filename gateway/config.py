"""Settings of one exchange: ``dojima.toml`` in its directory.

Everything has a default that works, so an empty file (or none) is a valid configuration. An error names the key, what
was expected and what came. Secrets are never in this file: a broker's password comes from a file of its own or from
the environment.
"""

from __future__ import annotations

import csv
import json
import os
import re
import tomllib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from engine.commands import (
    INSTRUMENT_PATTERN,
    PARTICIPANT_PATTERN,
    LimitRow,
    ListInstrument,
    SetLimitTable,
    SetQuoteTable,
    SetTickTable,
    TickRow,
)
from engine.types import PHASE_LABELS, Phase
from gateway.bus.embedded import EXCHANGE_LOGIN
from gateway.settlement.adapter import YEN

CONFIG_NAME: Final = "dojima.toml"
#: Environment variable with the broker's password.
PASSWORD_VARIABLE: Final = "DOJIMA_BROKER_PASSWORD"

Positive = Annotated[int, Meta(ge=1, le=2**40)]
NotNegative = Annotated[int, Meta(ge=0, le=2**40)]
_TIME_OF_DAY: Final = r"^([01]\d|2[0-3]):[0-5]\d(:[0-5]\d)?\Z"  # \Z: $ would let a newline follow
TimeOfDay = Annotated[str, Meta(pattern=_TIME_OF_DAY)]
Member = Annotated[str, Meta(pattern=PARTICIPANT_PATTERN.replace("$", r"\Z"))]
#: Stricter than on the wire, where the engine answers a malformed code: here it would answer once the exchange runs.
Code = Annotated[str, Meta(pattern=INSTRUMENT_PATTERN)]

PHASES: Final = {label: phase for phase, label in PHASE_LABELS.items()}


class ConfigError(Exception):
    """The settings cannot be used. The text names file, key, expectation and value."""


class _Section(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Broker(_Section, frozen=True):
    """``embedded://`` or ``embedded://127.0.0.1:PORT``, ``mqtt://host:port``, ``mqtts://host:port``."""

    url: str = "embedded://"
    user: str = EXCHANGE_LOGIN
    password_file: str = ""  #: one line; else the environment variable DOJIMA_BROKER_PASSWORD
    ca_file: str = ""  #: mqtts: certificates to trust; empty: the system's
    protocol: Literal["3.1.1", "5"] = "3.1.1"
    alarm_bytes: NotNegative = 512 * 1024 * 1024  #: waiting at a broker that tells (mosquitto); 0: no alarm
    session: str = "dojima-exchange"  #: begins the name of the exchange's session at the broker; its password ends it


class Clock(_Section, frozen=True):
    factor: Positive = 1  #: market seconds per second; 1 without ``start`` is the machine's own time
    start: str = ""  #: market time of the first start, for instance 2026-11-24T08:59:00+09:00; later starts resume
    skip_idle: bool = False  #: jump over times in which nothing is due (needs ``start``)


_SESSIONS: Final = {
    "START": [
        ("09:00:00", "PreOpen"),
        ("11:29:00", "PreOpenNCP"),
        ("11:30:00", "OpeningAuction"),
        ("11:30:00", "Break"),
        ("12:30:00", "PreClose"),
        ("14:59:00", "PreCloseNCP"),
        ("15:00:00", "ClosingAuction"),
        ("15:00:00", "Closed"),
    ],
    "CONTINUOUS": [("00:00:00", "Continuous"), ("23:59:59", "Closed")],
    "TSE_HYBRID": [
        ("08:00:00", "PreOpen"),
        ("09:00:00", "OpeningAuction"),
        ("09:00:00", "Continuous"),
        ("11:30:00", "ClosingAuction"),
        ("11:30:00", "Break"),
        ("12:05:00", "PreOpen"),
        ("12:30:00", "OpeningAuction"),
        ("12:30:00", "Continuous"),
        ("15:25:00", "PreClose"),
        ("15:30:00", "ClosingAuction"),
        ("15:30:00", "Closed"),
    ],
    "N_CALLS": [
        ("09:00:00", "Call"),
        ("10:30:00", "CallAuction"),
        ("10:30:00", "Call"),
        ("12:00:00", "CallAuction"),
        ("12:00:00", "Call"),
        ("13:30:00", "CallAuction"),
        ("13:30:00", "Call"),
        ("15:00:00", "CallAuction"),
        ("15:00:00", "Closed"),
    ],
}


class Schedule(_Section, frozen=True):
    """Session times of each profile. START's own are not published: these are assumptions (market-rules 2)."""

    enabled: bool = True  #: false: an operator moves the phases
    utc_offset: Annotated[str, Meta(pattern=r"^[+-]([01]\d|2[0-3]):[0-5]\d\Z")] = "+09:00"  #: Japan has no summer time
    day_start: TimeOfDay = "00:00:00"  #: when a business day begins: tables become effective, base prices are fixed
    open_days: NotNegative = 0  #: trading days of this market on which books open; later ones only settle; 0: all
    days: NotNegative = 0  #: trading days of this market in all; 0: no end
    sessions: dict[str, list[tuple[str, str]]] = msgspec.field(default_factory=lambda: dict(_SESSIONS))
    random_end_ms: dict[str, Annotated[int, Meta(ge=0, le=600_000)]] = {}  #: by profile: longest delay of an auction


class Instruments(_Section, frozen=True):
    """``file`` is a CSV with a column ``instrument`` (or ``code``) and any further fields of ``ListInstrument``; other
    columns are descriptive and ignored. What the file leaves out is taken from here."""

    file: str = ""  #: relative to this file
    profile: str = "START"
    reference_price: NotNegative = 100_000
    lot: Positive = 1
    price_decimals: Annotated[int, Meta(ge=0, le=8)] = 0
    tick_table: str = "one"
    limit_table: str = "none"
    settlement_days: Annotated[int, Meta(ge=0, le=30)] = 2
    ledger: str = "embedded"
    units_outstanding: NotNegative = 0
    rules: dict[str, int | str] = {}


class Instrument(_Section, frozen=True):
    """One instrument. What it leaves out is taken from ``[instruments]``."""

    instrument: Code
    profile: str | None = None
    reference_price: NotNegative | None = None
    lot: Positive | None = None
    price_decimals: Annotated[int, Meta(ge=0, le=8)] | None = None
    tick_table: str | None = None
    limit_table: str | None = None
    settlement_days: Annotated[int, Meta(ge=0, le=30)] | None = None
    ledger: str | None = None
    units_outstanding: NotNegative | None = None
    rules: dict[str, int | str] | None = None


class Limits(_Section, frozen=True):
    """What one member, and all together, may have waiting; and how fast one may send."""

    waiting_commands: Positive = 100_000
    waiting_bytes: Positive = 64 * 1024 * 1024
    member_waiting_commands: Positive = 20_000
    member_waiting_bytes: Positive = 8 * 1024 * 1024
    member_rate: Positive = 50_000  #: commands a second on average (a message without commands counts as one)
    member_burst: Positive = 100_000
    #: What a mass cancel takes of that rate, and one more for each 10 open orders of its member: it walks over them.
    member_mass_cancel: Positive = 100
    member_questions: Positive = 20  #: questions a second (resend_from, open_orders), each of which walks far
    disconnect_after_ms: NotNegative = 1_000  #: how long a member's last session may be gone before its orders go
    members: Positive = 1_000  #: how many different members are served when ``members`` is "any"
    batch_commands: Positive = 16_384  #: most commands in one record of the log


class Operators(_Section, frozen=True):
    """Logins of the exchange's own people. Weighty commands take two of them (``gateway.operators``)."""

    names: list[Member] = []
    confirm_seconds: Annotated[int, Meta(ge=1, le=86_400)] = 120  #: how long a request waits for a second operator
    rate: Positive = 20  #: messages a second of one operator


class DropCopy(_Section, frozen=True):
    """A login (a clearer, a risk desk) that reads a copy of members' reports and can send no command."""

    login: Member
    members: list[Member]


class Reports(_Section, frozen=True):
    window: NotNegative = 10_000  #: newest reports of each member kept in memory; older ones are derived from the log
    retention: NotNegative = 0  #: newest reports of each member that can be asked for again; 0: all since the beginning
    resend: Positive = 5_000  #: most reports in one answer to resend_from; a client asks on


class MarketData(_Section, frozen=True):
    snapshot_ms: Positive = 250  #: least time between two snapshots of an instrument
    digest_every: Positive = 64  #: depth messages between two digests
    #: Profiles whose books are published order by order; START's own are.
    order_by_order: list[str] = msgspec.field(default_factory=lambda: ["START"])
    orders_ms: Positive = 1_000  #: least time between two snapshots of these, for each part of one


class Log(_Section, frozen=True):
    mark_every: Positive = 100_000  #: commands between two digest marks; the close writes one too


class Settlement(_Section, frozen=True):
    enabled: bool = True
    openings: str = ""  #: opening balances, a CSV with the columns account,asset,quantity; asset JPY or a code


class Config(_Section, frozen=True):
    market: Annotated[str, Meta(pattern=r"^[A-Z0-9]{1,12}\Z")] = (
        "DOJIMA"  #: never changes: it is part of every instruction's id
    )
    members: Literal["any"] | list[Member] = "any"  #: "any": whoever the broker lets in
    broker: Broker = Broker()
    clock: Clock = Clock()
    schedule: Schedule = Schedule()
    instruments: Instruments = Instruments()
    instrument: list[Instrument] = []
    tick_tables: dict[str, list[tuple[NotNegative, Positive]]] = {}  #: name: [start, tick] rows
    limit_tables: dict[str, list[tuple[NotNegative, NotNegative]]] = {}  #: name: [base price below, width] rows
    quote_tables: dict[str, list[tuple[NotNegative, NotNegative]]] = {}  #: name: [last price below, width] rows
    limits: Limits = Limits()
    operators: Operators = Operators()
    drop_copy: list[DropCopy] = []
    reports: Reports = Reports()
    market_data: MarketData = MarketData()
    log: Log = Log()
    settlement: Settlement = Settlement()


# --- reading ---------------------------------------------------------------------------------------------------------


def load(path: Path) -> Config:
    """Read a file. Raises ``ConfigError``."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    return parse(text, str(path))


def load_directory(directory: Path) -> Config:
    """``dojima.toml`` of an exchange's directory; the defaults if there is none."""
    path = directory / CONFIG_NAME
    return load(path) if path.exists() else Config()


def parse(text: str, name: str = CONFIG_NAME) -> Config:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name}: {error}") from error
    try:
        config = msgspec.convert(data, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{name}: {_explain(str(error), data)}") from error
    _check(config, name)
    return config


def _explain(text: str, data: Any) -> str:
    """msgspec's message with the key as the file spells it, and the value that was found there."""
    found = re.search(r" - at `\$\.?([^`]*)`$", text)
    if found is None:
        return text
    key = found.group(1)
    value = data
    for part in re.findall(r"[^.\[\]]+", key):
        try:
            value = value[int(part)] if isinstance(value, list) else value[part]
        except (KeyError, IndexError, ValueError, TypeError):
            return f"{text[: found.start()]} - at {key}"
    got = "" if isinstance(value, dict) or "got" in text else f", got {value!r}"
    return f"{text[: found.start()]}{got} - at {key}"


def _check(config: Config, name: str) -> None:
    def fail(key: str, expected: str, got: object) -> ConfigError:
        return ConfigError(f"{name}: Expected {expected}, got {got!r} - at {key}")

    if not re.match(r"^(embedded|mqtt|mqtts)://", config.broker.url):
        raise fail("broker.url", "embedded://, mqtt://host or mqtts://host", config.broker.url.partition("://")[0])
    if isinstance(config.members, list) and EXCHANGE_LOGIN in config.members:
        raise fail("members", f"no member called {EXCHANGE_LOGIN} (the exchange's own login)", EXCHANGE_LOGIN)
    if len(set(config.operators.names)) == 1:
        raise fail("operators.names", "at least two operators, for weighty commands take two", config.operators.names)
    logins = {EXCHANGE_LOGIN: "the exchange's own login"}
    if isinstance(config.members, list):
        logins |= dict.fromkeys(config.members, "a member")
    logins |= dict.fromkeys([member for copy in config.drop_copy for member in copy.members], "a member")
    others = [(f"operators.names[{i}]", name, "an operator") for i, name in enumerate(config.operators.names)]
    others += [(f"drop_copy[{i}].login", copy.login, "a copy's reader") for i, copy in enumerate(config.drop_copy)]
    for key, login, what in others:
        if login in logins:
            raise fail(key, f"a login of its own for {what}, not that of {logins[login]}", login)
        logins[login] = what
    if config.clock.start:
        try:
            start_ns(config.clock.start)
        except ValueError:
            raise fail("clock.start", "a time like 2026-11-24T08:59:00+09:00", config.clock.start) from None
    elif config.clock.factor != 1 or config.clock.skip_idle:
        raise fail("clock.start", "a start time for an accelerated clock", "")
    for profile, steps in config.schedule.sessions.items():
        before = ""
        for index, (at, label) in enumerate(steps):
            key = f"schedule.sessions.{profile}[{index}]"
            if label not in PHASES:
                raise fail(f"{key}[1]", f"one of {', '.join(PHASES)}", label)
            if not re.match(_TIME_OF_DAY, at):
                raise fail(f"{key}[0]", "a time as HH:MM or HH:MM:SS", at)
            if full_time(at) < before:
                raise fail(f"{key}[0]", f"a time not before {before}", at)
            before = full_time(at)
    names = [instrument.instrument for instrument in config.instrument]
    for code in names:
        if names.count(code) > 1:
            raise fail("instrument", "each instrument once", code)


def full_time(text: str) -> str:
    """HH:MM or HH:MM:SS as HH:MM:SS."""
    return text if len(text) == 8 else f"{text}:00"


def seconds_of_day(text: str) -> int:
    hours, minutes, seconds = full_time(text).split(":")
    return int(hours) * 3600 + int(minutes) * 60 + int(seconds)


def offset_seconds(text: str) -> int:
    sign = -1 if text[0] == "-" else 1
    return sign * seconds_of_day(text[1:])


def start_ns(text: str) -> int:
    """Nanoseconds since the epoch of an ISO time with an offset. Raises ValueError."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("no UTC offset")
    return int(moment.timestamp()) * 1_000_000_000


def password(config: Config, directory: Path) -> str:
    """The broker's password: from its file, else from the environment, else none."""
    if not config.broker.password_file:
        return os.environ.get(PASSWORD_VARIABLE, "")
    path = directory / config.broker.password_file
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"broker.password_file: {error}") from error


# --- reference data --------------------------------------------------------------------------------------------------


def listings(config: Config, directory: Path) -> list[ListInstrument]:
    """The instruments of the file, then those of the configuration itself; the latter win. Raises ``ConfigError``."""
    common = msgspec.to_builtins(config.instruments)
    del common["file"]
    found: dict[str, ListInstrument] = {}
    if config.instruments.file:
        for place, fields in _rows(directory / config.instruments.file):
            found[fields["instrument"]] = _listing({**common, **fields}, place)
    for index, instrument in enumerate(config.instrument):
        given = {key: value for key, value in msgspec.to_builtins(instrument).items() if value is not None}
        found[instrument.instrument] = _listing({**common, **given}, f"instrument[{index}]")
    return list(found.values())


def tables(config: Config) -> list[SetTickTable | SetLimitTable | SetQuoteTable]:
    """The tables of the configuration, effective from the next trading day."""
    ticks = [
        SetTickTable(name, 0, [TickRow(start, tick) for start, tick in rows])
        for name, rows in config.tick_tables.items()
    ]
    limits = [
        SetLimitTable(name, 0, [LimitRow(below, width) for below, width in rows])
        for name, rows in config.limit_tables.items()
    ]
    quotes = [
        SetQuoteTable(name, 0, [LimitRow(below, width) for below, width in rows])
        for name, rows in config.quote_tables.items()
    ]
    return [*ticks, *limits, *quotes]


def openings(config: Config, directory: Path) -> list[tuple[str, str, int, str]]:
    """Opening balances as (account, asset, quantity, reference), each booked once whatever the number of starts."""
    if not config.settlement.openings:
        return []
    path = directory / config.settlement.openings
    found = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for line, row in enumerate(csv.DictReader(file), start=2):
                quantity = row.get("quantity") or ""
                if not (row.get("account") and row.get("asset") and quantity.isascii() and quantity.isdigit()):
                    raise ConfigError(f"{path.name}:{line}: Expected account, asset and a whole quantity, got {row!r}")
                reference = f"opening {row['account']} {row['asset']}"
                asset = YEN if row["asset"] == "JPY" else row["asset"]
                found.append((row["account"], asset, int(quantity), reference))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"settlement.openings: {error}") from error
    return found


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    columns = set(ListInstrument.__struct_fields__) - {"rules"}
    texts = {field.name for field in msgspec.structs.fields(ListInstrument) if field.type is str}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for line, row in enumerate(csv.DictReader(file), start=2):
                row.setdefault("instrument", row.get("code") or "")
                fields: dict[str, Any] = {}
                for name in columns & row.keys():
                    text = (row[name] or "").strip()
                    if not text:
                        continue
                    if name in texts or name == "instrument":
                        fields[name] = text
                    elif text.isascii() and text.isdigit():
                        fields[name] = int(text)
                    else:
                        raise ConfigError(f"{path.name}:{line}: Expected a whole number, got {text!r} - at {name}")
                if "instrument" not in fields:
                    raise ConfigError(f"{path.name}:{line}: Expected an instrument code - at instrument")
                if not re.fullmatch(INSTRUMENT_PATTERN, fields["instrument"]):
                    expected = f"Expected `str` matching regex {INSTRUMENT_PATTERN!r}"
                    raise ConfigError(f"{path.name}:{line}: {expected}, got {fields['instrument']!r} - at instrument")
                yield f"{path.name}:{line}", fields
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"instruments.file: {error}") from error


def _listing(fields: dict[str, Any], place: str) -> ListInstrument:
    command = ListInstrument(**fields)
    try:
        # A Struct's constructor does not check; the decoder that the log uses does.
        return msgspec.msgpack.decode(msgspec.msgpack.encode(command), type=ListInstrument)
    except msgspec.ValidationError as error:
        text = str(error)
        found = re.search(r" - at `\$\[(\d+)\]`$", text)
        if found is None:
            raise ConfigError(f"{place}: {text}") from error
        name = ListInstrument.__struct_fields__[int(found.group(1)) - 1]
        raise ConfigError(f"{place}: {text[: found.start()]}, got {fields[name]!r} - at {name}") from error


# --- writing ---------------------------------------------------------------------------------------------------------


def to_toml(config: Config) -> str:
    """The whole configuration, defaults included, as a file that ``parse`` reads to the same value."""
    lines: list[str] = []
    _write(lines, "", msgspec.to_builtins(config))
    return "\n".join(lines).strip() + "\n"


def _write(lines: list[str], prefix: str, table: dict[str, Any]) -> None:
    inner: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict) or (isinstance(value, list) and value and isinstance(value[0], dict)):
            inner[key] = value
        elif value is not None:
            lines.append(f"{key} = {_value(value)}")
    for key, value in inner.items():
        for item in value if isinstance(value, list) else [value]:
            brackets = ("[[", "]]") if isinstance(value, list) else ("[", "]")
            lines.extend(("", f"{brackets[0]}{prefix}{key}{brackets[1]}"))
            _write(lines, f"{prefix}{key}.", item)


def _value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_value(item) for item in value)}]"
    return json.dumps(value, ensure_ascii=False)  # strings, whole numbers and booleans are spelled alike in TOML


def phase_of(label: str) -> Phase:
    return PHASES[label]
