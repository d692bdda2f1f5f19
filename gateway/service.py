"""The exchange as a running service.

``serve`` is what ``dojima run`` calls: files, a real broker, settlement, signals around an ``exchange.Exchange``.

How a program (the demo, an operator's script) runs it::

    write DIR/dojima.toml                              # see ``gateway.config``; ``dojima config init --dir DIR``
    dojima run --dir DIR --json                        # one JSON object per line on standard output
      {"event": "listening", "url": "mqtt://127.0.0.1:PORT", …}   # embedded: members log in by name, no password;
                                                       # an operator with what DIR/secrets/NAME holds
      {"event": "ready", "sequence": 0, …}             # replayed, connected, serving
      {"event": "day", "date": 20261124}, {"event": "phase", "instrument": …, "phase": "PreOpen", …}
      {"event": "auction", "instrument": …, "price": …, "volume": …}, {"event": "schedule_ended"}
    SIGTERM or SIGINT ends it cleanly (exit status 0), SIGKILL is survived by the next start.

``DIR/broker.json`` holds the same ``url``, and the ``pid`` while it runs: ``broker_url(DIR)`` reads it. A broker
started by ``embedded://`` takes the port it had before when that is free, so clients find the restarted exchange at
the same address; it ends with the exchange. To keep a broker running across restarts, start it outside::

    broker = await EmbeddedBroker.start()              # ``gateway.bus.embedded``
    dojima run --dir DIR --broker URL                  # URL = broker.exchange_url; members use broker.url
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from hashlib import blake2b
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from engine.log import FileStorage
from gateway import config as settings
from gateway.bus.client import Address, MqttBus
from gateway.bus.embedded import BrokerFailed, EmbeddedBroker, operator_password
from gateway.bus.messages import Status
from gateway.clock import AcceleratedClock, Clock, SystemClock
from gateway.config import Config, ConfigError
from gateway.exchange import Derive, Exchange, Say, Stopped, cancel_all, open_log
from gateway.holidays import load_calendar
from gateway.interpreter import short_pauses
from gateway.settlement import Settlement

BROKER_NAME: Final = "broker.json"


def broker_url(directory: Path) -> str:
    """Where the members of the exchange in ``directory`` connect to. Raises ``FileNotFoundError`` if none ever ran."""
    return str(json.loads((directory / BROKER_NAME).read_text(encoding="utf-8"))["url"])


def make_clock(config: Config) -> Clock:
    if not config.clock.start:
        return SystemClock()
    return AcceleratedClock(config.clock.factor, settings.start_ns(config.clock.start), skip=config.clock.skip_idle)


async def _start_broker(config: Config, directory: Path) -> EmbeddedBroker:
    """The embedded broker, at the port of the URL; else at the port it had before; else at a free one."""
    operators = {name: operator_password(directory, name) for name in config.operators.names}
    wanted = urlsplit(config.broker.url).port or 0
    if wanted:
        return await EmbeddedBroker.start(wanted, operators)
    try:
        before = urlsplit(broker_url(directory)).port or 0
    except (OSError, ValueError, KeyError):
        before = 0
    if before:
        with contextlib.suppress(BrokerFailed):  # taken by somebody else meanwhile
            return await EmbeddedBroker.start(before, operators)
    return await EmbeddedBroker.start(0, operators)


def _address(config: Config, directory: Path) -> Address:
    try:
        address = Address.parse(config.broker.url)
    except ValueError as error:
        raise ConfigError(f"{error} - at broker.url") from error
    return msgspec.structs.replace(
        address,
        user=address.user or config.broker.user,
        password=address.password or settings.password(config, directory),
    )


def _session(config: Config, address: Address) -> str:
    """Name of the exchange's session at the broker, which nobody guesses who does not know the exchange's password.

    A broker hands a session, and drops what waits in it, to any login that names it: so a member that could name this
    one would lose the others' orders for them.
    """
    if not address.password:
        return config.broker.session
    return f"{config.broker.session}-{blake2b(address.password.encode(), digest_size=8, person=b'session').hexdigest()}"


def _derive_from(directory: Path) -> Derive:
    async def derive_reports(participant: str, first: int, count: int) -> list[bytes]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gateway.reports",
            str(os.getpid()), str(directory), participant, str(first), str(count),
            stdin=asyncio.subprocess.PIPE,  # its end is the child's end
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            output = await process.stdout.read()
            status = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            process.stdin.close()
        if status:
            raise RuntimeError(f"Expected status 0 of the process that reads old reports, got {status}")
        messages = []
        while output:
            size = 4 + int.from_bytes(output[:4], "big")
            messages.append(output[4:size])
            output = output[size:]
        return messages

    return derive_reports


async def serve(directory: Path, config: Config, *, say: Say, until_done: bool = False) -> None:
    """Run the exchange of ``directory`` until SIGTERM or SIGINT.

    ``until_done`` ends it as well once the schedule has come to its end (``schedule.days``) and all that is due was
    tried on the ledgers. Raises ``ConfigError``, ``DirectoryInUse``, ``EngineFault`` and whatever else makes
    going on impossible; then the directory is as a crash would leave it, and the next start resumes.
    """
    clock = make_clock(config)
    calendar = load_calendar()
    reference = [*settings.tables(config), *settings.listings(config, directory)]
    address = None if config.broker.url.startswith("embedded://") else _address(config, directory)
    log = open_log(config, FileStorage(directory), clock)  # first of all: from here on the directory is ours
    if log.torn is not None:
        say("torn_tail", offset=log.torn.offset, size=log.torn.size, why=log.torn.why)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(log.close)
        settlement: Settlement | None = None
        if config.settlement.enabled:
            settlement = await Settlement.open(directory, market=config.market, adapters={}, clock=clock.now_ns)
            stack.push_async_callback(settlement.close)
            await settlement.fund_all(settings.openings(config, directory))
        exchange = Exchange(
            config,
            log=log,
            clock=clock,
            calendar=calendar,
            reference=reference,
            settlement=settlement,
            derive_reports=_derive_from(directory),
            say=say,
        )
        exchange.replay()
        stack.enter_context(short_pauses())
        watchers: list[asyncio.Task[None]] = []
        if address is None:
            broker = await stack.enter_async_context(await _start_broker(config, directory))
            address, url = Address.parse(broker.exchange_url), broker.url
            watchers.append(asyncio.create_task(_watch(broker), name="embedded broker"))
        else:
            url = str(msgspec.structs.replace(address, user=""))
        _write_broker(directory, url, os.getpid())
        stack.callback(_write_broker, directory, url, 0)
        say("listening", url=url, dir=str(directory), pid=os.getpid())
        bus = MqttBus(
            address,
            session=_session(config, address),
            will=msgspec.msgpack.encode(Status("down", market=config.market)),
            protocol=config.broker.protocol,
            ca_file=config.broker.ca_file,
            alarm_bytes=config.broker.alarm_bytes,
        )
        if until_done:
            watchers.append(asyncio.create_task(_until_done(exchange, settlement), name="until done"))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, exchange.stop)
        serving = asyncio.create_task(exchange.run(bus), name="exchange")
        try:
            await asyncio.wait((serving, *watchers), return_when=asyncio.FIRST_COMPLETED)
            for watcher in watchers:
                if watcher.done():
                    watcher.result()  # the broker is gone: raises
            exchange.stop()
            await serving
        finally:
            exchange.stop()
            await asyncio.wait((serving,))
            await cancel_all(watchers)
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
        say("stopped", sequence=exchange.engine.sequence)


async def _watch(broker: EmbeddedBroker) -> None:
    """The embedded broker ends with us, never before."""
    while broker.process.poll() is None:  # noqa: ASYNC110 (a process sets no event)
        await asyncio.sleep(0.5)
    raise Stopped(f"the embedded broker ended with status {broker.process.returncode}")


async def _until_done(exchange: Exchange, settlement: Settlement | None) -> None:
    await exchange.schedule_ended.wait()
    if settlement is not None:
        await settlement.settle()


def _write_broker(directory: Path, url: str, pid: int) -> None:
    """A reader finds all of the old file or all of the new."""
    aside = directory / f"{BROKER_NAME}.new"
    aside.write_text(json.dumps({"url": url, "pid": pid}), encoding="utf-8")
    aside.replace(directory / BROKER_NAME)
