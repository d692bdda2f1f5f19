"""Ids as bytes: read, compared, kept and written again, they are what they were as texts; and each is found again."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from hashlib import blake2b

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from librt.strings import BytesWriter
from librt.vecs import vec
from mypy_extensions import i64

from engine import names as module
from engine.checks import is_id
from engine.names import CANCEL, EVENT, NAME_MAX, ORDER, PADDING, WAITING_ORDER, Name, Names, Outcomes, name_at, name_of

encode = msgspec.msgpack.encode
ids = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=NAME_MAX)
nearly = st.text(st.characters(max_codepoint=300), max_size=NAME_MAX + 2)
#: Of each length, and such as differ in one character only, wherever it stands.
ALIKE = [f"{'x' * n}{c}{'y' * (length - n - 1)}" for length in range(1, 37) for n in range(length) for c in "!~0"]


def written(name: Name) -> bytes:
    out = BytesWriter()
    name.write(out)
    return out.getvalue()


@given(ids | nearly)
def test_an_id_is_what_the_checks_call_one(text: str) -> None:
    name = name_of(text)

    assert (name.size > 0) == is_id(text)
    assert name.text == text


@pytest.mark.parametrize("length", [1, 4, 5, 8, 9, 13, 36])
def test_one_wrong_character_anywhere_makes_it_none(length: int) -> None:
    for place in range(length):
        data = bytearray(b"~" * length)
        for code in range(256):
            data[place] = code
            right = 33 <= code <= 126
            assert (name_at(bytes(data) + PADDING, 0, length) is not None) == right, (place, code)


@given(ids, st.binary(max_size=20), st.binary(max_size=20))
def test_an_id_is_read_from_among_other_bytes(text: str, before: bytes, behind: bytes) -> None:
    name = name_at(before + text.encode() + behind + PADDING, len(before), len(text))

    assert name is not None
    assert name.hashed == name_of(text).hashed
    assert written(name) == encode(text)
    assert name.text == text


def test_ids_that_differ_have_different_hashes() -> None:
    alike = set(ALIKE)
    assert len({name_of(text).hashed for text in alike}) == len(alike)
    assert all(0 <= name_of(text).hashed < 2**62 for text in alike)


@given(st.lists(ids | st.none(), max_size=30))
def test_names_are_kept_each_under_its_number(texts: list[str | None]) -> None:
    kept = Names()
    for text in texts:
        kept.append(name_of("of none") if text == "of none" else name_of(text) if text else None)
        kept.append(name_of("taken-back"))
        kept.forget()
    numbers = list(range(len(texts) + 1))
    right = ["", *[text or "" for text in texts]]

    assert [kept[number] for number in numbers] == right
    assert kept.of(vec[i64](numbers)) == right
    for number, text in enumerate(right):
        out = BytesWriter()
        kept.write(number, out)
        assert out.getvalue() == encode(text)
        for other in {*right, "another"} - {""}:
            assert kept.is_at(number, name_of(other)) == (other == text)


def test_a_name_is_no_other_that_differs_in_one_character() -> None:
    kept = Names()
    alike = sorted(set(ALIKE))
    for text in alike:
        kept.append(name_of(text))
    for number, text in enumerate(alike, 1):
        assert kept.is_at(number, name_of(text))
        assert not kept.is_at(number, name_of(alike[number % len(alike)]))


@pytest.mark.parametrize("count", [0, 14, 15, 4094, 4095, 4096, 10_000])
def test_the_digest_of_names_is_that_of_the_texts_in_blocks(count: int) -> None:
    """As logs of all versions have it in their marks."""

    texts = ["", *[f"o-{n}" * (1 + n % 5) for n in range(count)]]
    kept = Names()
    for text in texts[1:]:
        kept.append(name_of(text))
    digest = blake2b(digest_size=32)
    blocks = range(0, len(texts), 4096)
    for start in blocks:
        digest.update(encode(texts[start : start + 4096]))

    assert kept.digest() == digest.digest()


@given(st.lists(st.tuples(st.integers(0, 2), ids, st.sampled_from([ORDER, WAITING_ORDER, CANCEL, EVENT])), max_size=60))
def test_outcomes_are_a_dictionary_by_member_and_id(asked: list[tuple[int, str, int]]) -> None:
    orders = Names()
    outcomes, right = Outcomes(orders), {}
    count = 0
    for number, (member, text, kind) in enumerate(asked):
        name = name_of(text)
        assert outcomes.get(member, name) == right.get((member, text), -1)
        if (member, text) in right:
            continue
        index = number
        if kind <= WAITING_ORDER:
            orders.append(name)
            count += 1
            index = count
        outcomes.put(member, name, kind, index)
        right[member, text] = index << 2 | kind
        if number % 7 == 3 and kind > WAITING_ORDER:
            assert outcomes.forget(member, name) == right.pop((member, text))
            with pytest.raises(KeyError):
                outcomes.forget(member, name)

    for member in range(3):
        for _, text, _ in asked:
            assert outcomes.get(member, name_of(text)) == right.get((member, text), -1)


@pytest.mark.parametrize("form", ["o-{}", "{:09}", "{:x}", "m01-{:06}-a", "{:036}"])
def test_ids_are_found_however_many_there_are_and_no_table_is_made_anew(form: str) -> None:
    """One that is made anew when it grows would be a pause: here a page is split, and no page holds many ids."""
    count = 30_000
    orders = Names()
    outcomes = Outcomes(orders)
    for number in range(1, count + 1):
        name = name_of(form.format(number))
        orders.append(name)
        assert outcomes.get(5, name) == -1
        outcomes.put(5, name, ORDER, number)

    assert all(outcomes.get(5, name_of(form.format(n))) == n << 2 | ORDER for n in range(1, count + 1))
    assert all(outcomes.get(4, name_of(form.format(n))) == -1 for n in range(1, count + 1, 100))
    assert outcomes.get(5, name_of("another")) == -1
    assert max(outcomes._used) <= module._MOST
    assert sum(outcomes._used) == count
    assert len(outcomes._cells) == len(outcomes._used) * module._SEGMENT < 8 * count


def test_ids_of_one_hash_are_told_apart_by_what_they_are() -> None:
    def alike(text: str, hashed: int) -> Name:
        return Name(text.encode() + PADDING, 0, len(text), hashed, text)

    draw = random.Random(3)
    orders = Names()
    outcomes = Outcomes(orders)
    hashes = [0, 1, 2**61 + 1, 2**40 + 1]
    kept = [alike(f"o-{n}", draw.choice(hashes)) for n in range(120)]
    for number, name in enumerate(kept, 1):
        orders.append(name)
        outcomes.put(0, name, ORDER, number)

    assert [outcomes.get(0, name) >> 2 for name in kept] == list(range(1, 121))
    assert all(outcomes.get(0, alike("another", hashed)) == -1 for hashed in hashes)
    assert all(outcomes.get(1, name) == -1 for name in kept)


def test_the_hash_is_another_in_every_process() -> None:
    """So nobody can choose ids that stand in each other's way."""
    code = "from engine.names import name_of; print(name_of('a').hashed, name_of('a').hashed - name_of('b').hashed)"
    said = [
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2", "3", "1")
    ]

    assert len(set(said)) == 3
    assert said[0] == said[3]
