"""What protects the market, as members and the public are told of it."""

from __future__ import annotations

from engine.commands import (
    BustTrade,
    CancelOrder,
    Disconnected,
    Kill,
    Restore,
    SetPhase,
    SetRiskLimits,
    StartDay,
)
from engine.events import CancelFrozen, Cancelled, ConnectionLost, KillSwitched, RiskLimitsSet
from engine.types import CancelReason, Phase, Side
from gateway.bus.messages import Bust, PhaseMessage, TradeBust
from gateway.livebook import LiveBook
from tests.gateway.market import DAY, buy, market, sell


async def test_a_member_is_told_of_its_own_kill_and_of_nobody_elses():
    async with market() as m:
        m.send("alfa", buy("a-1", 99, 10))
        m.send("bravo", sell("b-1", 101, 10))
        await m.until_reports("bravo", 1)
        await m.exchange.submit(Kill("alfa"), Restore("alfa"), Kill("", "CALL"))
        reports = [report.event for report in await m.until_reports("alfa", 4)]
        assert reports[1] == KillSwitched("alfa", "", True, 1)
        assert isinstance(reports[2], Cancelled)
        assert reports[2].reason == CancelReason.KILL
        assert reports[3] == KillSwitched("alfa", "", False, 0)
        assert len(m.reports("bravo")) == 1


async def test_a_member_is_told_its_limits_and_of_its_lost_connection():
    async with market() as m:
        await m.exchange.submit(SetRiskLimits("alfa", quantity_max=5), SetRiskLimits("", quantity_max=50))
        await m.exchange.submit(Disconnected("alfa"))
        limits, lost = [report.event for report in await m.until_reports("alfa", 2)]
        assert isinstance(limits, RiskLimitsSet)
        assert limits.quantity_max == 5
        assert lost == ConnectionLost("alfa", 0, 0)


async def test_a_busted_trade_reaches_both_sides_and_leaves_the_volume_of_the_day():
    async with market() as m:
        m.send("alfa", buy("a-1", 100, 10, account="fund"))
        m.send("bravo", sell("b-1", 100, 4))
        await m.until_reports("bravo", 2)
        await m.exchange.submit(BustTrade(1))
        bought = (await m.until_reports("alfa", 3))[-1].event
        sold = (await m.until_reports("bravo", 3))[-1].event
        assert bought == Bust("alfa", "a-1", 1, "CONT", Side.BUY, 100, 4, 1, "bravo", "fund", DAY)
        assert sold == Bust("bravo", "b-1", 2, "CONT", Side.SELL, 100, 4, 1, "alfa", "", DAY)
        book = LiveBook("CONT")
        for message in m.bus.market["CONT"]:
            book.take(message, kept=False)
        assert [(bust.trade_id, bust.quantity) for bust in book.busts] == [(1, 4)]
        assert (book.volume, book.last_price, len(book.tape)) == (0, 100, 1)
        m.clock.machine_ns += 10**9
        await m.until(lambda: m.bus.retained["CONT"].volume == 0)


async def test_the_bust_of_an_earlier_days_trade_leaves_todays_volume():
    async with market() as m:
        m.send("alfa", buy("a-1", 100, 10))
        m.send("bravo", sell("b-1", 100, 4))
        await m.until_reports("bravo", 2)
        await m.exchange.submit(SetPhase("CONT", Phase.CLOSED))
        for phase in (2, 3, 4, 5, 6, 7, 0):
            await m.exchange.submit(SetPhase("CALL", Phase(phase)))
        await m.exchange.submit(StartDay(DAY + 1), BustTrade(1))
        (bust,) = [x for x in m.bus.market["CONT"] if isinstance(x, TradeBust)]
        assert bust.trade_date == DAY
        assert m.bus.retained["CONT"].volume == 0


async def test_the_public_is_told_when_a_phase_ends_and_a_member_when_it_can_cancel_again():
    async with market() as m:
        m.send("alfa", buy("a-1", 100, 10, "CALL"))
        await m.until_reports("alfa", 1)
        until = m.clock.now_ns() + 60 * 10**9
        await m.exchange.submit(SetPhase("CALL", Phase.PRE_OPEN_NCP, until))
        m.send("alfa", CancelOrder("r-1", "a-1"))
        assert (await m.until_reports("alfa", 3))[-1].event == CancelFrozen(
            "alfa", "r-1", "a-1", "CALL", Phase.BREAK, until
        )
        phases = [x for x in m.bus.market["CALL"] if isinstance(x, PhaseMessage)]
        assert (phases[-1].phase, phases[-1].until_ns) == ("PreOpenNCP", until)
        assert len(phases) == len({phase.n for phase in phases}) == len({phase.phase for phase in phases})
