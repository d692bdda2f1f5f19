"""The trading client against a small exchange in the same process, with every fault of the road on a switch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.commands import CancelOrder, NewOrder
from engine.types import Side
from gateway.bus.messages import MessageError
from gateway.client import (
    Accepted,
    Amended,
    AnotherMarket,
    BadCommand,
    CannotConnect,
    Client,
    ClientError,
    Closed,
    Fill,
    MessageRefused,
    Missed,
    NotAnswering,
    NumberedReport,
    OrderState,
    Refused,
    Rejected,
)
from gateway.position import PositionUnusable
from tests.client.fake import FakeExchange


@pytest.fixture
def exchange() -> FakeExchange:
    return FakeExchange()


def client_of(exchange: FakeExchange, **options: Any) -> Client:
    return Client("mqtt://fake", "alpha", link=exchange.connect, **{"resend_after": 0.05, "timeout": 5.0, **options})


@asynccontextmanager
async def within(seconds: float = 20.0) -> AsyncIterator[None]:
    """A hang is a failure with a trace instead of a suite that never ends; the time says nothing about speed."""
    async with asyncio.timeout(seconds):
        yield


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  what is waited for has no event of its own
        await asyncio.sleep(0.001)


async def test_an_order_is_accepted_filled_in_parts_and_done(exchange: FakeExchange) -> None:
    async with within(), client_of(exchange) as client:
        order = await client.buy("KDX-2107", 10, 100_000)
        accepted = await order.accepted()
        exchange.fill(order.client_order_id, 4, 99_990)
        exchange.fill(order.client_order_id, 6, 100_000)
        fills = [(fill.quantity, fill.price) async for fill in order.fills()]
        await order.done()

    assert (accepted.quantity, accepted.price) == (10, 100_000)
    assert fills == [(4, 99_990), (6, 100_000)]
    assert (order.state, order.filled_quantity, order.open_quantity) == (OrderState.FILLED, 10, 0)
    assert order.filled_value == 4 * 99_990 + 6 * 100_000


async def test_a_refused_order_says_why(exchange: FakeExchange) -> None:
    async with within(), client_of(exchange) as client:
        order = await client.sell("KDX-2107", 10, 100_003)
        with pytest.raises(Refused, match=r"OFF_TICK: Expected a multiple of 10, got 100003"):
            await order.accepted()
        assert isinstance(await order.outcome(), Rejected)
        assert (await order.done()).state == OrderState.REJECTED


async def test_cancel_amend_and_mass_cancel_are_answered(exchange: FakeExchange) -> None:
    async with within(), client_of(exchange) as client:
        first, second, third = await client.submit(
            *(client.new_order("KDX-2107", Side.BUY, 10, price) for price in (100, 110, 120))
        )
        amended = await first.amend(quantity=4, price=90)
        cancelled = await second.cancel()
        mass = await client.mass_cancel()

    assert isinstance(amended, Amended)
    assert (amended.quantity, amended.open_quantity, first.price) == (4, 4, 90)
    assert cancelled.client_order_id == second.client_order_id
    assert mass.count == 2
    assert [order.state for order in (first, second, third)] == [OrderState.CANCELLED] * 3
    assert client.orders == {}


async def test_orders_submitted_together_travel_in_one_message(exchange: FakeExchange) -> None:
    async with within(), client_of(exchange) as client:
        before = len(exchange.received)
        await client.submit(*(client.new_order("KDX-2107", Side.BUY, 1, 100) for _ in range(500)))
        await client.drain()

    assert len(exchange.executed) == 500
    assert len(exchange.received) - before == 1


async def test_a_lost_command_is_sent_again_under_its_id_until_answered(exchange: FakeExchange) -> None:
    async with within(), client_of(exchange) as client:
        exchange.deaf = 3
        order = await client.buy("KDX-2107", 10, 100)
        await order.accepted()

    assert exchange.executed == [order.client_order_id]
    assert client.resent == 3


async def test_a_lost_answer_is_read_again_and_the_order_counts_once(exchange: FakeExchange) -> None:
    async with within(), client_of(exchange) as client:
        reports = client.reports()
        exchange.mute = 1
        order = await client.buy("KDX-2107", 10, 100)
        await order.accepted()
        await client.buy("KDX-2107", 10, 110)
        await client.drain()
        numbers = [(await anext(reports)).number for _ in range(2)]  # type: ignore[union-attr]

    assert len(exchange.executed) == 2
    assert numbers == [1, 2]
    assert order.state == OrderState.OPEN


async def test_a_gap_in_the_reports_is_closed_by_asking_again(exchange: FakeExchange) -> None:
    async with within(), client_of(exchange) as client:
        reports = client.reports()
        order = await client.buy("KDX-2107", 10, 100)
        await order.accepted()
        exchange.mute = 1
        exchange.fill(order.client_order_id, 1, 100)  # lost
        exchange.fill(order.client_order_id, 2, 100)
        read = [await anext(reports) for _ in range(3)]

    assert [report.number for report in read if isinstance(report, NumberedReport)] == [1, 2, 3]
    assert (client.gaps, order.filled_quantity) == (1, 3)


async def test_a_long_resend_that_comes_in_parts_is_read_to_its_end(exchange: FakeExchange) -> None:
    async with within(), client_of(exchange) as client:
        (order,) = await client.submit(client.new_order("KDX-2107", Side.BUY, 1_000, 100))
        await order.accepted()
        exchange.resend_max = 7
        exchange.mute = 100
        for _ in range(100):
            exchange.fill(order.client_order_id, 1, 100)
        exchange.hello()
        await until(lambda: client.next_report == 102)

    assert order.filled_quantity == 100


async def test_reports_that_come_twice_are_seen_once(exchange: FakeExchange) -> None:
    async with within(), client_of(exchange) as client:
        reports = client.reports()
        order = await client.buy("KDX-2107", 10, 100)
        await order.accepted()
        exchange.fill(order.client_order_id, 1, 100)
        exchange.resend(1)
        exchange.resend(2)
        exchange.fill(order.client_order_id, 2, 100)
        read = [await anext(reports) for _ in range(3)]

    assert [report.number for report in read if isinstance(report, NumberedReport)] == [1, 2, 3]
    assert order.filled_quantity == 3


async def test_after_a_broken_connection_what_was_missed_and_unanswered_is_made_good(exchange: FakeExchange) -> None:
    async with within(), client_of(exchange) as client:
        order = await client.buy("KDX-2107", 10, 100)
        await order.accepted()
        exchange.cut()
        exchange.fill(order.client_order_id, 4, 100)  # nobody is listening
        await until(lambda: not client.connected)
        second = await client.buy("KDX-2107", 1, 110)
        await second.accepted()
        found = await client.open_orders()

    assert order.filled_quantity == 4
    assert {handle.client_order_id for handle in found} == {order.client_order_id, second.client_order_id}
    assert found[0] is order


async def test_when_the_exchange_comes_back_everything_unanswered_goes_out_at_once(exchange: FakeExchange) -> None:
    async with within(), client_of(exchange, resend_after=3_600.0) as client:
        exchange.deaf = 1
        order = await client.buy("KDX-2107", 10, 100)
        await until(lambda: exchange.deaf == 0)
        exchange.set_status("down")
        exchange.set_status("up")
        await order.accepted()

    assert client.resent == 1


async def test_while_the_exchange_says_it_is_down_commands_wait_here(exchange: FakeExchange) -> None:
    async with within(), client_of(exchange) as client:
        exchange.set_status("down")
        await until(lambda: client.status is not None and client.status.state == "down")
        order = await client.buy("KDX-2107", 10, 100)
        await asyncio.sleep(0.01)
        assert exchange.executed == []
        exchange.set_status("up")
        await order.accepted()
    assert client.resent == 0


async def test_a_stale_word_that_the_exchange_is_down_does_not_hold_orders_for_ever(exchange: FakeExchange) -> None:
    async with within(), client_of(exchange) as client:
        exchange.set_status("down")
        await until(lambda: client.status is not None and client.status.state == "down")
        await (await client.buy("KDX-2107", 10, 100)).accepted()  # it answers the question, so it is there


async def test_throttled_commands_wait_and_keep_their_order(exchange: FakeExchange) -> None:
    """Orders come at every step of the loop, so some come while a message is on its way that is throttled again."""
    async with within(), client_of(exchange, resend_after=3_600.0) as client:
        exchange.throttle = 2
        orders = [await client.buy("KDX-2107", 1, 100)]
        await until(lambda: exchange.throttle == 1 and exchange.links[0].queue.empty())  # what is sent now may overtake
        while not exchange.executed:
            orders.append(await client.buy("KDX-2107", 1, 100))
            await asyncio.sleep(0)
        await client.drain()

    assert exchange.executed == [order.client_order_id for order in orders]


async def test_a_message_that_goes_alone_after_a_throttle_and_is_lost_is_sent_again(exchange: FakeExchange) -> None:
    async with within(), client_of(exchange, resend_after=0.05) as client:
        exchange.throttle = 1
        orders = [await client.buy("KDX-2107", 1, 100)]
        await until(lambda: exchange.throttle == 0)
        exchange.deaf = 1
        await until(lambda: exchange.deaf == 0)
        orders.append(await client.buy("KDX-2107", 1, 100))
        await client.drain()

    assert sorted(exchange.executed) == sorted(order.client_order_id for order in orders)


async def test_a_cancel_waits_for_the_answer_of_its_order(exchange: FakeExchange) -> None:
    """Were the order delayed, the cancel would be told that there is none, and the order would stand."""
    async with within(), client_of(exchange) as client:
        exchange.deaf = 1
        order = await client.buy("KDX-2107", 10, 100)
        await order.cancel()

    assert order.state == OrderState.CANCELLED
    assert exchange.open == {}


async def test_a_retained_command_is_sent_again(exchange: FakeExchange) -> None:
    async with within(), client_of(exchange, resend_after=3_600.0) as client:
        exchange.errors.append(MessageError("RETAINED", "this message was retained"))
        await (await client.buy("KDX-2107", 10, 100)).accepted()


async def test_one_bad_command_does_not_spoil_the_others_of_its_message(exchange: FakeExchange) -> None:
    async with within(), client_of(exchange) as client:
        exchange.errors.append(MessageError("MALFORMED", "Expected something else", place="$.commands[1].price"))
        first, second, third = await client.submit(
            *(client.new_order("KDX-2107", Side.BUY, 1, 100 + 10 * i) for i in range(3))
        )
        await first.accepted()
        await third.accepted()
        with pytest.raises(MessageRefused, match="MALFORMED: Expected something else"):
            await second.accepted()
        assert (await second.done()).state == OrderState.REJECTED


async def test_a_mistake_in_a_command_shows_before_anything_is_sent(exchange: FakeExchange) -> None:
    async with within(), client_of(exchange) as client:
        received = len(exchange.received)
        with pytest.raises(BadCommand, match=r"instrument|\$\[2\]"):
            await client.buy("kdx", 10, 100)
        order = await client.buy("KDX-2107", 10, 100)
        await order.accepted()
        with pytest.raises(BadCommand, match="Expected an id that is not in use"):
            await client.submit(NewOrder(order.client_order_id, "KDX-2107", Side.BUY, 10, 100))
        assert len(exchange.received) == received + 1


async def test_ids_differ_between_two_lives_of_a_client(exchange: FakeExchange) -> None:
    first, second = (client_of(exchange) for _ in range(2))
    assert first.next_id() != second.next_id()
    assert len(first.next_id()) <= 36


async def test_another_session_of_the_member_shows_up_as_orders_of_ours(exchange: FakeExchange) -> None:
    async with within(), client_of(exchange) as one, client_of(exchange) as other:
        order = await one.buy("KDX-2107", 10, 100)
        await order.accepted()
        await until(lambda: order.client_order_id in other.orders)
        exchange.fill(order.client_order_id, 10, 100)
        await other.orders[order.client_order_id].done()


async def test_a_fresh_client_begins_at_the_present(exchange: FakeExchange) -> None:
    async with within(), client_of(exchange) as client:
        old = await client.buy("KDX-2107", 10, 100)
        await old.accepted()
    async with within(), client_of(exchange) as client:
        reports = client.reports()
        (found,) = await client.open_orders()
        exchange.fill(found.client_order_id, 10, 100)
        report = await anext(reports)
        await found.done()

    assert found.client_order_id == old.client_order_id
    assert isinstance(report, NumberedReport)
    assert isinstance(report.event, Fill)


async def test_a_restarted_client_goes_on_at_its_next_report_and_sends_what_was_unanswered(
    exchange: FakeExchange, tmp_path: Path
) -> None:
    position = tmp_path / "alpha.position"
    async with within(), client_of(exchange, position=position) as client:
        order = await client.buy("KDX-2107", 10, 100)
        await order.accepted()
        exchange.deaf = 1_000
        lost = await client.buy("KDX-2107", 5, 110)
        await until(lambda: exchange.deaf < 1_000)
    with pytest.raises(Closed):
        await lost.accepted()
    exchange.deaf = 0
    exchange.fill(order.client_order_id, 10, 100)

    client = client_of(exchange, position=position)
    reports = client.reports()
    async with within(), client:
        again = client.orders[lost.client_order_id]
        await again.accepted()
        read = [await anext(reports) for _ in range(2)]

    assert [type(report.event) for report in read if isinstance(report, NumberedReport)] == [Fill, Accepted]
    assert [report.number for report in read if isinstance(report, NumberedReport)] == [2, 3]
    assert exchange.executed.count(lost.client_order_id) == 1


async def test_a_report_that_was_being_worked_on_at_the_end_is_read_again(
    exchange: FakeExchange, tmp_path: Path
) -> None:
    position = tmp_path / "alpha.position"
    async with within(), client_of(exchange, position=position) as client:
        reports = client.reports()
        order = await client.buy("KDX-2107", 10, 100)
        await order.accepted()
        exchange.fill(order.client_order_id, 10, 100)
        await order.done()
        await anext(reports)  # came back for the second one, and never for a third
        await anext(reports)
    client = client_of(exchange, position=position)
    reports = client.reports()
    async with within(), client:
        report = await anext(reports)

    assert isinstance(report, NumberedReport)
    assert report.number == 2


async def test_a_position_file_is_one_members_and_one_processs(exchange: FakeExchange, tmp_path: Path) -> None:
    position = tmp_path / "alpha.position"
    async with within(), client_of(exchange, position=position):
        with pytest.raises(PositionUnusable, match="in use by another process"):
            async with client_of(exchange, position=position):
                pass
    with pytest.raises(PositionUnusable, match="is the position of participant 'alpha', expected 'beta'"):
        async with Client("mqtt://fake", "beta", link=exchange.connect, position=position):
            pass


async def test_a_position_beyond_the_log_is_called_another_market(exchange: FakeExchange, tmp_path: Path) -> None:
    position = tmp_path / "alpha.position"
    async with within(), client_of(exchange, position=position) as client:
        await (await client.buy("KDX-2107", 10, 100)).accepted()
    with pytest.raises(AnotherMarket, match="will give alpha report 1 next, this client has read up to 1"):
        async with within(), client_of(FakeExchange(), position=position):
            pass


async def test_reports_beyond_the_horizon_are_named_and_the_rest_is_read(
    exchange: FakeExchange, tmp_path: Path
) -> None:
    position = tmp_path / "alpha.position"
    async with within(), client_of(exchange, position=position) as client:
        order = await client.buy("KDX-2107", 10, 100)
        await order.accepted()
    for _ in range(4):
        exchange.fill(order.client_order_id, 1, 100)
    exchange.first_available = 4
    client = client_of(exchange, position=position)
    reports = client.reports()
    async with within(), client:
        read = [await anext(reports) for _ in range(3)]

    assert read[0] == Missed(2, 3)
    assert [report.number for report in read if isinstance(report, NumberedReport)] == [4, 5]


async def test_no_broker_and_no_exchange_are_told_apart(exchange: FakeExchange) -> None:
    exchange.unreachable = True
    with pytest.raises(CannotConnect, match="Is a broker running there"):
        async with client_of(exchange, timeout=0.2):
            pass
    exchange.unreachable = False
    exchange.receive = lambda message: None  # type: ignore[method-assign]
    with pytest.raises(NotAnswering, match="Is `dojima run` up"):
        async with client_of(exchange, timeout=0.2):
            pass


async def test_what_is_no_address_of_a_broker_is_told_at_once() -> None:
    with pytest.raises(
        BadCommand, match="Expected a broker URL mqtt://host:port or mqtts://host:port, got 'localhost'"
    ):
        Client("localhost", "alpha")


async def test_a_fault_inside_ends_the_client_and_is_told_to_all_who_wait(exchange: FakeExchange) -> None:
    async with within(), client_of(exchange) as client:
        reports = client.reports()
        order = await client.buy("KDX-2107", 10, 100)
        await order.accepted()
        exchange.links[0].queue.put_nowait(("dojima/v1/out/alpha", None, False))  # type: ignore[arg-type]
        with pytest.raises(ClientError, match="the client stopped: TypeError"):
            await order.done()
        with pytest.raises(ClientError, match="the client stopped"):
            async for _ in reports:
                pass


async def test_an_unknown_member_is_told_so(exchange: FakeExchange) -> None:
    async with within(), client_of(exchange) as client:
        exchange.errors.append(MessageError("UNKNOWN_MEMBER", "Expected a known participant, got 'alpha'"))
        order = await client.buy("KDX-2107", 10, 100)
        with pytest.raises(MessageRefused, match="UNKNOWN_MEMBER"):
            await order.accepted()
        with pytest.raises(MessageRefused):
            await client.buy("KDX-2107", 10, 100)


async def test_the_window_holds_submitters_back(exchange: FakeExchange) -> None:
    async with within(), client_of(exchange, window=10, resend_after=3_600.0) as client:
        exchange.throttle = 1
        for _ in range(5):
            await client.submit(*(client.new_order("KDX-2107", Side.BUY, 1, 100) for _ in range(8)))
            assert client.unanswered <= 10
        await client.drain()

    assert len(exchange.executed) == 40


async def test_requests_by_id_need_no_handle(exchange: FakeExchange) -> None:
    async with within(), client_of(exchange) as client:
        (answer,) = await client.send(CancelOrder(client.next_id(), "never-was"))
        rejected = await answer

    assert isinstance(rejected, Rejected)
