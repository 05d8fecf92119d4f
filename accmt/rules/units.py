"""The units of the language: what a quantity counts, and how each unit may be spelled."""

from __future__ import annotations

SPELLINGS: dict[str, tuple[str, ...]] = {
    "step": ("step", "st"),
    "epoch": ("epoch", "ep"),
    "evaluation": ("evaluation", "eval"),
    "sample": ("sample",),
    "second": ("second", "sec"),
    "minute": ("minute", "min"),
    "hour": ("hour", "hr", "h"),
}
PERCENT = "%"
SECONDS = {"second": 1.0, "minute": 60.0, "hour": 3600.0}
WHOLE = frozenset({"step", "evaluation", "sample"})

MEANT = {"s": "sec", "m": "min"}  # abbreviations that are usual elsewhere, and none here
_BY_SPELLING = {
    spelling + plural: unit for unit, spellings in SPELLINGS.items() for spelling in spellings for plural in ("", "s")
}


def unit_of(spelling: str) -> str | None:
    """The unit that a spelling stands for (`eps` is `epoch`), or None where there is no such unit."""
    return _BY_SPELLING.get(spelling)


def spellings() -> tuple[str, ...]:
    """Every accepted spelling."""
    return tuple(_BY_SPELLING)


def suggestions() -> tuple[str, ...]:
    """The spellings that are worth suggesting: those that are no abbreviations."""
    return tuple(unit + plural for unit in SPELLINGS for plural in ("", "s"))


THE_UNITS = "the units are: " + ", ".join(f"{unit}s" for unit in SPELLINGS) + " and %"
