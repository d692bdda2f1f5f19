"""The tokens of ``data/tokens.csv``: Japan's public security tokens, as far as published (``data/README.md``)."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Final

from msgspec import Struct

TOKENS: Final = Path(__file__).parent.parent / "data" / "tokens.csv"
#: Start price in yen a unit of a token without a known one: real-estate tokens are mostly issued at it.
PRICE_UNKNOWN: Final = 100_000


class Token(Struct, frozen=True):
    code: str
    description: str
    asset_class: str
    ledger_platform: str  #: where its register is kept; "" when not published
    size: int  #: yen issued; 0 when not published
    reference_price: int  #: yen a unit

    @property
    def units_outstanding(self) -> int:
        """Whole units, from size and start price; 0: not published."""
        return self.size // self.reference_price


def load_tokens(path: Path = TOKENS) -> list[Token]:
    """The file's tokens in its order. Raises ``ValueError`` naming line and column, ``OSError``."""
    tokens = []
    with path.open(encoding="utf-8", newline="") as file:
        for line, row in enumerate(csv.DictReader(file), start=2):
            numbers = {}
            for column in ("size_jpy_million", "reference_price"):
                text = (row.get(column) or "").strip()
                if text and not (text.isascii() and text.isdigit()):
                    raise ValueError(f"Expected a whole number of {column}, got {text!r} - in {path.name}:{line}")
                numbers[column] = int(text or 0)
            if not row.get("code"):
                raise ValueError(f"Expected a code, got none - in {path.name}:{line}")
            tokens.append(
                Token(
                    row["code"],
                    row["description"],
                    row["asset_class"],
                    row["ledger_platform"],
                    numbers["size_jpy_million"] * 1_000_000,
                    numbers["reference_price"] or PRICE_UNKNOWN,
                )
            )
    return tokens
