"""Integers side by side: so many as asked for, with as much space as there is."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from engine import BACKEND
from engine import memory as module
from engine.memory import spread, zeros


def test_zeros_are_so_many_integers() -> None:
    assert list(zeros(3, 5)) == [0, 0, 0]
    assert list(zeros(0, 0)) == []
    assert list(zeros(4, 4)) == [0, 0, 0, 0]


def test_the_search_for_a_key_begins_within_the_numbers_there_are() -> None:
    assert spread(0) == 0
    assert 0 <= spread(2**62) < 2**52
    assert len({spread(key) & 255 for key in range(100)}) > 70


@pytest.mark.skipif(BACKEND == "compiled", reason="compiled code cannot be patched")
def test_where_there_is_not_so_much_address_space_less_is_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Scarce:
        """``vec[i64]`` on a machine with room for 10 integers."""

        def __class_getitem__(cls, _: object) -> Callable[..., list[int]]:
            def make(content: memoryview, capacity: int) -> list[int]:
                asked.append(capacity)
                if capacity > 10:
                    raise MemoryError
                return list(content)

            return make

    monkeypatch.setattr(module, "vec", Scarce)

    assert list(zeros(3, 80)) == [0, 0, 0]
    assert asked == [80, 40, 20, 10]
    assert {type(capacity) for capacity in asked} == {int}
    asked.clear()
    with pytest.raises(MemoryError):
        zeros(20, 80)
    assert asked == [80, 40, 20]
