"""What the market says before an instruction goes out: it waits with a reason, for the issuer, or not at all."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from engine import (
    Approval,
    ApproveTransfer,
    ListInstrument,
    NewOrder,
    Phase,
    SetCalendar,
    SetEligibility,
    SetHolder,
    SetPhase,
    SetTokenStatus,
    Side,
    StartDay,
)
from engine.log import MemoryStorage
from gateway import config as settings
from gateway.exchange import Exchange, open_log
from gateway.settlement import YEN, Settlement
from gateway.settlement.adapter import IllegalMove, Instruction, NotFound, State
from gateway.settlement.memory import MemoryLedger
from tests.gateway.market import ManualClock
from tests.settlement.world import NEXT_DATE, SETTLE_DATE, TRADE_DATE, Clock, day, listed, traded

TOKEN = "KDX-2107"
ID = f"DOJIMA-{TRADE_DATE}-1-1"


class Market:
    """What the market says of every instruction."""

    def __init__(self) -> None:
        self.words = ""
        self.approval = False
        self.asked: list[str] = []

    def __call__(self, instruction: Instruction) -> tuple[str, bool]:
        self.asked.append(instruction.id)
        return self.words, self.approval


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def gate() -> Market:
    return Market()


@pytest.fixture
async def settlement(tmp_path: Path, clock: Clock, gate: Market) -> AsyncIterator[Settlement]:
    """One trade, both sides funded, and its settlement date has come."""
    settlement = await Settlement.open(
        tmp_path, market="DOJIMA", clock=clock, adapters={"embedded": MemoryLedger(clock)}
    )
    settlement.ask_first(gate)
    await settlement.fund("alpha", TOKEN, 1_000, "units")
    await settlement.fund("bravo", YEN, 1_000_000, "yen")
    for sequence, events in enumerate(([listed()], [day()], [traded()], [day(SETTLE_DATE)]), 1):
        settlement.take(sequence, sequence, events)
    yield settlement
    await settlement.close()


async def stands(settlement: Settlement) -> tuple[State, str]:
    entry, _ = await settlement.find(ID)
    return entry.state, entry.reason


async def test_what_the_market_lets_through_settles(settlement: Settlement, gate: Market) -> None:
    await settlement.settle()

    assert (await stands(settlement))[0] is State.SETTLED
    assert gate.asked == [ID]


async def test_what_is_not_eligible_waits_with_the_reason_and_settles_when_it_is(
    settlement: Settlement, gate: Market, clock: Clock
) -> None:
    gate.words = "bravo is not registered to hold KDX-2107"
    await settlement.settle()
    assert await stands(settlement) == (State.PRECHECKED, f"not eligible: {gate.words}")
    await settlement.settle()
    assert len(gate.asked) == 1  # it is asked again after a pause, not at once

    gate.words = ""
    clock.advance(2)
    await settlement.settle()

    assert (await stands(settlement))[0] is State.SETTLED


async def test_what_is_not_eligible_by_the_cut_off_is_tried_on_the_next_day(
    settlement: Settlement, gate: Market
) -> None:
    gate.words = "KDX-2107 is paused"
    await settlement.settle()
    assert await settlement.cut_off() == 1
    assert await stands(settlement) == (State.FAILED_TODAY, "not eligible: KDX-2107 is paused")

    await settlement.advance(NEXT_DATE)
    assert (await stands(settlement))[0] is State.FAILED_TODAY
    gate.words = ""
    settlement._clock.advance(100)  # type: ignore[attr-defined]
    await settlement.settle()

    assert (await stands(settlement))[0] is State.SETTLED


async def test_what_needs_approval_waits_for_the_issuer_and_then_goes_out(settlement: Settlement, gate: Market) -> None:
    gate.approval = True
    await settlement.settle()
    assert await stands(settlement) == (State.PENDING_APPROVAL, "waits for the issuer's approval")

    await settlement.approve(ID, "letter-17")
    await settlement.settle()

    entry, moves = await settlement.find(ID)
    assert entry.state is State.SETTLED
    assert [move.after for move in moves] == [
        State.PRECHECKED,
        State.PENDING_APPROVAL,
        State.PRECHECKED,
        State.SUBMITTED,
        State.SETTLED,
    ]
    assert moves[2].reason == "approved: letter-17"


async def test_what_the_issuer_refuses_ends_with_its_words(settlement: Settlement, gate: Market) -> None:
    gate.approval = True
    await settlement.settle()

    await settlement.disapprove(ID, "the buyer is a competitor")

    assert await stands(settlement) == (State.REJECTED, "not approved: the buyer is a competitor")
    with pytest.raises(IllegalMove):
        await settlement.approve(ID, "letter-18")


async def test_an_approval_that_is_late_counts_on_the_next_day(settlement: Settlement, gate: Market) -> None:
    gate.approval = True
    await settlement.settle()
    await settlement.cut_off()
    assert (await stands(settlement))[0] is State.FAILED_TODAY
    await settlement.advance(NEXT_DATE)
    assert (await stands(settlement))[0] is State.PENDING_APPROVAL

    await settlement.approve(ID, "letter-17")
    await settlement.settle()

    assert (await stands(settlement))[0] is State.SETTLED


async def test_only_what_waits_for_it_can_be_approved(settlement: Settlement) -> None:
    await settlement.flush()

    with pytest.raises(IllegalMove, match="NEW"):
        await settlement.approve(ID, "letter-17")
    with pytest.raises(NotFound):
        await settlement.approve("DOJIMA-1-1-1", "letter-17")


async def test_an_approval_holds_although_the_transfer_had_to_wait_again(
    settlement: Settlement, gate: Market, clock: Clock
) -> None:
    gate.approval = True
    await settlement.settle()
    gate.words = "KDX-2107 is paused"
    await settlement.approve(ID, "letter-17")
    await settlement.settle()
    assert await stands(settlement) == (State.PRECHECKED, "not eligible: KDX-2107 is paused")

    gate.words = ""
    clock.advance(2)
    await settlement.settle()

    assert (await stands(settlement))[0] is State.SETTLED


async def test_the_exchange_asks_its_own_engine(tmp_path: Path) -> None:
    clock = ManualClock()
    config = settings.parse("[schedule]\nenabled = false\n")
    log = open_log(config, MemoryStorage(), clock)
    settlement = await Settlement.open(tmp_path, market="DOJIMA", clock=clock.now_ns)
    calendar = SetCalendar(20260101, 20261231, [])
    exchange = Exchange(config, log=log, clock=clock, calendar=calendar, settlement=settlement)
    try:
        exchange.replay()
        engine = exchange.engine
        for sequence, (command, participant) in enumerate(
            [
                (ListInstrument(TOKEN, "CONTINUOUS", reference_price=100, settlement_days=0), ""),
                (StartDay(TRADE_DATE), ""),
                (SetPhase(TOKEN, Phase.CONTINUOUS), ""),
                (NewOrder("s", TOKEN, Side.SELL, 10, 100, account="fund-7"), "alpha"),
                (NewOrder("b", TOKEN, Side.BUY, 10, 100), "bravo"),
                (SetEligibility(TOKEN, whitelist=True, approval=Approval.ACCEPT), ""),
                (SetHolder(TOKEN, "alpha", "fund-7"), ""),
            ],
            1,
        ):
            settlement.take(sequence, sequence, engine.apply(command, participant, sequence))
        await settlement.fund("alpha/fund-7", TOKEN, 10, "units")
        await settlement.fund("bravo", YEN, 1_000, "yen")

        await settlement.settle()
        assert await stands(settlement) == (State.PRECHECKED, f"not eligible: bravo is not registered to hold {TOKEN}")
        engine.apply(SetHolder(TOKEN, "bravo"))
        engine.apply(SetTokenStatus(TOKEN, supervision=True))
        clock.time_ns += 2 * 10**9
        await settlement.settle()
        assert (await stands(settlement))[0] is State.PENDING_APPROVAL
        engine.apply(ApproveTransfer(1, "letter-17"))
        clock.time_ns += 4 * 10**9
        await settlement.settle()
        assert (await stands(settlement))[0] is State.SETTLED
    finally:
        await settlement.close()
        log.close()
