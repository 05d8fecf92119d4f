"""Mistakes in rules, and their messages.

A `RuleProblem` is data: a sentence, the place in the text, what is allowed there, the nearest name. `RuleError` carries
all problems that were found and formats them in one place.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from accmt.rules.nodes import Span
from accmt.rules.printable import escaped

_WIDTH = 100
_MOST_SHOWN = 40
_LONGEST_SUGGESTED = 100


@dataclass(frozen=True, slots=True)
class RuleProblem:
    """One mistake in one text.

    `text` and `span` show where it is (None for a mistake without a place, such as two rules with one name), `allowed`
    says what is allowed there, and `suggestion` is the name that was probably meant.
    """

    message: str
    text: str | None = None
    span: Span | None = None
    allowed: str | None = None
    suggestion: str | None = None

    def __str__(self) -> str:
        lines = [escaped(self.message)]
        if self.text is not None and self.span is not None:
            lines += _pointed(self.text, self.span)
        if self.allowed is not None:
            lines.append(f"  {escaped(self.allowed)}")
        if self.suggestion is not None:
            lines.append(f"  did you mean '{escaped(self.suggestion)}'?")
        return "\n".join(lines)


class RuleError(ValueError):
    """One or more rules cannot be used.

    Attributes:
        problems: Every mistake that was found: its `message`, the `text` of the rule, and `span`, the place in it,
            what is `allowed` there, and the `suggestion`, a name that was probably meant; None for what is unknown.
    """

    def __init__(self, problems: Iterable[RuleProblem]) -> None:
        self.problems = tuple(problems)
        shown = list(map(str, self.problems[:_MOST_SHOWN]))
        if len(self.problems) > _MOST_SHOWN:
            shown.append(f"and {len(self.problems) - _MOST_SHOWN:,} problems more")
        super().__init__("\n\n".join(shown))

    def __reduce__(self) -> tuple[type[RuleError], tuple[tuple[RuleProblem, ...]]]:
        return type(self), (self.problems,)


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Return the one of `names` that `name` probably misspells or abbreviates, None if none is near."""
    if len(name) > _LONGEST_SUGGESTED:
        return None
    by_folded = {candidate.casefold(): candidate for candidate in names if len(candidate) <= _LONGEST_SUGGESTED}
    swapped = [folded for folded in by_folded if sorted(folded) == sorted(name.casefold())]
    close = swapped or difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.6)
    if close:
        return by_folded[close[0]]
    begun = [
        candidate for folded, candidate in by_folded.items() if len(name) > 1 and folded.startswith(name.casefold())
    ]
    return begun[0] if len(begun) == 1 else None


def listed(words: Sequence[str], most: int = 12) -> str:
    """Join words with commas; of many, list the first ones and the number of the others."""
    if len(words) <= most + 1:
        return ", ".join(words)
    return f"{', '.join(words[:most])} and {len(words) - most:,} more"


def numbered(count: int | None, noun: str, form: str = "") -> str:
    """Return a number, in a format such as ',', and what it counts: 1 step, 2 steps."""
    return f"{count:{form}} {noun}{'' if count == 1 else 's'}"


def enumerated(words: Sequence[str], conjunction: str) -> str:
    """Join words with commas, and the last one with 'and' or 'or'."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {conjunction} {words[-1]}"


def _pointed(text: str, span: Span) -> list[str]:
    """Return the text, or the part of it around the mistake, and a line of carets below."""
    shown = "".join(map(_visible, text))
    begin = max(0, min(span.start - _WIDTH // 2, len(shown) - _WIDTH))
    end = begin + _WIDTH
    before, after = "..." if begin > 0 else "", "..." if end < len(shown) else ""
    carets = max(1, _columns(shown[span.start : min(span.end, end)]))
    indent = len(before) + _columns(shown[begin : span.start])
    return [f"    {before}{shown[begin:end]}{after}", "    " + " " * indent + "^" * carets]


def _visible(character: str) -> str:
    """Return the character as a terminal can safely show it: no line breaks, no control characters."""
    if character.isspace():
        return " "
    return character if escaped(character) == character else "\N{REPLACEMENT CHARACTER}"


def _columns(text: str) -> int:
    """Return the number of terminal columns that the text takes."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) > 0 for character in text)
