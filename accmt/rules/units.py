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
# Every accepted spelling -> its unit: `eps` is `epoch`.
BY_SPELLING = {
    spelling + plural: unit for unit, spellings in SPELLINGS.items() for spelling in spellings for plural in ("", "s")
}
SUGGESTIONS = tuple(unit + plural for unit in SPELLINGS for plural in ("", "s"))  # without abbreviations
THE_UNITS = "the units are: " + ", ".join(f"{unit}s" for unit in SPELLINGS) + " and %"
