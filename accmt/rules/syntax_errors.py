"""Messages for syntax errors: what the parser found, what it expected, and mistakes that are common in practice."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from accmt.rules.errors import RuleProblem, enumerated, nearest
from accmt.rules.nodes import RESERVED, Span
from accmt.rules.units import BY_SPELLING, THE_UNITS

if TYPE_CHECKING:
    from lark.exceptions import UnexpectedInput

_KINDS = {"saving": "rule", "condition": "condition", "cadence": "cadence"}
_EXAMPLES = {"saving": "best_accuracy@dev", "condition": "valid_loss < 0.1", "cadence": "2 epochs"}
_SYNONYMS = {"when": "if", "where": "if", "unless": "if", "since": "after", "top": "keep", "||": "or", "&&": "and"}
_CLAUSES = frozenset({"if", "by", "keep", "after"})
_QUOTED = r""""[^"\n]*"|'[^'\n]*'"""
_WORD = rf"[\w.@-]*\w|{_QUOTED}"
_COMPARED = r"[<>]=?|[!=]="
_SIGN = r"[+-](?=[\d.]*)"


@dataclass(frozen=True, slots=True)
class _Habit:
    """A common mistake.

    `here` matches the text where the parser stopped, and `before` the text in front of it; a group named `at` in
    `before` is part of the mistake. `when` and `unless` test what the parser expected and where it was: a terminal, a
    keyword, `value`, `ranking`, `saving`, `condition` or `cadence`.
    """

    message: str
    allowed: str | None = None
    here: str = ""
    before: str = ""
    when: frozenset[str] = frozenset()
    unless: frozenset[str] = frozenset()


def _habit(
    message: str, allowed: str | None = None, *, here: str = "", before: str = "", when: str = "", unless: str = ""
) -> _Habit:
    return _Habit(message, allowed, here, f"(?:{before})$", frozenset(when.split()), frozenset(unless.split()))


# The first one that matches is reported.
_HABITS = (
    _habit(
        "a unit is missing",
        THE_UNITS,
        before=r"(?<![\w.@-])(?P<at>[\d.]+)\s+(?:or|after|if|by|keep)\s*",
        unless="NUMBER",
    ),
    _habit("after 'is' stands 'nan'", "the 'not' stands in front: not accuracy is nan", here="not", when="nan"),
    _habit("after 'is' stands 'nan'", "other values are compared: accuracy == 1", here=_WORD, when="nan"),
    _habit("'=>' is no comparison", "write '>='", here="=>"),
    _habit("'=<' is no comparison", "write '<='", here="=<"),
    _habit("'<>' is no comparison", "write '!='", here=">", before="(?P<at><)"),
    _habit("'===' is no comparison", "write '=='", here="=", before="(?P<at>==)"),
    _habit(
        "a saving rule ranks models, it compares no values",
        "a condition stands after 'if': best_accuracy if accuracy > 0.5",
        here=_COMPARED,
        when="ranking",
        unless="value",
    ),
    _habit("comparisons are not chained", "write a < b and b < c", here=_COMPARED, unless="value cadence NUMBER NAME"),
    _habit("a single '=' is no comparison", "write '=='", here="="),
    _habit(
        "cadences are not joined by '{here}'",
        "join them by 'or': 1 epoch or 500 steps",
        here="and|[,;/&+|]+",
        when="cadence or",
    ),
    _habit("the number stands in front of the unit", "as in: 2 epochs", here=r"[\d.]+", when="cadence or"),
    _habit(
        "after 'after' stands a number with a unit",
        "as in: after 1 epoch",
        here=_WORD,
        before=r"\bafter\s+",
        when="NUMBER",
    ),
    _habit("'{here}' is not part of the language", "write 'and'", here="&+"),
    _habit("'{here}' is not part of the language", "write 'or'", here=r"\|+"),
    _habit("'{here}' is not part of the language", "write 'not'", here="!"),
    _habit(
        "standard errors are written 'se'",
        "as in: by 2 se",
        here=r"(?:std|stderr|sem|sd|sigma|standard)\w*|SE",
        when="SE",
    ),
    _habit("there are no powers", "the operators are * + and -", here=r"\*|(?<=\*)\*", before=r"(?P<at>\*)"),
    _habit("there are no powers", "the operators are * + and -", here=r"\^"),
    _habit(
        "there is no division",
        "write 0.5 * a instead of a / 2; '/' separates objectives, outside of conditions and parentheses",
        here="/",
        unless="SLASH value",
    ),
    _habit(
        "objectives are not joined by ','",
        "join them by '/' (a saved model is worse in none of them) or by 'then' (the first decides)",
        here=",",
        when="ranking",
        unless="value COMMA RPAR",
    ),
    _habit("conditions are not joined by ','", "join them by 'and' or 'or'", here=",", unless="value COMMA AT RPAR"),
    _habit("this ')' closes nothing", here=r"\)", unless="RPAR value NAME NUMBER"),
    _habit("there is nothing between the parentheses", here=r"\)", before=r"(?P<at>\()\s*"),
    _habit(
        "'{here}' needs a blank on both sides",
        "write a {here} b; without blanks, a-b is one name",
        here=_SIGN,
        when="PLUS",
    ),
    _habit("the sign stands directly in front of its number", "as in: accuracy > -0.5", here=_SIGN, when="SIGNED"),
    _habit(
        "nothing stands in front of '{here}'",
        "only a number on the right of a comparison has a sign: accuracy > -0.5; instead of -a, write 0 - a",
        here=_SIGN,
        when="value",
    ),
    _habit("the number must be positive", here=r"[+-][\d.]*", when="NUMBER"),
    _habit(
        "a number with a unit stands on the right of a comparison",
        "turn it around, as in: elapsed > 2 hours",
        here=rf"(?:{'|'.join(sorted(BY_SPELLING, key=len, reverse=True))})\b",
        before=r"(?<![\w.@-])(?P<at>[\d.]+)\s*",
        when="COMPARISON",
    ),
    _habit(
        "a name that starts with a digit is written in quotes",
        'write "{here}"',
        here=r"[^\W\d][\w.-]*",
        before=r"(?:^best_|(?<![\w.@-]))(?P<at>\d[\d.]*)",
        when="PLUS",
    ),
    _habit("the metric in front of '@' is missing", "as in: accuracy@dev", here="@", when="value"),
    _habit(
        "the metric declares whether higher or lower is better",
        "write best_accuracy",
        here=_WORD,
        before=r"^(?:max|min|maximum|minimum|maximize|minimize|highest|lowest)\s+",
        when="ranking SLASH",
    ),
    _habit(
        "a name has no blanks",
        "write best_valid_loss, or best_accuracy",
        here=_WORD,
        before=r"^best\s+|\b(?:train|valid|val)\s+",
        when="ranking SLASH",
    ),
    _habit(
        "'{here}' cannot stand here",
        "two objectives are joined by '/', and 'best_' stands in front of the first only: best_accuracy/f1",
        here=_WORD,
        when="ranking SLASH",
    ),
    _habit("the quote is never closed", "a name in quotes ends with the quote that it began with", here="[\"'].*"),
    _habit(
        "the character '{here}' is not part of the language",
        'a name with such characters is written in quotes: "recall@10"',
        here=r"[^\w\s()<>=!/*+,%.@-]",
    ),
)

# Expected terminals -> words, tried in order: an entry applies if all its terminals are expected, and uses them up.
_PHRASES: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset({"NAME", "LPAR"}), "a metric"),
    (frozenset({"NAME", "STAR"}), "a dataset"),
    (frozenset({"NAME"}), "a unit"),
    (frozenset({"NUMBER"}), "a number"),
    (frozenset({"PERCENT", "SE"}), "'%', 'se'"),
    (frozenset({"COMPARISON"}), "a comparison (< <= > >= == !=)"),
    (frozenset({"PLUS"}), "an operator (+ - *)"),
    (frozenset({"SLASH"}), "'/'"),
    (frozenset({"then"}), "'then'"),
    (frozenset({"and"}), "'and'"),
    (frozenset({"or"}), "'or'"),
    (frozenset({"AVERAGE"}), "'average'"),
    (_CLAUSES, "a clause (if, by, keep, after)"),
    (frozenset({"after"}), "'after'"),
    (frozenset({"nan"}), "'nan'"),
    (frozenset({"COMMA"}), "','"),
    (frozenset({"RPAR"}), "')'"),
    (frozenset({"$END"}), "the end"),
)


def explain(text: str, error: UnexpectedInput, start: str) -> RuleProblem:
    """Return the problem that made the parser stop."""
    if not text.strip():
        return RuleProblem(f"the {_KINDS[start]} is empty", allowed=f"an example: {_EXAMPLES[start]}")
    expected = _expected(error)
    token = getattr(error, "token", None)
    if token is not None and token.type == "$END":
        return _incomplete(text, expected)
    position = error.pos_in_stream or 0
    position += len(text[position:]) - len(text[position:].lstrip())
    found = re.compile(_WORD).match(text, position)
    word = text[position] if found is None else found.group()
    if (meant := _keyword(word, expected, start)) is not None:
        return RuleProblem(f"'{word}' cannot stand here", text, Span(position, position + len(word)), None, meant)
    flags = expected | _situation(text[:position], expected, start)
    for habit in _HABITS:
        if (problem := _told(habit, text, position, flags)) is not None:
            return problem
    quoted = word if word[0] in "\"'" else f"'{word}'"
    return RuleProblem(f"{quoted} cannot stand here", text, Span(position, position + len(word)), _allowed(expected))


def _expected(error: UnexpectedInput) -> frozenset[str]:
    """Return the terminals that the parser expected; keywords as they are written."""
    found: Collection[str] = ()
    for source in ("accepts", "expected", "allowed"):
        found = found or getattr(error, source, None) or ()
    return frozenset(terminal[1:].lower() if terminal.startswith("_") else terminal for terminal in found)


def _incomplete(text: str, expected: frozenset[str]) -> RuleProblem:
    end = len(text.rstrip())
    span = Span(end, end + 1)
    if "RPAR" in expected:
        return RuleProblem("a ')' is missing", text, span)
    if "PERCENT" in expected:
        return RuleProblem("a unit is missing", text, span, THE_UNITS)
    return RuleProblem("something is missing at the end", text, span, _allowed(expected))


def _keyword(word: str, expected: frozenset[str], start: str) -> str | None:
    """Return the keyword that was probably meant."""
    keywords = expected & RESERVED
    if "NAME" in expected or word in RESERVED or len(word) < 2:
        return None
    if start != "cadence" and _SYNONYMS.get(word.casefold()) in keywords:
        return _SYNONYMS[word.casefold()]
    return nearest(word, sorted(keywords))


def _situation(before: str, expected: frozenset[str], start: str) -> set[str]:
    flags = {start}
    if {"NAME", "LPAR"} <= expected:
        flags.add("value")
    if start == "saving" and not re.search(rf"\b(?:{'|'.join(_CLAUSES)})\b", re.sub(_QUOTED, "", before)):
        flags.add("ranking")
    return flags


def _told(habit: _Habit, text: str, position: int, flags: frozenset[str]) -> RuleProblem | None:
    if not habit.when <= flags or habit.unless & flags:
        return None
    here = re.compile(habit.here).match(text, position)
    before = re.search(habit.before, text[:position])
    if here is None or before is None:
        return None
    start, end = position, here.end()
    if "at" in before.groupdict():
        start, end = before.start("at"), end if here.group() else before.end("at")
    words = {"here": text[start:end]}
    allowed = habit.allowed and habit.allowed.format(**words)
    return RuleProblem(habit.message.format(**words), text, Span(start, max(end, start + 1)), allowed)


def _allowed(expected: frozenset[str]) -> str | None:
    left, words = set(expected), []
    for terminals, phrase in _PHRASES:
        if terminals <= left:
            words.append(phrase)
            left -= terminals
    return f"allowed here: {enumerated(words, 'or')}" if words else None
