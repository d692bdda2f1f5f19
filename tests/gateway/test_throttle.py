"""A rate is kept, and a flood of one is no famine of others."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.clock import SECOND_NS
from gateway.throttle import Share, TokenBucket


def test_a_burst_goes_through_and_then_the_rate_holds():
    bucket = TokenBucket(rate=10, burst=3)
    assert [bucket.take(1, 0) for _ in range(3)] == [0, 0, 0]
    wait = bucket.take(1, 0)
    assert 0 < wait <= 101
    assert bucket.take(1, wait * 1_000_000) == 0
    assert bucket.take(1, wait * 1_000_000) > 0


def test_a_refusal_takes_nothing():
    bucket = TokenBucket(rate=10, burst=1)
    bucket.take(1, 0)
    waits = {bucket.take(1, 0) for _ in range(10)}
    assert len(waits) == 1


def test_a_batch_larger_than_the_bucket_passes_when_it_is_full_and_is_paid_for():
    bucket = TokenBucket(rate=10, burst=5)
    assert bucket.take(50, 0) == 0
    assert bucket.take(1, 0) >= 4_000
    assert bucket.take(1, 5 * SECOND_NS) == 0


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, SECOND_NS // 5)), max_size=100))
def test_never_more_than_rate_and_burst(takes: list[tuple[int, int]]):
    bucket = TokenBucket(rate=10, burst=5)
    now = taken = 0
    for count, pause in takes:
        now += pause
        if bucket.take(count, now) == 0:
            taken += count
        assert taken <= 5 + 10 * now / SECOND_NS + 1e-6


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 6), st.booleans()), max_size=100))
def test_a_share_counts_exactly_what_is_inside(steps: list[tuple[str, int, bool]]):
    share = Share(commands=20, nbytes=10**6, member_commands=10, member_nbytes=10**6)
    inside: dict[str, list[int]] = {"a": [], "b": []}
    for member, count, leaving in steps:
        if leaving and inside[member]:
            share.leave(member, inside[member].pop(), 1)
        else:
            mine, both = sum(inside[member]), sum(map(sum, inside.values()))
            room = (not mine or mine + count <= 10) and (not both or both + count <= 20)
            assert (share.enter(member, count, 1) == "") == room
            if room:
                inside[member].append(count)


def test_bytes_are_bounded_too():
    share = Share(commands=100, nbytes=1_000, member_commands=100, member_nbytes=500)
    assert share.enter("a", 1, 400) == ""
    assert "bytes" in share.enter("a", 1, 200)
    assert share.enter("b", 1, 500) == ""
    assert "in all" in share.enter("c", 1, 200)
