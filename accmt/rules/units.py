"""Units of the language: what a quantity counts, and how each unit may be spelled."""

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

MEANT = {"s": "sec", "m": "min"}  # common abbreviations that are not accepted here
_BY_SPELLING = {
    spelling + plural: unit for unit, spellings in SPELLINGS.items() for spelling in spellings for plural in ("", "s")
}


def unit_named(spelling: str) -> str | None:
    """Return the unit of a spelling (`epoch` for `eps`), or None if there is no such unit."""
    return _BY_SPELLING.get(spelling)


def spellings() -> tuple[str, ...]:
    """Return every accepted spelling."""
    return tuple(_BY_SPELLING)


def suggestions() -> tuple[str, ...]:
    """Return the spellings that are not abbreviations, for suggestions."""
    return tuple(unit + plural for unit in SPELLINGS for plural in ("", "s"))


THE_UNITS = "the units are: " + ", ".join(f"{unit}s" for unit in SPELLINGS) + " and %"
