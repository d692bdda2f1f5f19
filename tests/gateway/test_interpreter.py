"""What Python does by itself while an exchange runs: what a pass of the collector looks at, how long a turn is."""

from __future__ import annotations

import gc
import sys
import weakref

from gateway.interpreter import THRESHOLDS, TURN, short_pauses


class Node:
    """Something that can be part of a cycle."""

    def __init__(self) -> None:
        self.other: Node | None = None


def cycle() -> weakref.ref[Node]:
    one, other = Node(), Node()
    one.other, other.other = other, one
    return weakref.ref(one)


def test_a_pass_looks_at_what_is_new_since_the_one_before() -> None:
    old = [[n] for n in range(10_000)]
    with short_pauses():
        assert not any(each is old for each in gc.get_objects())
        for _ in range(3):
            new = [[n] for n in range(1_000)]
            assert any(each is new for each in gc.get_objects())
            gc.collect()
            assert not any(each is new for each in gc.get_objects())


def test_a_cycle_that_has_died_is_found_by_the_next_pass() -> None:
    with short_pauses():
        dead = cycle()
        assert dead() is not None
        gc.collect()
        assert dead() is None


def test_a_pass_over_the_youngest_leaves_them_to_the_passes_that_follow() -> None:
    with short_pauses():
        new = [[n] for n in range(10)]
        gc.collect(1)
        assert any(each is new for each in gc.get_objects())


def test_it_holds_as_long_as_the_exchange_runs() -> None:
    def now() -> object:
        return gc.get_threshold(), sys.getswitchinterval(), list(gc.callbacks), gc.get_freeze_count()

    before = now()
    with short_pauses():
        assert gc.get_threshold()[:2] == THRESHOLDS[:2]  # some Pythons have no third
        assert abs(sys.getswitchinterval() - TURN) < 1e-6
        assert gc.get_freeze_count() > 1_000
    assert now() == before
