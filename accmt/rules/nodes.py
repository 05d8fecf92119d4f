"""Abstract syntax tree of the rule language.

Every node is a frozen value with its place in the text (`span`, ignored by comparisons), and `str(node)` is its
canonical text: parsing that text again gives an equal node.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import TypeAlias

from accmt.rules.units import PERCENT, SPELLINGS

RESERVED = frozenset({"if", "by", "keep", "after", "then", "and", "or", "not", "is", "every", "nan"})
COUNTERS = ("epoch", "step", "evaluation", "elapsed")
PREFIX = "best_"

_NAME = re.compile(r"[^\W\d]\w*(?:[-.]+\w+)*")  # as in the grammar


@dataclass(frozen=True, slots=True)
class Span:
    """A half-open range of characters in the text of a rule."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Node:
    """Base class of all nodes, with the place in the text."""

    span: Span = field(compare=False, repr=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class Name(Node):
    """The name of a metric or of a dataset, without its quotes."""

    text: str

    def __str__(self) -> str:
        return self.text if is_plain(self.text) and self.text not in RESERVED else quote(self.text)


@dataclass(frozen=True, slots=True)
class Everywhere(Node):
    """The `*` of `accuracy@*`: all datasets that report the metric."""

    def __str__(self) -> str:
        return "*"


@dataclass(frozen=True, slots=True)
class Number(Node):
    value: float

    def __str__(self) -> str:
        return format_number(self.value)


@dataclass(frozen=True, slots=True)
class Quantity(Node):
    """A number with a unit (`unit` is a key of `units.SPELLINGS`, `%`, or the text as written if it is unknown)."""

    value: float
    unit: str

    def __str__(self) -> str:
        number = format_number(self.value)
        if self.unit == PERCENT:
            return f"{number}%"
        return f"{number} {self.unit}{'s' if self.unit in SPELLINGS and self.value != 1 else ''}"


@dataclass(frozen=True, slots=True)
class Amount(Node):
    """The size of an improvement: absolute, a percentage of the incumbent's absolute value, or in standard errors."""

    value: float
    relative: bool = False
    standard_errors: bool = False

    def __str__(self) -> str:
        unit = " se" if self.standard_errors else "%" if self.relative else ""
        return format_number(self.value) + unit


@dataclass(frozen=True, slots=True)
class Measure(Node):
    """A metric on datasets; without datasets, on all that report it."""

    metric: Name
    datasets: tuple[Name | Everywhere, ...]

    def __str__(self) -> str:
        metric = self.metric.text
        ambiguous = metric in COUNTERS or metric.startswith(PREFIX)
        return "@".join([quote(metric) if ambiguous else str(self.metric), *(_dataset(d) for d in self.datasets)])


@dataclass(frozen=True, slots=True)
class Counter(Node):
    """A counter of the training: `epoch`, `step`, `evaluation` or `elapsed` (seconds)."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Call(Node):
    function: str
    arguments: tuple[Expression | Quantity, ...]
    function_span: Span = field(compare=False, repr=False, kw_only=True)

    def __str__(self) -> str:
        return f"{self.function}({', '.join(map(str, self.arguments))})"


@dataclass(frozen=True, slots=True)
class Sum(Node):
    """Terms with their signs, +1 or -1; the first sign is always +1."""

    signs: tuple[int, ...]
    terms: tuple[Expression, ...]

    def __str__(self) -> str:
        first, *rest = (_wrap(term, _SUM + 1) for term in self.terms)
        return first + "".join(
            f" {'+' if sign > 0 else '-'} {term}" for sign, term in zip(self.signs[1:], rest, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Product(Node):
    factors: tuple[Expression, ...]

    def __str__(self) -> str:
        return " * ".join(_wrap(factor, _PRODUCT + 1) for factor in self.factors)


@dataclass(frozen=True, slots=True)
class Comparison(Node):
    left: Expression
    operator: str
    right: Expression | Quantity

    def __str__(self) -> str:
        return f"{_wrap(self.left, _SUM)} {self.operator} {_wrap(self.right, _SUM)}"


@dataclass(frozen=True, slots=True)
class IsNan(Node):
    score: Expression

    def __str__(self) -> str:
        return f"{_wrap(self.score, _SUM)} is nan"


@dataclass(frozen=True, slots=True)
class Not(Node):
    operand: Expression

    def __str__(self) -> str:
        return f"not {_wrap(self.operand, _NOT)}"


@dataclass(frozen=True, slots=True)
class And(Node):
    operands: tuple[Expression, ...]

    def __str__(self) -> str:
        return " and ".join(_wrap(operand, _NOT) for operand in self.operands)


@dataclass(frozen=True, slots=True)
class Or(Node):
    operands: tuple[Expression, ...]

    def __str__(self) -> str:
        return " or ".join(_wrap(operand, _AND) for operand in self.operands)


Expression: TypeAlias = Number | Measure | Counter | Call | Sum | Product | Comparison | IsNan | Not | And | Or


@dataclass(frozen=True, slots=True)
class Ranking(Node):
    """The ranking of models: groups joined by `then`, each of objectives joined by `/`."""

    groups: tuple[tuple[Expression, ...], ...]

    @property
    def objectives(self) -> tuple[Expression, ...]:
        return tuple(objective for group in self.groups for objective in group)

    @property
    def is_total(self) -> bool:
        """True if any two candidates can be ranked; not so with objectives joined by `/`."""
        return all(len(group) == 1 for group in self.groups)

    def __str__(self) -> str:
        return " then ".join("/".join(_wrap(o, _SUM) for o in group) for group in self.groups)


@dataclass(frozen=True, slots=True)
class Saving(Node):
    """A saving rule as written."""

    ranking: Ranking
    condition: Expression | None = None
    by: Amount | None = None
    keep: Number | None = None
    after: Quantity | None = None
    is_averaged: bool = False

    @property
    def name(self) -> str:
        """Canonical text of the ranking with the prefix `best_`, without clauses."""
        return f"{PREFIX}{self.ranking}"

    def __str__(self) -> str:
        keep = f"{self.keep} average" if self.is_averaged else self.keep
        clauses = {"if": self.condition, "by": self.by, "keep": keep, "after": self.after}
        return self.name + "".join(f" {word} {node}" for word, node in clauses.items() if node is not None)


@dataclass(frozen=True, slots=True)
class Cadence(Node):
    """Interval of a recurring action: due each time one of the quantities has passed."""

    every: tuple[Quantity, ...]
    after: Quantity | None = None

    def __str__(self) -> str:
        every = " or ".join(map(str, self.every))
        return every if self.after is None else f"{every} after {self.after}"


_OR, _AND, _NOT, _COMPARISON, _SUM, _PRODUCT, _FACTOR = range(7)
_PRECEDENCE: dict[type[Node], int] = {
    Or: _OR,
    And: _AND,
    Not: _NOT,
    Comparison: _COMPARISON,
    IsNan: _COMPARISON,
    Sum: _SUM,
    Product: _PRODUCT,
}


def walk(node: Node) -> Iterator[Node]:
    """Yield the node and all its descendants, children before their parents."""
    for entry in fields(node):
        for child in _flatten(getattr(node, entry.name)):
            yield from walk(child)
    yield node


def format_number(value: float) -> str:
    """Return the shortest text that reads back as the same number."""
    return str(int(value)) if math.isfinite(value) and value.is_integer() and abs(value) < 1e15 else repr(value)


def is_plain(name: str) -> bool:
    """Return whether the characters of a name need no quotes (it may still be a keyword)."""
    return _NAME.fullmatch(name) is not None and (name[0].isalpha() or name[0] == "_")


def quote(text: str) -> str:
    """Return a name in quotes of a kind that it does not contain."""
    return f"'{text}'" if '"' in text else f'"{text}"'


def _dataset(dataset: Name | Everywhere) -> str:
    return dataset.text if isinstance(dataset, Name) and re.fullmatch("[0-9]+", dataset.text) else str(dataset)


def _wrap(node: Node, lowest: int) -> str:
    return str(node) if _PRECEDENCE.get(type(node), _FACTOR) >= lowest else f"({node})"


def _flatten(value: object) -> Iterator[Node]:
    if isinstance(value, Node):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _flatten(item)
