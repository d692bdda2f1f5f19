"""Does the ledger say what we believe? Every difference gets a name.

Four comparisons: instructions against the ledger's events, one to one; each account's position against opening balance
plus what was settled; the same for money; and the supply of each asset, which trading cannot change. The ledger is read
first, as of one height, and the outbox after it: what the ledger has done is then always known to the outbox, and what
the outbox learned later is left out by its height. So a reconciliation may run while the exchange does. What lies above
the ledger's height even afterwards is no news: a ledger that was lost or rolled back has forgotten it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Protocol, runtime_checkable

from msgspec import Struct

from gateway.settlement.adapter import (
    ISSUANCE,
    YEN,
    Kind,
    LedgerAdapter,
    LedgerEvent,
    Position,
    State,
    Unsupported,
)
from gateway.settlement.instructions import entries, money_asset
from gateway.settlement.outbox import Entry, Outbox


class BreakClass(StrEnum):
    TIMING = "timing"  #: the ledger is ahead, the answer has not been read yet; goes away by itself
    MISSING = "missing"  #: settled for us, not on the ledger
    DUPLICATE = "duplicate"  #: more than once on the ledger
    AMOUNT = "amount"  #: same thing, other amounts or accounts
    UNKNOWN = "unknown"  #: on the ledger, nothing of ours


class Break(Struct, frozen=True):
    """One difference."""

    kind: BreakClass
    ledger: str
    subject: str  #: instruction id, or account and asset
    text: str
    since: int  #: nanoseconds since the epoch from which it has existed; 0: cannot be told


class LedgerReport(Struct, frozen=True):
    """What was compared on one ledger."""

    ledger: str
    height: int
    instructions: int
    settled: int
    events: int
    openings: int
    positions: list[Position]  #: all but the issuance account, money first


class Report(Struct, frozen=True):
    ledgers: list[LedgerReport]
    breaks: list[Break]

    @property
    def agrees(self) -> bool:
        """Whether nothing is wrong; a difference of timing is not."""
        return all(each.kind is BreakClass.TIMING for each in self.breaks)


@runtime_checkable
class Audited(Protocol):
    """A ledger whose inside can be checked as well."""

    async def audit(self) -> list[str]: ...


async def reconcile(outbox: Outbox, ledgers: Mapping[str, LedgerAdapter]) -> Report:
    """Compare the outbox with every ledger given. Raises what a ledger raises when it does not answer."""
    reports, breaks = [], []
    for name in sorted(ledgers):
        report, found = await _one(outbox, name, ledgers[name])
        reports.append(report)
        breaks += found
    for name in await outbox.ledgers():
        if name not in ledgers:
            count = len([entry for entry in await outbox.entries(name) if entry.state is State.SETTLED])
            if count:
                text = f"{count} settled instructions cannot be checked: this ledger is not configured"
                breaks.append(Break(BreakClass.MISSING, name, name, text, 0))
    return Report(reports, breaks)


async def _one(outbox: Outbox, name: str, ledger: LedgerAdapter) -> tuple[LedgerReport, list[Break]]:
    caps = await ledger.capabilities()
    height = (await ledger.health()).height
    events = await _events(ledger, height)
    openings = [event for event in events if event.kind is Kind.OPENING and event.state is State.SETTLED]
    finals: defaultdict[str, list[LedgerEvent]] = defaultdict(list)
    for event in events:
        if event.kind is not Kind.OPENING and event.state is State.SETTLED:
            finals[event.ins_id].append(event)
    assets = sorted({YEN} | {event.asset for event in events if event.asset})
    positions = {asset: await _positions(ledger, asset, height) for asset in assets}
    known = {entry.id: entry for entry in await outbox.entries(name)}
    reached = (await ledger.health()).height
    settled = {
        ins_id: entry
        for ins_id, entry in known.items()
        if entry.state is State.SETTLED and not height < entry.height <= reached
    }

    breaks: list[Break] = []

    def found(kind: BreakClass, subject: str, text: str, since: int = 0) -> None:
        breaks.append(Break(kind, name, subject, text, since))

    # (a) one to one, both ways
    expected: defaultdict[tuple[str, str], int] = defaultdict(int)
    for ins_id, told in finals.items():
        first = told[0]
        if len({event.ledger_ref for event in told}) > 1:
            text = f"settled {len(told)} times: {', '.join(event.ledger_ref for event in told)}"
            found(BreakClass.DUPLICATE, ins_id, text, told[1].at)
        entry = known.get(ins_id)
        if entry is None:
            found(BreakClass.UNKNOWN, ins_id, f"on the ledger as {first.ledger_ref}, no such instruction", first.at)
            continue
        difference = _difference(entry, first, with_money=caps.atomic_dvp)
        if difference:
            found(BreakClass.AMOUNT, ins_id, difference, first.at)
        if ins_id not in settled and entry.state is not State.SETTLED:
            kind = BreakClass.TIMING if not entry.alert else BreakClass.AMOUNT
            found(kind, ins_id, f"settled on the ledger as {first.ledger_ref}, {entry.state} here", first.at)
        _add(expected, entry, with_money=caps.atomic_dvp)
    for ins_id, entry in settled.items():
        if ins_id not in finals:
            found(BreakClass.MISSING, ins_id, f"settled here as {entry.ledger_ref}, not on the ledger", entry.since)
            _add(expected, entry, with_money=caps.atomic_dvp)

    # (b), (c) positions and money: opening plus finals
    for event in openings:
        expected[event.seller, event.asset] -= event.quantity
        expected[event.buyer, event.asset] += event.quantity
    for asset in sorted(set(assets) | {asset for _, asset in expected}):
        actual = {position.account: position.total for position in positions.get(asset, [])}
        for account in sorted(actual.keys() | {account for account, of in expected if of == asset}):
            want, have = expected[account, asset], actual.get(account, 0)
            if want != have:
                text = f"opening and settled instructions make {want}, the ledger has {have}"
                found(BreakClass.AMOUNT, f"{account} {asset}", text)

    # (d) supply
    for asset in assets:
        issued = sum(event.quantity for event in openings if event.asset == asset)
        supply = sum(position.total for position in positions[asset] if position.account != ISSUANCE)
        if issued != supply:
            found(BreakClass.AMOUNT, asset, f"{issued} were issued, {supply} are there")
    if isinstance(ledger, Audited):
        for line in await ledger.audit():
            found(BreakClass.AMOUNT, "books", line)

    report = LedgerReport(
        ledger=name,
        height=height,
        instructions=len(known),
        settled=len(settled),
        events=len(events),
        openings=len(openings),
        positions=[each for asset in assets for each in positions[asset] if each.account != ISSUANCE],
    )
    return report, breaks


async def _events(ledger: LedgerAdapter, height: int) -> list[LedgerEvent]:
    """All events up to ``height``; one told twice counts once, one done twice counts twice."""
    found: dict[tuple[int, str, str, State], LedgerEvent] = {}
    cursor = ""
    while True:
        events, after = await ledger.events(cursor)
        for event in events:
            if event.height <= height:
                found[event.height, event.ledger_ref, event.ins_id, event.state] = event
        if after == cursor:
            return list(found.values())
        cursor = after


async def _positions(ledger: LedgerAdapter, asset: str, height: int) -> list[Position]:
    try:
        positions: Iterable[Position] = await ledger.positions(asset, height)
    except Unsupported:
        positions = await ledger.positions(asset)
    return list(positions)


def _difference(entry: Entry, event: LedgerEvent, *, with_money: bool) -> str:
    """What instruction and event disagree on; "" when nothing."""
    ins = entry.instruction
    pairs: list[tuple[str, object, object]] = [
        ("content", ins.hash, event.hash),
        ("seller", ins.seller, event.seller),
        ("buyer", ins.buyer, event.buyer),
        ("asset", ins.asset, event.asset),
        ("quantity", ins.quantity, event.quantity),
    ]
    if with_money:
        pairs += [("cash", ins.cash, event.cash), ("currency", ins.currency, event.currency)]
    return "; ".join(f"{what} is {ours} here, {theirs} on the ledger" for what, ours, theirs in pairs if ours != theirs)


def _add(expected: defaultdict[tuple[str, str], int], entry: Entry, *, with_money: bool) -> None:
    money = money_asset(entry.instruction.currency)
    for account, asset, amount in entries(entry.instruction):
        if with_money or asset != money:  # where the legs are linked by an agent, the ledger has no money
            expected[account, asset] += amount
