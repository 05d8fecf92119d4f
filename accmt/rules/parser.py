"""Parses text into nodes. The only file that uses Lark.

Parsing is loose: any name can be a unit or a function here. `form` validates them, and `checker` checks the rule
against a training. The grammar is read and its tables are built at the first parse (about 60 ms), not at import.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from accmt.rules import nodes
from accmt.rules import syntax_errors as syntax
from accmt.rules.errors import RuleError, RuleProblem
from accmt.rules.nodes import Expression, Span
from accmt.rules.units import BY_SPELLING

if TYPE_CHECKING:
    import lark

LONGEST = 1_000
DEEPEST = 64

_UNPRINTABLE = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff]")
_NESTING = re.compile(r""""[^"]*"|'[^']*'|[()]|[^\W\d][\w.-]*|\S""")


def parse_saving(text: str) -> nodes.Saving:
    """Parse a saving rule such as `best_accuracy@dev/f1@ood keep 3`.

    Raises:
        RuleError: The text is not a sentence of the language.
    """
    return cast(nodes.Saving, _parse(text, "saving"))


def parse_condition(text: str) -> Expression:
    """Parse a condition such as `valid_loss < 0.1 or elapsed > 2 hours`.

    Raises:
        RuleError: The text is not a sentence of the language.
    """
    return cast(Expression, _parse(text, "condition"))


def parse_cadence(text: str) -> nodes.Cadence:
    """Parse a cadence such as `epoch`, `500 steps or 10 minutes`, `10% after 1 epoch`.

    Raises:
        RuleError: The text is not a sentence of the language.
    """
    return cast(nodes.Cadence, _parse(text, "cadence"))


def _parse(text: str, start: str) -> nodes.Node:
    if not isinstance(text, str):
        raise TypeError(f"a rule is text, not {type(text).__name__}: {text!r}")
    _refuse_hostile(text)
    from lark.exceptions import UnexpectedInput

    try:
        return cast(nodes.Node, _build(_lark().parse(text, start=start)))
    except UnexpectedInput as error:
        raise RuleError([syntax.explain(text, error, start)]) from None
    except _Refused as refused:
        raise RuleError([RuleProblem(refused.message, text, refused.span, refused.allowed)]) from None


@functools.cache
def _lark() -> lark.Lark:
    from lark import Lark

    return Lark.open_from_package(
        "accmt.grammar",
        "rules.lark",
        search_paths=[""],
        parser="lalr",
        start=["saving", "condition", "cadence"],
        propagate_positions=True,
    )


def _refuse_hostile(text: str) -> None:
    """Reject texts that are too long, unprintable or too deeply nested, before parsing them."""
    if len(text) > LONGEST:
        head = text[:LONGEST]
        raise RuleError([RuleProblem(f"a rule has at most {LONGEST:,} characters, this one has {len(text):,}", head)])
    if character := _UNPRINTABLE.search(text):
        message = f"the character U+{ord(character.group()):04X} cannot stand in a rule"
        raise RuleError([RuleProblem(message, text, Span(character.start(), character.end()))])
    _refuse_deep(text)


def _refuse_deep(text: str) -> None:
    enclosing: list[int] = []
    negations = 0
    for token in _NESTING.finditer(text):
        match token.group():
            case "(":
                enclosing.append(negations)
                negations = 0
            case ")":
                negations = enclosing.pop() if enclosing else 0
            case "not":
                negations += 1
            case _:
                negations = 0
        if len(enclosing) + sum(enclosing) + negations > DEEPEST:
            span = Span(token.start(), token.end())
            raise RuleError([RuleProblem(f"a rule nests at most {DEEPEST} levels deep", text, span)])


def _build(tree: lark.Tree[Any]) -> Any:
    children: list[Any] = []
    for child in tree.children:
        children.append(child if isinstance(child, str) else _build(child))
    return _BUILDERS[tree.data](tree.meta, children)


class _Refused(Exception):
    """Raised for a text that the grammar accepts and the tree cannot represent."""

    def __init__(self, message: str, span: Span, allowed: str | None = None) -> None:
        self.message, self.span, self.allowed = message, span, allowed


def _span(meta: Any) -> Span:
    return Span(meta.start_pos, meta.end_pos)


def _number(token: Any) -> float:
    value = float(token)
    if math.isinf(value):
        raise _Refused("the number is too large", Span(token.start_pos, token.end_pos))
    return value


def _measure(meta: Any, children: list[Any]) -> nodes.Measure | nodes.Counter:
    metric, *datasets = children
    span = _span(meta)
    if not datasets and metric.text in nodes.COUNTERS and metric.span.end - metric.span.start == len(metric.text):
        return nodes.Counter(metric.text, span=span)
    return nodes.Measure(metric, tuple(datasets), span=span)


def _call(meta: Any, children: list[Any]) -> nodes.Call:
    name, *arguments = children
    return nodes.Call(str(name), tuple(arguments), span=_span(meta), function_span=Span(name.start_pos, name.end_pos))


def _total(meta: Any, children: list[Any]) -> nodes.Sum:
    """Build a sum. Parentheses around its first terms do not change the value and are dropped."""
    signs = (1, *(-1 if operator.type == "MINUS" else 1 for operator in children[1::2]))
    first, *rest = children[::2]
    if isinstance(first, nodes.Sum):
        return nodes.Sum((*first.signs, *signs[1:]), (*first.terms, *rest), span=_span(meta))
    return nodes.Sum(signs, (first, *rest), span=_span(meta))


def _times(meta: Any, children: list[Any]) -> nodes.Product:
    first, *rest = children
    factors = first.factors if isinstance(first, nodes.Product) else (first,)
    return nodes.Product((*factors, *rest), span=_span(meta))


def _joined(kind: type[nodes.And] | type[nodes.Or]) -> Callable[[Any, list[Any]], Any]:
    """Return the builder of `and` or `or`. Parentheses around operands joined by the same word are dropped."""

    def build(meta: Any, children: list[Any]) -> nodes.And | nodes.Or:
        operands: list[Expression] = []
        for child in children:
            operands += child.operands if isinstance(child, kind) else (child,)
        return kind(tuple(operands), span=_span(meta))

    return build


def _quantity(meta: Any, children: list[Any]) -> nodes.Quantity:
    number, unit = children
    return nodes.Quantity(_number(number), BY_SPELLING.get(unit, str(unit)), span=_span(meta))


def _amount(meta: Any, children: list[Any]) -> nodes.Amount:
    number, *unit = children
    kind = unit[0].type if unit else ""
    return nodes.Amount(_number(number), kind == "PERCENT", kind == "SE", span=_span(meta))


def _every(meta: Any, children: list[Any]) -> nodes.Quantity:
    [child] = children
    if isinstance(child, nodes.Quantity):
        return child
    return nodes.Quantity(1.0, BY_SPELLING.get(child, str(child)), span=Span(child.start_pos, child.end_pos))


def _cadence(meta: Any, children: list[Any]) -> nodes.Cadence:
    every = tuple(child for child in children if isinstance(child, nodes.Quantity))
    [after] = [node for _, node, _ in children[len(every) :]] or [None]
    return nodes.Cadence(every, after, span=_span(meta))


def _saving(meta: Any, children: list[Any]) -> nodes.Saving:
    ranking, *clauses = (child for child in children if not isinstance(child, str))
    given: dict[str, Any] = {}
    for word, node, span in clauses:
        if word in given:
            raise _Refused(f"'{word}' stands twice", span, "each clause (if, by, keep, after) is given at most once")
        given[word] = node
    keep, averages = given.get("keep", (None, False))
    return nodes.Saving(ranking, given.get("if"), given.get("by"), keep, given.get("after"), averages, span=_span(meta))


def _clause(word: str) -> Callable[[Any, list[Any]], tuple[str, Any, Span]]:
    return lambda meta, children: (word, children[0], _span(meta))


# One function per grammar rule: takes the position in the text and the children, returns a node.
_BUILDERS: dict[str, Callable[[Any, list[Any]], Any]] = {
    "bare_name": lambda meta, children: nodes.Name(str(children[0]), span=_span(meta)),
    "quoted_name": lambda meta, children: nodes.Name(str(children[0])[1:-1], span=_span(meta)),
    "everywhere": lambda meta, children: nodes.Everywhere(span=_span(meta)),
    "number": lambda meta, children: nodes.Number(_number(children[0]), span=_span(meta)),
    "signed": lambda meta, children: nodes.Number(_number(children[0]), span=_span(meta)),
    "amount": _amount,
    "quantity": _quantity,
    "measure": _measure,
    "call": _call,
    "times": _times,
    "total": _total,
    "compared": lambda meta, children: nodes.Comparison(children[0], str(children[1]), children[2], span=_span(meta)),
    "is_nan": lambda meta, children: nodes.IsNan(children[0], span=_span(meta)),
    "negated": lambda meta, children: nodes.Not(children[0], span=_span(meta)),
    "both": _joined(nodes.And),
    "either": _joined(nodes.Or),
    "objectives": lambda meta, children: tuple(children),
    "ranking": lambda meta, children: nodes.Ranking(tuple(children), span=_span(meta)),
    "if_clause": _clause("if"),
    "by_clause": _clause("by"),
    "keep_clause": lambda meta, children: ("keep", (children[0], len(children) > 1), _span(meta)),
    "after_clause": _clause("after"),
    "saving": _saving,
    "every": _every,
    "cadence": _cadence,
}
