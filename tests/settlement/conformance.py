"""What every ledger adapter must do, whatever is behind it. ``test_ledgers.py`` runs this against each adapter.

An adapter under test is a *bench*: ``open()`` gives the adapter, and again gives it anew on the same ledger, as after a
restart of the exchange. Instructions are driven to their end by ``finish``, which supplies affirmation and cash on
ledgers that wait for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from abc import ABC, abstractmethod
from collections.abc import Iterable

import msgspec
import pytest

from gateway.settlement.adapter import (
    ISSUANCE,
    YEN,
    Conflict,
    Instruction,
    Kind,
    LedgerAdapter,
    LedgerError,
    LedgerEvent,
    NotFound,
    Position,
    Reason,
    Receipt,
    Refused,
    Rejected,
    Short,
    State,
    Unsupported,
)
from gateway.settlement.instructions import opening
from gateway.settlement.memory import MemoryLedger
from tests.settlement.world import Clock, instruction

TOKEN = "KDX-2107"
OTHER = "ICN-1701"


class Bench(ABC):
    """One ledger under test."""

    clock: Clock

    @abstractmethod
    async def open(self) -> LedgerAdapter:
        """The adapter on this ledger, new each time."""

    @abstractmethod
    async def audit(self, adapter: LedgerAdapter) -> list[str]:
        """What is wrong inside the ledger."""

    @abstractmethod
    async def close(self) -> None: ...


async def fund(adapter: LedgerAdapter, account: str, asset: str, quantity: int, reference: str = "") -> None:
    await adapter.submit(opening(account, asset, quantity, reference or f"{account}-{asset}"))


async def funded(bench: Bench) -> LedgerAdapter:
    adapter = await bench.open()
    await fund(adapter, "alpha", TOKEN, 100)
    await fund(adapter, "bravo", YEN, 10_000)
    return adapter


async def finish(adapter: LedgerAdapter, ins: Instruction) -> Receipt:
    """Submit, and supply what this ledger waits for."""
    receipt = await adapter.submit(ins)
    caps = await adapter.capabilities()
    if caps.needs_affirmation and receipt.state is State.HELD:
        await adapter.affirm(ins.id, "buyer")
        receipt = await adapter.cash_confirmed(ins.id, "bank-1")
    return receipt


async def holdings(adapter: LedgerAdapter) -> dict[tuple[str, str], tuple[int, int]]:
    """(account, asset) to (available, total), without those that have nothing and without the issuance account."""
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for asset in (TOKEN, OTHER, YEN):
        for position in await adapter.positions(asset):
            if position.account != ISSUANCE and (position.available or position.total):
                found[position.account, asset] = (position.available, position.total)
    return found


async def all_events(adapter: LedgerAdapter, cursor: str = "") -> list[LedgerEvent]:
    found: list[LedgerEvent] = []
    while True:
        events, after = await adapter.events(cursor)
        found += events
        if after == cursor:
            return found
        cursor = after


async def outcome(call: object) -> Receipt | LedgerError:
    try:
        return await call  # type: ignore[misc,no-any-return]
    except LedgerError as error:
        return error


def supply(positions: Iterable[Position]) -> int:
    return sum(position.total for position in positions if position.account != ISSUANCE)


class Conformance:
    """The ten points, for the fixture ``bench``."""

    # 1
    async def test_a_hundred_parallel_submits_of_one_instruction_have_one_effect(self, bench: Bench) -> None:
        adapter = await funded(bench)
        ins = instruction()
        receipts = await asyncio.gather(*(adapter.submit(ins) for _ in range(100)))
        assert len({receipt.ledger_ref for receipt in receipts}) == 1
        await finish(adapter, ins)
        assert (await holdings(adapter))["bravo", TOKEN] == (10, 10)
        assert (await holdings(adapter))["alpha", TOKEN] == (90, 90)
        ends = [event for event in await all_events(adapter) if event.ins_id == ins.id and event.state is State.SETTLED]
        assert len(ends) == 1

    async def test_a_repeat_inside_one_batch_has_one_effect(self, bench: Bench) -> None:
        adapter = await funded(bench)
        ins = instruction()
        first, second = await adapter.submit_batch([ins, ins], atomic=False)
        assert isinstance(first, Receipt)
        assert first == second
        await finish(adapter, ins)
        assert (await holdings(adapter))["bravo", TOKEN] == (10, 10)

    # 2
    async def test_an_instruction_whose_receipt_was_lost_is_found_by_its_id_after_a_restart(self, bench: Bench) -> None:
        adapter = await funded(bench)
        sent = asyncio.ensure_future(adapter.submit(instruction()))
        await asyncio.sleep(0)
        sent.cancel()  # the exchange goes down between sending and the answer
        with contextlib.suppress(asyncio.CancelledError):  # a ledger that does not wait has answered
            await sent
        again = await bench.open()
        before = await outcome(again.status("i-1"))
        assert isinstance(before, Receipt | NotFound)
        receipt = await again.submit(instruction())
        if isinstance(before, Receipt):
            assert receipt.ledger_ref == before.ledger_ref
        await finish(again, instruction())
        assert (await holdings(again))["bravo", TOKEN] == (10, 10)

    # 3
    async def test_a_settled_instruction_sent_again_after_a_restart_changes_nothing(self, bench: Bench) -> None:
        adapter = await funded(bench)
        receipt = await finish(adapter, instruction())
        assert receipt.state is State.SETTLED
        before = await holdings(adapter)
        again = await bench.open()
        assert await again.status("i-1") == receipt
        assert await again.submit(instruction()) == receipt
        assert await holdings(again) == before

    # 4
    @pytest.mark.parametrize(
        "changed",
        [
            {"quantity": 11},
            {"cash": 1},
            {"buyer": "carol"},
            {"asset": OTHER},
        ],
    )
    async def test_another_content_under_the_same_id_is_a_conflict_and_moves_nothing(
        self, bench: Bench, changed: dict[str, int | str]
    ) -> None:
        adapter = await funded(bench)
        await fund(adapter, "alpha", OTHER, 100)
        await adapter.submit(instruction())
        before = await holdings(adapter)
        with pytest.raises(Conflict):
            await adapter.submit(instruction(**changed))  # type: ignore[arg-type]
        (answer,) = await adapter.submit_batch([instruction(**changed)], atomic=False)  # type: ignore[arg-type]
        assert isinstance(answer, Conflict)
        assert await holdings(adapter) == before

    async def test_a_changed_content_behind_the_old_hash_is_a_conflict(self, bench: Bench) -> None:
        adapter = await funded(bench)
        forged = msgspec.structs.replace(instruction(), quantity=11)
        with pytest.raises(Conflict):
            await adapter.submit(forged)
        with pytest.raises(NotFound):
            await adapter.status("i-1")

    # 5
    async def test_short_units_or_short_cash_leave_both_legs_untouched_until_covered(self, bench: Bench) -> None:
        adapter = await funded(bench)
        before = await holdings(adapter)
        with pytest.raises(Short) as units:
            await adapter.submit(instruction(quantity=101))
        assert units.value.reason is Reason.INSUFFICIENT_SECURITIES
        if (await adapter.capabilities()).atomic_dvp:
            with pytest.raises(Short) as cash:
                await adapter.submit(instruction(cash=10_001))
            assert cash.value.reason is Reason.INSUFFICIENT_CASH
        assert await holdings(adapter) == before
        with pytest.raises(NotFound):
            await adapter.status("i-1")
        await fund(adapter, "alpha", TOKEN, 1, "more")
        assert (await finish(adapter, instruction(quantity=101))).state is State.SETTLED
        assert (await holdings(adapter))["bravo", TOKEN] == (101, 101)

    async def test_the_precheck_names_what_submit_would(self, bench: Bench) -> None:
        adapter = await funded(bench)
        assert await adapter.precheck(instruction()) == []
        assert await adapter.precheck(instruction(quantity=101)) == [Reason.INSUFFICIENT_SECURITIES]
        assert await adapter.precheck(instruction(quantity=0)) == [Reason.BAD_AMOUNT]

    @pytest.mark.parametrize("amounts", [(0, 1000), (10, 0), (-1, 1000), (10, -5), (2**62 + 1, 1), (10.0, 1000)])
    async def test_an_amount_that_is_none_is_rejected(self, bench: Bench, amounts: tuple[int, int]) -> None:
        adapter = await funded(bench)
        before = await holdings(adapter)
        with pytest.raises(Rejected) as rejected:
            await adapter.submit(instruction(quantity=amounts[0], cash=amounts[1]))
        assert rejected.value.reason is Reason.BAD_AMOUNT
        assert await holdings(adapter) == before

    async def test_no_instruction_takes_from_the_issuance_account(self, bench: Bench) -> None:
        adapter = await funded(bench)
        for forged in (
            instruction(seller=ISSUANCE),
            instruction(buyer=ISSUANCE),
            instruction(kind=Kind.OPENING, cash=0),
        ):
            with pytest.raises(Rejected) as rejected:
                await adapter.submit(forged)
            assert rejected.value.reason is Reason.NOT_AUTHORISED

    # 6
    async def test_of_cancel_and_finish_exactly_one_wins_and_both_sides_agree(self, bench: Bench) -> None:
        adapter = await bench.open()
        await fund(adapter, "alpha", TOKEN, 1_000)
        await fund(adapter, "bravo", YEN, 100_000)
        staged = (await adapter.capabilities()).needs_affirmation
        for n in range(20):
            ins = instruction(f"race-{n}")
            if staged:
                await adapter.submit(ins)
                await adapter.affirm(ins.id, "buyer")
            calls = [adapter.cash_confirmed(ins.id, "bank"), adapter.cancel(ins.id, "operator")]
            if not staged:
                calls[0].close()
                calls[0] = adapter.submit(ins)
            if n % 2:
                calls.reverse()
            answers = await asyncio.gather(*(outcome(call) for call in calls))
            receipts = [answer for answer in answers if isinstance(answer, Receipt)]
            assert len(receipts) == 1, answers
            assert (await adapter.status(ins.id)).state is receipts[0].state
            ends = {event.state for event in await all_events(adapter) if event.ins_id == ins.id}
            assert receipts[0].state in ends
            assert len(ends & {State.SETTLED, State.CANCELLED, State.ABORTED}) == 1
        assert await bench.audit(adapter) == []

    async def test_cancelling_what_has_settled_or_never_was_is_refused(self, bench: Bench) -> None:
        adapter = await funded(bench)
        with pytest.raises(NotFound):
            await adapter.cancel("i-1", "operator")
        await finish(adapter, instruction())
        with pytest.raises(Rejected) as rejected:
            await adapter.cancel("i-1", "operator")
        assert rejected.value.reason is Reason.WRONG_STATE

    # 7
    async def test_events_replay_the_same_from_every_cursor_and_after_a_restart(self, bench: Bench) -> None:
        adapter = await funded(bench)
        for n in range(9):
            await finish(adapter, instruction(f"i-{n}", quantity=1, cash=10))
        events = await all_events(adapter)
        assert [event.height for event in events] == sorted(event.height for event in events)
        settled = [event.ins_id for event in events if event.state is State.SETTLED and event.kind is Kind.DVP]
        assert settled == [f"i-{n}" for n in range(9)]
        assert await all_events(adapter) == events
        again = await bench.open()
        assert await all_events(again) == events
        _, cursor = await again.events("")
        assert await all_events(again, cursor) == []
        await finish(again, instruction("later", quantity=1, cash=10))
        assert {event.ins_id for event in await all_events(again, cursor)} == {"later"}

    # 8
    async def test_units_and_yen_are_conserved_at_every_step(self, bench: Bench) -> None:
        adapter = await funded(bench)
        await fund(adapter, "bravo", TOKEN, 50)
        await fund(adapter, "alpha", YEN, 500)
        random_ = random.Random(8)
        for n in range(60):
            seller, buyer = random_.sample(["alpha", "bravo", "carol"], 2)
            ins = instruction(
                f"i-{n}",
                seller=seller,
                buyer=buyer,
                quantity=random_.randint(1, 40),
                cash=random_.randint(1, 4_000),
            )
            await outcome(finish(adapter, ins))
            assert supply(await adapter.positions(TOKEN)) == 150
            assert supply(await adapter.positions(YEN)) == 10_500
            assert all(total >= available >= 0 for available, total in (await holdings(adapter)).values())
        assert await bench.audit(adapter) == []

    # 9
    async def test_ten_thousand_random_instructions_end_as_in_the_model(self, bench: Bench) -> None:
        adapter = await bench.open()
        caps = await adapter.capabilities()
        model = MemoryLedger(bench.clock, staged=not caps.atomic_dvp)
        random_ = random.Random(9)
        members = [f"m{n}" for n in range(6)]
        for member in members:
            for asset, quantity in ((TOKEN, 5_000), (OTHER, 300), (YEN, 2_000_000)):
                for each in (adapter, model):
                    await fund(each, member, asset, quantity)
        sent = 0
        while sent < 10_000:
            batch = []
            for _ in range(random_.choice([1, 7, 100, 250])):
                number = sent if random_.random() < 0.97 else random_.randrange(sent + 1)  # now and then an old id
                repeat = random.Random(number if random_.random() < 0.9 else -number)  # with its content, mostly
                batch.append(
                    instruction(
                        f"i-{number}",
                        seller=repeat.choice(members),
                        buyer=repeat.choice(members),
                        asset=repeat.choice([TOKEN, TOKEN, OTHER]),
                        quantity=repeat.randint(0, 60),
                        cash=repeat.randint(0, 9_000),
                    )
                )
                sent += 1
            answers = await adapter.submit_batch(batch, atomic=False)
            expected = await model.submit_batch(batch, atomic=False)
            for ins, answer, wanted in zip(batch, answers, expected, strict=True):
                assert _essence(answer) == _essence(wanted), ins
            for ins in batch if caps.needs_affirmation else []:
                for each in (adapter, model):
                    await outcome(each.affirm(ins.id, "buyer"))
                    await outcome(each.cash_confirmed(ins.id, "bank"))
            bench.clock.advance(1)
        assert await holdings(adapter) == await holdings(model)
        assert await bench.audit(adapter) == []
        told = [(event.ins_id, event.state, event.hash) for event in await all_events(adapter)]
        assert told == [(event.ins_id, event.state, event.hash) for event in await all_events(model)]
        kinds = {_essence(answer)[0] for answer in await model.submit_batch(batch, atomic=False)}
        assert kinds >= {"Receipt", "Short"}, "the random instructions must reach more than one outcome"

    async def test_random_holds_end_as_in_the_model(self, bench: Bench) -> None:
        adapter = await bench.open()
        caps = await adapter.capabilities()
        if not caps.holds:
            pytest.skip("this ledger declares that it has no holds")
        model = MemoryLedger(bench.clock, staged=not caps.atomic_dvp)
        random_ = random.Random(10)
        for each in (adapter, model):
            await fund(each, "alpha", TOKEN, 500)
            await fund(each, "bravo", YEN, 50_000)
        for n in range(400):
            hold_id = f"h-{random_.randrange(60)}"
            account, asset = random_.choice([("alpha", TOKEN), ("bravo", YEN), ("bravo", TOKEN)])
            quantity = random_.choice([0, 1, 30, 200])
            expires = random_.choice([0, bench.clock() + random_.randint(1, 40) * 10**9])
            step = random_.randrange(4)
            answers = []
            for each in (adapter, model):
                if step == 0:
                    answers.append(await outcome(each.release(hold_id)))
                elif step == 1:
                    answers.append(await outcome(finish(each, instruction(f"i-{n}", quantity=3, cash=90))))
                else:
                    answers.append(await outcome(each.hold(hold_id, account, asset, quantity, expires)))
            assert _essence(answers[0]) == _essence(answers[1])
            assert await holdings(adapter) == await holdings(model)
            bench.clock.advance(random_.choice([0, 1, 5]))
        assert await bench.audit(adapter) == []

    # 10
    async def test_declared_atomicity_is_true(self, bench: Bench) -> None:
        adapter = await funded(bench)
        caps = await adapter.capabilities()
        receipt = await adapter.submit(instruction())
        if caps.atomic_dvp:
            assert receipt.state is State.SETTLED
            assert (await holdings(adapter))["alpha", YEN] == (1_000, 1_000)
        else:
            assert receipt.state in (State.SUBMITTED, State.HELD, State.PENDING_APPROVAL)
            assert ("bravo", TOKEN) not in await holdings(adapter)

    async def test_declared_affirmation_is_true(self, bench: Bench) -> None:
        adapter = await funded(bench)
        await adapter.submit(instruction())
        if (await adapter.capabilities()).needs_affirmation:
            assert (await adapter.affirm("i-1", "buyer")).state is State.AFFIRMED
            assert (await adapter.affirm("i-1", "buyer")).state is State.AFFIRMED
            with pytest.raises(Rejected):
                await adapter.affirm("i-1", "seller")
        else:
            with pytest.raises(Unsupported):
                await adapter.affirm("i-1", "buyer")

    async def test_declared_batch_size_is_true(self, bench: Bench) -> None:
        adapter = await funded(bench)
        size = (await adapter.capabilities()).batch_max
        batch = [instruction(f"i-{n}", quantity=1, cash=1) for n in range(size + 1)]
        with pytest.raises(Unsupported):
            await adapter.submit_batch(batch, atomic=False)
        answers = await adapter.submit_batch(batch[:size], atomic=False)
        assert len(answers) == size
        assert all(isinstance(answer, Receipt) for answer in answers[:100])

    async def test_an_atomic_batch_is_all_or_none_and_another_lets_the_rest_through(self, bench: Bench) -> None:
        adapter = await funded(bench)
        before = await holdings(adapter)
        batch = [instruction("good"), instruction("bad", quantity=1_000), instruction("also good")]
        with pytest.raises(Short):
            await adapter.submit_batch(batch, atomic=True)
        assert await holdings(adapter) == before
        assert [event for event in await all_events(adapter) if event.kind is Kind.DVP] == []
        for ins in batch:
            with pytest.raises(NotFound):
                await adapter.status(ins.id)
        answers = await adapter.submit_batch(batch, atomic=False)
        assert [type(answer) for answer in answers] == [Receipt, Short, Receipt]
        assert await bench.audit(adapter) == []

    async def test_declared_holds_are_true(self, bench: Bench) -> None:
        adapter = await funded(bench)
        if not (await adapter.capabilities()).holds:
            with pytest.raises(Unsupported):
                await adapter.hold("h", "alpha", TOKEN, 95, 0)
            return
        first = await adapter.hold("h", "alpha", TOKEN, 95, 0)
        assert first.state is State.HELD
        assert await adapter.hold("h", "alpha", TOKEN, 95, 0) == first
        assert (await holdings(adapter))["alpha", TOKEN] == (5, 100)
        with pytest.raises(Conflict):
            await adapter.hold("h", "alpha", TOKEN, 96, 0)
        with pytest.raises(Short):
            await adapter.hold("h-2", "alpha", TOKEN, 6, 0)
        with pytest.raises(Short):
            await adapter.submit(instruction())
        released = await adapter.release("h")
        assert released.state is State.CANCELLED
        assert await adapter.release("h") == released
        assert (await holdings(adapter))["alpha", TOKEN] == (100, 100)
        with pytest.raises(NotFound):
            await adapter.release("never")

    async def test_a_hold_ends_by_itself_at_its_expiry(self, bench: Bench) -> None:
        adapter = await funded(bench)
        if not (await adapter.capabilities()).holds:
            pytest.skip("this ledger declares that it has no holds")
        await adapter.hold("h", "alpha", TOKEN, 95, bench.clock() + 10 * 10**9)
        bench.clock.advance(9)
        with pytest.raises(Short):
            await adapter.submit(instruction())
        bench.clock.advance(1)
        assert (await finish(adapter, instruction())).state is State.SETTLED
        assert (await adapter.release("h")).state is State.EXPIRED
        assert (await holdings(adapter))["alpha", TOKEN] == (90, 90)

    async def test_declared_partial_settlement_is_true(self, bench: Bench) -> None:
        adapter = await funded(bench)
        if (await adapter.capabilities()).partial:
            pytest.skip("partial settlement has tests of its own, where an adapter offers it")
        with pytest.raises(Short):
            await adapter.submit(instruction(quantity=101, partial_ok=True))
        assert (await holdings(adapter))["alpha", TOKEN] == (100, 100)

    # positions and openings
    async def test_positions_as_of_a_height_are_those_of_that_moment(self, bench: Bench) -> None:
        adapter = await funded(bench)
        seen = []
        for n in range(5):
            seen.append(((await adapter.health()).height, list(await adapter.positions(TOKEN))))
            await finish(adapter, instruction(f"i-{n}"))
        for height, positions in seen:
            assert [each for each in await adapter.positions(TOKEN, height) if each.total] == [
                each for each in positions if each.total
            ]

    async def test_an_opening_balance_comes_once_per_reference(self, bench: Bench) -> None:
        adapter = await bench.open()
        for _ in range(3):
            await fund(adapter, "alpha", TOKEN, 7, "r-1")
        assert await holdings(adapter) == {("alpha", TOKEN): (7, 7)}
        with pytest.raises(Conflict):
            await fund(adapter, "alpha", TOKEN, 8, "r-1")
        with pytest.raises(Rejected):
            await fund(adapter, "alpha", "@USD", 8, "r-2")
        assert {position.account: position.total for position in await adapter.positions(TOKEN)} == {
            ISSUANCE: -7,
            "alpha": 7,
        }

    async def test_one_who_trades_with_oneself_needs_the_units_and_keeps_them(self, bench: Bench) -> None:
        adapter = await funded(bench)
        await fund(adapter, "alpha", YEN, 1_000)
        before = await holdings(adapter)
        assert (await finish(adapter, instruction(buyer="alpha"))).state is State.SETTLED
        assert await holdings(adapter) == before
        with pytest.raises(Short):
            await adapter.submit(instruction("i-2", buyer="alpha", quantity=101))


def _essence(answer: Receipt | LedgerError) -> tuple[str, str]:
    if isinstance(answer, Receipt):
        return "Receipt", answer.state
    return type(answer).__name__, str(answer.reason) if isinstance(answer, Refused) else ""
