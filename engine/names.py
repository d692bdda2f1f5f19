"""The ids by which members name what they ask for, as the engine keeps them, and what became of each.

An id has 1 to 36 of the characters ! to ~, so it is bytes, eight to an integer: read from a message, hashed, compared,
kept and written again without ever becoming a text. A text of Python's costs as much to make as an order costs to
match, and to look it up means to fetch it from wherever it lies.

* ``Name`` is an id at hand, in the bytes it came in.
* ``Names`` keeps one of every order, or of every request, by number.
* ``Outcomes`` finds out what became of a member's id.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final, final

from librt.strings import BytesWriter, read_i64_le, write_i64_le
from librt.vecs import append, extend, pop, vec
from mypy_extensions import i64, mypyc_attr

from engine.memory import zeros
from engine.packing import put_array, put_text

#: Most characters of an id.
NAME_MAX: Final = 36
#: What has to stand behind the bytes that a name is read from: they are read eight at a time.
PADDING: Final = bytes(8)

# What is remembered about an id: in the low bits what became of it, above them an index.
ORDER: Final = 0  #: an order was accepted: its number
WAITING_ORDER: Final = 1  #: the same, outside the book at first
CANCEL: Final = 2  #: an order was cancelled: its number
EVENT: Final = 3  #: any other answer: its place among the kept events

# Bits are taken from the end of these: mypyc leaves the 1 of ``1 << n`` a C int, which has no more than 31 of them.
_56_BITS: Final = 2**56 - 1
_BIT_32: Final = 1 << 32
_32_BITS: Final = 0xFFFFFFFF
_31_BITS: Final = 0x7FFFFFFF
_30_BITS: Final = 0x3FFFFFFF
# Four characters at once, each with room for a carry: what has the highest bit, and what added to it brings ! and the
# one behind ~ there.
_HIGHEST: Final = 0x80808080
_FIRST: Final = 0x5F5F5F5F
_LAST: Final = 0x01010101
_FILL: Final = 0x2121212121212121  #: characters ! in place of those that are not there

# Python's own hash of a text is another in every process, and so are these keys of the hash of a name. That is what
# they are for: no member can choose ids that stand in each other's way. Nothing but places in a table comes of it.
_KEY: Final = hash("names")
_SEED: Final = hash("seed")
_FACTOR_1: Final[i64] = _KEY & _30_BITS | 1
_FACTOR_2: Final[i64] = _KEY >> 30 & _30_BITS | 1
_FACTOR_3: Final[i64] = _SEED & _30_BITS | 1
_FACTOR_4: Final[i64] = _SEED >> 30 & _30_BITS | 1


@final
@mypyc_attr(acyclic=True)
class Name:
    """An id in the bytes it came in, or a text that is none: of these the size is 0."""

    def __init__(self, data: bytes, at: i64, size: i64, hashed: i64, text: str) -> None:
        """``text`` is the same, where it is at hand."""
        self.data: Final = data
        self.at: Final[i64] = at
        self.size: Final[i64] = size
        self.hashed: Final[i64] = hashed
        self._text: str = text

    @property
    def text(self) -> str:
        if not self._text:
            self._text = self.data[self.at : self.at + self.size].decode("ascii")
        return self._text

    def write(self, out: BytesWriter) -> None:
        """Write it, as a text of MessagePack."""
        size = self.size
        put_text(size, out)
        end: i64 = len(out) + size
        data = self.data
        at = self.at
        stop = at + size
        while at < stop:
            write_i64_le(out, read_i64_le(data, at))
            at += 8
        out.truncate(end)


def name_at(data: bytes, at: i64, size: i64) -> Name | None:
    """The id of 1 to ``NAME_MAX`` bytes that begins at ``at``; None: other characters are among them.

    Behind it there have to be ``PADDING`` bytes.
    """
    bad: i64 = 0
    first = size
    second = size
    place = at
    left = size
    while left > 0:
        word = read_i64_le(data, place)
        filled = word
        if left < 8:
            bits = left << 3
            word &= _56_BITS >> 56 - bits
            filled = word | (_FILL >> bits << bits)
        low = filled & _32_BITS
        high = filled >> 32 & _32_BITS
        bad |= (low | high | low + _LAST | high + _LAST | ~(low + _FIRST) | ~(high + _FIRST)) & _HIGHEST
        low = word & _32_BITS
        high = word >> 32 & _32_BITS
        first = (first ^ low) * _FACTOR_1
        first = ((first ^ first >> 31) & _31_BITS ^ high) * _FACTOR_2
        first = (first ^ first >> 31) & _31_BITS
        second = (second ^ high) * _FACTOR_3
        second = ((second ^ second >> 31) & _31_BITS ^ low) * _FACTOR_4
        second = (second ^ second >> 31) & _31_BITS
        place += 8
        left -= 8
    if bad:
        return None
    return Name(data, at, size, first << 31 | second, "")


def name_of(text: str) -> Name:
    """A text as an id; one that is none has the size 0."""
    if 1 <= len(text) <= NAME_MAX and text.isascii():
        data = text.encode("ascii") + PADDING
        name = name_at(data, 0, len(text))
        if name is not None:
            return name
    return Name(b"", 0, 0, 0, text)


#: Names in a block that is hashed at one go. Part of the digest's definition.
BLOCK: Final = 4096
#: Names that address space is reserved for, and integers for their characters: growth beyond copies.
_NAMES_RESERVED: Final = 1 << 24
_WORDS_RESERVED: Final = 1 << 25
_SIZE_BITS: Final = 6
_SIZE_MASK: Final = 63


@final
class Names:
    """An id for each number from 1 on. None changes once it is there, so a block of them is hashed when it is full."""

    def __init__(self) -> None:
        self._words = zeros(0, _WORDS_RESERVED)  #: the characters of all names, the rest of the last integer 0
        self._places = zeros(1, _NAMES_RESERVED)  #: where those of each begin, and their number; nothing is named 0
        self._hashed: i64 = 0  #: how many are in it, 0 included
        self._hash: Final = blake2b(digest_size=32)
        self._out: Final = BytesWriter()

    def append(self, name: Name | None) -> None:
        """The name of the next number; None: it has none."""
        places = self._places
        if len(places) - self._hashed == BLOCK:
            self._hash.update(self._spelled())
            self._hashed += BLOCK
        words = self._words
        start: i64 = len(words)
        if name is None or name.size == 0:
            self._places = append(places, start << _SIZE_BITS)
            return
        self._places = append(places, start << _SIZE_BITS | name.size)
        data = name.data
        at = name.at
        left = name.size
        while left >= 8:
            words = append(words, read_i64_le(data, at))
            at += 8
            left -= 8
        if left:
            words = append(words, read_i64_le(data, at) & _56_BITS >> 56 - (left << 3))
        self._words = words

    def forget(self) -> None:
        """Take back the last ``append``."""
        self._places, place = pop(self._places)
        for _ in range((place & _SIZE_MASK) + 7 >> 3):
            self._words, _word = pop(self._words)

    def is_at(self, number: i64, name: Name) -> bool:
        """Whether a number has this name."""
        place = self._places[number]
        left = name.size
        if place & _SIZE_MASK != left:
            return False
        at = name.at
        data = name.data
        words = self._words
        word = place >> _SIZE_BITS
        while left >= 8:
            if words[word] != read_i64_le(data, at):
                return False
            word += 1
            at += 8
            left -= 8
        return left == 0 or words[word] == read_i64_le(data, at) & _56_BITS >> 56 - (left << 3)

    def write(self, number: i64, out: BytesWriter) -> None:
        """Write a name, as a text of MessagePack."""
        place = self._places[number]
        size = place & _SIZE_MASK
        put_text(size, out)
        self._copy(place, out)

    def _copy(self, place: i64, out: BytesWriter) -> None:
        size = place & _SIZE_MASK
        end: i64 = len(out) + size
        words = self._words
        word = place >> _SIZE_BITS
        for i in range(word, word + (size + 7 >> 3)):
            write_i64_le(out, words[i])
        out.truncate(end)

    def __getitem__(self, number: i64) -> str:
        out = self._out
        out.truncate(0)
        self._copy(self._places[number], out)
        return out.getvalue().decode("ascii")

    def of(self, numbers: vec[i64]) -> list[str]:
        """The name of each of many; see ``Column.of``. All are made a text at once, of which each is cut."""
        all_places = self._places
        places = numbers[:]
        for i in range(len(places)):
            places[i] = all_places[places[i]]
        out = self._out
        out.truncate(0)
        for place in places:
            self._copy(place, out)
        text = out.getvalue().decode("ascii")
        found: list[str] = []
        at: i64 = 0
        for place in places:
            end = at + (place & _SIZE_MASK)
            found.append(text[at:end])
            at = end
        return found

    def _spelled(self) -> bytes:
        """Those that are not hashed so far, as an array of MessagePack."""
        out = BytesWriter()
        start = self._hashed
        count: i64 = len(self._places) - start
        put_array(count, out)
        for number in range(start, start + count):
            self.write(number, out)
        return out.getvalue()

    def digest(self) -> bytes:
        """Over all of them, block by block. Costs a look at the last block."""
        digest = self._hash.copy()
        digest.update(self._spelled())
        return digest.digest()


@final
class Requests:
    """The ids of requests that have no row of their own, by their place from 1 on, each with an index.

    That is the number of the order that was cancelled, or the place of the answer among those that are kept.
    """

    def __init__(self) -> None:
        self.ids: Final = Names()
        self.indices = zeros(1, _NAMES_RESERVED)

    def append(self, request_id: Name, index: i64) -> i64:
        """The next one; its place."""
        place: i64 = len(self.indices)
        self.indices = append(self.indices, index)
        self.ids.append(request_id)
        return place

    def forget(self) -> None:
        """Take back the last ``append``."""
        self.indices, _ = pop(self.indices)
        self.ids.forget()


#: Slots of a segment of ``Outcomes``, a page of memory; and how many of them it fills before it is split.
_SLOTS: Final = 256
_SLOT_MASK: Final = _SLOTS - 1
_SLOT_SHIFT: Final = 40  #: the bits of a hash that say which slot; the lowest say which segment
_MOST: Final = 160
_SEGMENT: Final = 2 * _SLOTS
_SEGMENT_SHIFT: Final = 9
#: Segments that address space is reserved for: growth beyond copies.
_SEGMENTS_RESERVED: Final = 1 << 17
_FORGOTTEN: Final = -1  #: in place of the hash of an id that was taken back
#: A product with it gives every member another number, of less than 56 bits.
_MEMBER: Final = 0x9E3779B1


@final
class Outcomes:
    """What became of each client_order_id or request_id that a member used, as ``Identities.remember`` has it.

    A hash table of two integers for each id, its hash and what is known of it: nothing has to be fetched from elsewhere
    to know that another id is new. The hash has 62 bits, so hardly more than one slot ever has to be compared with the
    id itself, which is where its order is, or its request.

    A table that is made anew when it grows would be a pause: tens of milliseconds at a million ids. So it lies in
    segments of a page each, found by the low bits of the hash, and one that is full is split in two (extendible
    hashing, Fagin and others 1979).
    """

    def __init__(self, orders: Names) -> None:
        """``orders`` has the client_order_id of each order by its number."""
        self.requests: Final = Requests()
        self._orders: Final = orders
        self._cells = zeros(_SEGMENT, _SEGMENT * _SEGMENTS_RESERVED)
        self._segments = vec[i64]([0])  #: by the low bits of a hash: where its segment begins
        self._low: i64 = 0  #: which bits these are
        self._used = vec[i64]([0])  #: by segment: slots in use
        self._bits = vec[i64]([0])  #: by segment: how many low bits of a hash its ids share
        self._empty: Final = vec[i64]([0] * _SEGMENT)

    def _find(self, member: i64, name: Name) -> i64:
        """Where a member's id is; -1: it is new."""
        hashed = _hash_of(member, name)
        cells = self._cells
        start = self._segments[hashed & self._low]
        slot = hashed >> _SLOT_SHIFT & _SLOT_MASK
        while True:
            at = start + (slot << 1)
            found = cells[at]
            if found == 0:
                return -1
            if found == hashed:
                what = cells[at + 1]
                ids = self.requests.ids if what & 3 > WAITING_ORDER else self._orders
                if ids.is_at(what >> 2, name):
                    return at
            slot = (slot + 1) & _SLOT_MASK

    def get(self, member: i64, name: Name) -> i64:
        """What became of the id; -1: it is new."""
        at = self._find(member, name)
        if at < 0:
            return -1
        return self._outcome(at)

    def _outcome(self, at: i64) -> i64:
        what = self._cells[at + 1]
        return self.requests.indices[what >> 2] << 2 | what & 3 if what & 3 > WAITING_ORDER else what

    def put(self, member: i64, name: Name, kind: i64, index: i64) -> None:
        """Remember what became of an id that is new."""
        place = self.requests.append(name, index) if kind > WAITING_ORDER else index
        self._enter(_hash_of(member, name), place << 2 | kind)

    def _enter(self, hashed: i64, what: i64) -> None:
        start = self._segments[hashed & self._low]
        while self._used[start >> _SEGMENT_SHIFT] >= _MOST:
            self._split(start >> _SEGMENT_SHIFT, hashed)
            start = self._segments[hashed & self._low]
        self._place(start, hashed, what)

    def _place(self, start: i64, hashed: i64, what: i64) -> None:
        """Take an id into the segment that begins at ``start``, where there is room."""
        self._used[start >> _SEGMENT_SHIFT] += 1
        cells = self._cells
        slot = hashed >> _SLOT_SHIFT & _SLOT_MASK
        while cells[start + (slot << 1)]:
            slot = (slot + 1) & _SLOT_MASK
        cells[start + (slot << 1)] = hashed
        cells[start + (slot << 1) + 1] = what

    def _split(self, segment: i64, hashed: i64) -> None:
        """Move half of a segment, where ``hashed`` belongs, to a new one: the ids with one more bit set."""
        bits = self._bits[segment]
        bit = _BIT_32 >> 32 - bits
        if bit > self._low:
            self._segments = extend(self._segments, self._segments)
            self._low = self._low << 1 | 1
        start = segment << _SEGMENT_SHIFT
        fresh: i64 = len(self._cells)
        before = self._cells[start : start + _SEGMENT]
        self._cells = extend(self._cells, self._empty)
        self._used = append(self._used, 0)
        self._bits = append(self._bits, bits + 1)
        self._bits[segment] = bits + 1
        self._used[segment] = 0
        for i in range(start, start + _SEGMENT, 2):
            self._cells[i] = 0
        place = hashed & (bit - 1) | bit
        while place <= self._low:
            self._segments[place] = fresh
            place += bit << 1
        for at in range(0, _SEGMENT, 2):
            if before[at] > 0:
                self._place(fresh if before[at] & bit else start, before[at], before[at + 1])

    def forget(self, member: i64, name: Name) -> i64:
        """Take back the last ``put``, of this id; what became of it. Raises ``KeyError`` for one that is not there."""
        at = self._find(member, name)
        if at < 0:
            raise KeyError(name.text)
        outcome = self._outcome(at)
        self._cells[at] = _FORGOTTEN
        if outcome & 3 > WAITING_ORDER:
            self.requests.forget()
        return outcome


def _hash_of(member: i64, name: Name) -> i64:
    """Neither 0 nor ``_FORGOTTEN``."""
    return (name.hashed ^ member * _MEMBER) + 1
