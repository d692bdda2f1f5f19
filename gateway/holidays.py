"""Reads the business calendar that the exchange hands to the engine at its first start.

The engine never opens a file, so the holidays of ``data/holidays.csv`` reach it as a logged command; a later version of
the file changes nothing until the operator sends it. The file states its own range, because a date outside of it must
be refused and not taken for a business day.
"""

from __future__ import annotations

import datetime
from pathlib import Path

from engine.calendar import Calendar
from engine.commands import SetCalendar

HOLIDAYS = Path(__file__).parent / "data" / "holidays.csv"


def load_calendar(path: Path = HOLIDAYS) -> SetCalendar:
    """The command that makes the file's calendar known to the engine.

    Raises ValueError, naming file and line, for a file that is not as ``data/README.md`` describes it.
    """
    first = last = 0
    holidays: list[int] = []
    columns = ""
    for place, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.startswith("# range:"):
            words = line.split()
            if len(words) != 5:
                raise ValueError(f"Expected `# range: first to last`, got {line!r} - in {path.name}:{place}")
            first, last = _number(words[2], path, place), _number(words[4], path, place)
        elif line.startswith("#"):
            continue
        elif not columns:
            columns = line
            if columns != "date,name":
                raise ValueError(f"Expected the columns date,name, got {line!r} - in {path.name}:{place}")
        else:
            holidays.append(_number(line.partition(",")[0], path, place))
    if not first:
        raise ValueError(f"Expected a line `# range: first to last`, got none - in {path.name}")
    Calendar(first, last, holidays)  # refuses what the engine would refuse, while the file can still be named
    return SetCalendar(first=first, last=last, holidays=holidays)


def business_calendar(command: SetCalendar) -> Calendar:
    """The calendar that a ``SetCalendar`` command describes."""
    return Calendar(command.first, command.last, list(command.holidays))


def _number(text: str, path: Path, place: int) -> int:
    try:
        day = datetime.date.fromisoformat(text)
    except ValueError:
        raise ValueError(f"Expected a date as YYYY-MM-DD, got {text!r} - in {path.name}:{place}") from None
    return day.year * 10000 + day.month * 100 + day.day
