"""Drop copies: another login reads what a member reads, asks again by number, and can send nothing."""

from __future__ import annotations

import pytest

from engine.log import MemoryStorage
from gateway.bus import topics
from gateway.bus.messages import Hello, Inbound, MessageError, OpenOrders, Reports
from tests.gateway.market import Market, buy, market, sell

COPIES = """
[[drop_copy]]
login = "risk"
members = ["alfa", "bravo"]
[[drop_copy]]
login = "clearer"
members = ["alfa"]
"""
RISK = topics.copy("risk", "alfa")
CLEARER = topics.copy("clearer", "alfa")


def errors(m: Market, address: str) -> list[MessageError]:
    return [message for message in m.bus.out.get(address, []) if isinstance(message, MessageError)]


async def trade(m: Market) -> None:
    m.send("alfa", buy("a-1", 100, 5))
    m.send("bravo", sell("b-1", 100, 3))
    await m.until_reports("bravo", 2)


async def test_each_reader_reads_the_member_s_reports_under_the_same_numbers():
    async with market(text=COPIES) as m:
        await trade(m)

        assert m.numbers("alfa") == [1, 2]
        for address in (RISK, CLEARER):
            assert m.reports(address) == m.reports("alfa")
            assert m.numbers(address) == [1, 2]
        assert m.reports(topics.copy("risk", "bravo")) == m.reports("bravo")
        assert topics.copy("clearer", "bravo") not in m.bus.out


@pytest.mark.parametrize("window", [10_000, 0])  # 0: nothing in memory, derived from the log
async def test_a_reader_asks_again_from_any_number_and_only_it_is_answered(window: int):
    storage = MemoryStorage()
    async with market(storage, COPIES) as m:
        await trade(m)
        said = m.reports("alfa")
    async with market(storage, f"[reports]\nwindow = {window}\n{COPIES}") as m:
        assert m.bus.out[RISK] == [Hello(3, m.exchange.engine.sequence)]
        m.bus.publish_as(RISK, Inbound(resend_from=2))
        await m.until(lambda: len(m.bus.out[RISK]) == 3)

        assert m.bus.out[RISK][1] == Reports(2, said[1:], resent=True)
        assert m.bus.out[RISK][2] == Hello(3, m.exchange.engine.sequence)
        assert m.reports("alfa") == m.reports(CLEARER) == []
        assert not m.bus.unacknowledged


async def test_a_reader_sees_the_open_orders():
    async with market(text=COPIES) as m:
        await trade(m)
        m.bus.publish_as(RISK, Inbound(message_id="q", open_orders=True))

        answer = m.bus.out[RISK][-1]
        assert isinstance(answer, OpenOrders)
        assert (answer.message_id, [order.client_order_id for order in answer.orders]) == ("q", ["a-1"])


async def test_a_reader_can_send_no_command_neither_there_nor_as_a_member():
    async with market(text=COPIES) as m:
        await trade(m)
        before = m.exchange.engine.sequence
        m.send(RISK, buy("r-1", 100, 1), message_id="m")
        assert [(e.code, e.place, e.message_id) for e in errors(m, RISK)] == [("NOT_PERMITTED", "$.commands", "m")]
        m.send("risk", buy("r-1", 100, 1))
        assert [error.code for error in m.errors("risk")] == ["UNKNOWN_MEMBER"]
        assert m.exchange.engine.sequence == before
        assert not m.bus.unacknowledged


@pytest.mark.parametrize("address", ["copy/risk/charlie", "copy/clearer/bravo", "copy/alfa/alfa", "copy/"])
async def test_nobody_reads_a_member_that_the_settings_do_not_give_him(address: str):
    async with market(text=COPIES) as m:
        await trade(m)
        m.bus.publish_as(address, Inbound(resend_from=1))
        assert [error.code for error in errors(m, address)] == ["UNKNOWN_MEMBER"]
        assert m.reports(address) == []
        assert m.exchange.counters.unknown_member == 1


async def test_a_retained_or_malformed_question_and_a_flood_are_turned_away():
    async with market(text="[limits]\nmember_questions = 1\n" + COPIES) as m:
        m.bus.publish_as(RISK, Inbound(resend_from=1), retained=True)
        m.bus.publish_as(RISK, b"\xc1")
        for _ in range(3):
            m.bus.publish_as(RISK, Inbound(resend_from=1))
        assert [error.code for error in errors(m, RISK)] == ["RETAINED", "MALFORMED", "THROTTLED"]
