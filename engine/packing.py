"""MessagePack, as far as compiled code reads and writes it itself: first bytes, and headers."""

from __future__ import annotations

from typing import Final

from librt.strings import BytesWriter
from mypy_extensions import i64, u8

ARRAY: Final = 0x90  #: up to 15 elements
ARRAY_16: Final = 0xDC  #: with 2 bytes of length
ARRAY_32: Final = 0xDD
TEXT: Final = 0xA0  #: up to 31 bytes
TEXT_8: Final = 0xD9
FIFTEEN: Final = 15
_TEXT_MOST: Final = 0x1F  #: the longest text whose header has its length
_8_BITS: Final = 0xFF
_16_BITS: Final = 0xFFFF


def put_array(size: i64, out: BytesWriter) -> None:
    """The header of an array of ``size`` elements."""
    if size <= FIFTEEN:
        out.append(u8(ARRAY | size))
        return
    if size <= _16_BITS:
        out.append(u8(ARRAY_16))
    else:
        out.append(u8(ARRAY_32))
        out.append(u8(size >> 24))
        out.append(u8(size >> 16 & _8_BITS))
    out.append(u8(size >> 8 & _8_BITS))
    out.append(u8(size & _8_BITS))


def put_text(size: i64, out: BytesWriter) -> None:
    """The header of a text of ``size`` bytes, 255 at most."""
    if size <= _TEXT_MOST:
        out.append(u8(TEXT | size))
    else:
        out.append(u8(TEXT_8))
        out.append(u8(size))
