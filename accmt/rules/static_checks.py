"""Checks of a rule that need no training: names, units, functions and their arguments, kinds of values, constants.

Called when text is given, so that a mistake is reported where it was made. All mistakes of a text are found at once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Literal

from accmt.rules import nodes
from accmt.rules.errors import RuleProblem, enumerated, nearest
from accmt.rules.evaluator import Scene, evaluate_expression
from accmt.rules.functions import FUNCTIONS, Function
from accmt.rules.nodes import (
    And,
    Call,
    Comparison,
    Counter,
    Expression,
    IsNan,
    Measure,
    Name,
    Node,
    Not,
    Number,
    Or,
    Product,
    Quantity,
    Span,
    Sum,
)
from accmt.rules.progress import Length, Progress
from accmt.rules.store import TRAIN_LOSS, MetricsStore
from accmt.rules.units import MEANT, PERCENT, SECONDS, SPELLINGS, SUGGESTIONS, THE_UNITS, WHOLE

ValueKind = Literal["number", "condition"]

_LONGEST_WINDOW = 1_000_000
WITHOUT_HISTORY = "with 'average', models are ranked by what is measured on validation data at one evaluation"
_UNITS_OF = {"elapsed": tuple(SECONDS), "step": ("step", PERCENT), "epoch": ("epoch", PERCENT)}
_NOTHING = Scene(MetricsStore(), Progress(), Length(), math.nan, {}, {})


class Form:
    """Collects the mistakes of one text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.problems: list[RuleProblem] = []

    def saving(self, saving: nodes.Saving) -> list[RuleProblem]:
        """Return the mistakes of a saving rule."""
        for objective in saving.ranking.objectives:
            self._objective(objective)
        if saving.condition is not None:
            self.condition(saving.condition)
        if saving.by is not None and saving.by.value <= 0:
            self._add("the improvement after 'by' must be positive", saving.by.span)
        if saving.keep is not None and not (saving.keep.value.is_integer() and saving.keep.value >= 1):
            self._add("'keep' takes a positive whole number", saving.keep.span, "keep 1 is the default: only the best")
        if saving.after is not None:
            self._quantity(saving.after)
        if saving.is_averaged and saving.keep is not None:
            self._average(saving, saving.keep)
        return self.problems

    def condition(self, condition: Expression) -> list[RuleProblem]:
        """Return the mistakes of a condition."""
        self._expression(condition, "condition", counters=True)
        return self.problems

    def cadence(self, cadence: nodes.Cadence) -> list[RuleProblem]:
        """Return the mistakes of a cadence."""
        for quantity in cadence.every:
            self._quantity(quantity)
        if cadence.after is not None:
            self._quantity(cadence.after)
        return self.problems

    def _add(self, message: str, span: Span, allowed: str | None = None, suggestion: str | None = None) -> None:
        self.problems.append(RuleProblem(message, self.text, span, allowed, suggestion))

    def _average(self, saving: nodes.Saving, keep: Number) -> None:
        if keep.value == 1:
            self._add("there is nothing to average in one model", keep.span, "as in: keep 5 average")
        for node in nodes.walk(saving.ranking):
            if isinstance(node, Counter | Call) and (isinstance(node, Counter) or _over(node) == "time"):
                name, span = (
                    (node.name, node.span) if isinstance(node, Counter) else (node.function, node.function_span)
                )
                self._add(f"an average of models has no '{name}'", span, WITHOUT_HISTORY)
            elif isinstance(node, Measure) and node.metric.text == TRAIN_LOSS:
                self._add(f"an average of models has no '{TRAIN_LOSS}'", node.span, WITHOUT_HISTORY)

    def _objective(self, objective: Expression) -> None:
        if isinstance(objective, Call) and _over(objective) == "objective":
            self._arity(objective, FUNCTIONS[objective.function])
            self._subject(objective, counters=True)
        else:
            self._expression(objective, "number", counters=False)

    def _expression(self, node: Expression | Quantity, wanted: ValueKind, counters: bool) -> None:  # noqa: C901  (one branch per kind)
        """Check a node where a number or a condition is wanted; `counters` says whether counters are allowed in it."""
        kind: ValueKind = "number"
        match node:
            case Measure():
                self._measure(node)
            case Counter():
                if not counters:
                    self._counter(node.name, node)
            case Quantity():
                self._add(f"'{node}' cannot stand here", node.span, "a number with a unit is compared with a counter")
            case Call():
                kind = self._call(node, counters)
            case Sum(terms=parts) | Product(factors=parts):
                for part in parts:
                    self._expression(part, "number", counters)
            case Comparison():
                kind = "condition"
                self._comparison(node, counters)
            case IsNan(score=score):
                kind = "condition"
                self._expression(score, "number", counters)
            case Not(operand=operand):
                kind = "condition"
                self._expression(operand, "condition", counters)
            case And(operands=parts) | Or(operands=parts):
                kind = "condition"
                for part in parts:
                    self._expression(part, "condition", counters)
        if kind != wanted:
            self._wrong_kind(node, wanted)

    def _wrong_kind(self, node: Node, wanted: ValueKind) -> None:
        if wanted == "condition":
            compared = node if any(measures(node)) else "accuracy"
            self._add("a condition belongs here, and this is a number", node.span, f"compare it: {compared} > 0.5")
        else:
            self._add("a number belongs here, and this is a condition", node.span, "a condition stands after 'if'")

    def _measure(self, measure: Measure) -> None:
        self._name(measure.metric, "metric")
        if self._is_bare(measure.metric) and measure.metric.text in nodes.COUNTERS:
            self._counter(measure.metric.text, measure.metric)
        if self._is_bare(measure.metric) and measure.metric.text.startswith(nodes.PREFIX):
            rest = measure.metric.text.removeprefix(nodes.PREFIX)
            self._add(
                f"'{nodes.PREFIX}' stands only once, in front of the whole rule",
                measure.metric.span,
                f'write {rest or "the metric"}, or "{measure.metric.text}" in quotes for a metric of this name',
            )
        for dataset in measure.datasets:
            if isinstance(dataset, Name):
                self._name(dataset, "dataset")

    def _counter(self, name: str, node: Node) -> None:
        self._add(
            f"'{name}' is a counter: it stands in conditions only, without a dataset",
            node.span,
            f'write "{name}" in quotes for a metric of this name',
        )

    def _name(self, name: Name, what: str) -> None:
        if not self._is_bare(name):
            if not name.text:
                self._add(f"the name of the {what} is empty", name.span)
        elif name.text in nodes.RESERVED:
            self._add(
                f"'{name.text}' is a word of the language",
                name.span,
                f"a {what} of this name is written in quotes: {nodes.quote(name.text)}",
            )
        elif not nodes.is_plain(name.text) and not re.fullmatch("[0-9]+", name.text):
            self._add(
                f"the name of the {what} starts with a digit",
                name.span,
                f"write it in quotes: {nodes.quote(name.text)}",
            )

    def _is_bare(self, name: Name) -> bool:
        return self.text[name.span.start] not in "\"'"

    def _call(self, call: Call, counters: bool) -> ValueKind:
        function = FUNCTIONS.get(call.function)
        if function is None:
            self._add(
                f"unknown function '{call.function}'",
                call.function_span,
                f"the functions are: {', '.join(FUNCTIONS)}",
                nearest(call.function, FUNCTIONS),
            )
            return "condition" if call.function == "stalled" else "number"
        if function.over == "objective":
            self._add(
                f"'{call.function}' stands around a whole objective only",
                call.function_span,
                "highest(...) and lowest(...) compare datasets, best(...) is the best value so far",
            )
        self._arity(call, function)
        self._subject(call, counters)
        return "condition" if function.boolean else "number"

    def _arity(self, call: Call, function: Function) -> None:
        given = len(call.arguments)
        if not function.fewest <= given <= function.most:
            numbers = f"{function.fewest}" + (f" or {function.most}" if function.most > function.fewest else "")
            plural = "s" if function.most > 1 else ""
            are = "is" if given == 1 else "are"
            message = f"'{call.function}' takes {numbers} argument{plural}, and {given} {are} given"
            self._add(message, call.span, f"as in: {function.usage}")
        for position, argument in enumerate(call.arguments[1 : function.most], start=1):
            self._parameter(call, position, argument)

    def _subject(self, call: Call, counters: bool) -> None:
        subject = call.arguments[0]
        if _over(call) == "datasets" and not isinstance(subject, Measure):
            self._add(f"'{call.function}' takes a metric", subject.span, f"as in: {FUNCTIONS[call.function].usage}")
            return
        if _over(call) == "datasets" and isinstance(subject, Measure) and subject.metric.text == TRAIN_LOSS:
            self._add(
                f"'{call.function}' runs over datasets, and '{TRAIN_LOSS}' has none",
                subject.span,
                f"write {TRAIN_LOSS} alone",
            )
        self._expression(subject, "number", counters)

    def _parameter(self, call: Call, position: int, argument: Node) -> None:
        """Check n of `avg` and `stalled`, a of `ema`, delta of `stalled`."""
        usage = f"as in: {FUNCTIONS[call.function].usage}"
        counted = isinstance(argument, Quantity) and argument.unit == "evaluation"
        counted = counted and position == 1 and call.function != "ema"
        if not isinstance(argument, Number | Quantity) or (isinstance(argument, Quantity) and not counted):
            self._add("a plain number belongs here", argument.span, usage)
            return
        value = argument.value
        if call.function == "ema":
            if not 0 < value <= 1:
                self._add("the weight of 'ema' is above 0 and at most 1", argument.span, usage)
        elif position == 1 and not (value.is_integer() and 1 <= value <= _LONGEST_WINDOW):
            allowed = f"a whole number from 1 to {_LONGEST_WINDOW:,}"
            self._add(f"'{call.function}' counts whole evaluations", argument.span, allowed)

    def _comparison(self, node: Comparison, counters: bool) -> None:
        self._expression(node.left, "number", counters)
        if not isinstance(node.right, Quantity):
            self._expression(node.right, "number", counters)
            return
        quantity = node.right
        if not self._quantity(quantity):
            return
        if not isinstance(node.left, Counter):
            self._add(
                f"'{quantity}' can be compared with a counter only",
                quantity.span,
                "the counters are: elapsed (time), epoch, step, evaluation",
            )
        elif quantity.unit not in _UNITS_OF.get(node.left.name, (node.left.name,)):
            units = _UNITS_OF.get(node.left.name, (node.left.name,))
            named = [unit if unit == PERCENT else f"{unit}s" for unit in units]
            message = f"'{node.left.name}' is not counted in {_plural(quantity.unit)}"
            self._add(message, quantity.span, f"allowed here: {enumerated(named, 'or')}")

    def _quantity(self, quantity: Quantity) -> bool:
        before = len(self.problems)
        if quantity.unit not in SPELLINGS and quantity.unit != PERCENT:
            self._add(
                f"unknown unit '{quantity.unit}'",
                Span(quantity.span.end - len(quantity.unit), quantity.span.end),
                THE_UNITS,
                MEANT.get(quantity.unit) or nearest(quantity.unit, SUGGESTIONS),
            )
        elif quantity.value <= 0:
            self._add("the number must be positive", quantity.span)
        elif quantity.unit in WHOLE and not quantity.value.is_integer():
            self._add(f"{_plural(quantity.unit)} are whole numbers", quantity.span)
        return len(self.problems) == before


def _over(call: Call) -> str | None:
    function = FUNCTIONS.get(call.function)
    return None if function is None else function.over


def _plural(unit: str) -> str:
    return "per cent" if unit == PERCENT else f"{unit}s"


def measures(node: Node) -> Iterator[Measure]:
    """Yield all measures in a node."""
    return (child for child in nodes.walk(node) if isinstance(child, Measure))


def calls_over_time(node: Node) -> Iterator[Call]:
    """Yield all calls in a checked node that remember earlier evaluations, inner ones before outer ones."""
    return (child for child in nodes.walk(node) if isinstance(child, Call) and _over(child) == "time")


def constant_value(node: Expression) -> float | None:
    """Return the value of an expression of numbers only, None for any other."""
    if isinstance(node, Number | Sum | Product) and _is_constant(node):
        return float(evaluate_expression(node, _NOTHING))
    return None


def truth(condition: Expression) -> bool | None:
    """Return True or False if a condition always has that value, None if it can be both."""
    match condition:
        case Not(operand=operand):
            inner = truth(operand)
            return None if inner is None else not inner
        case And(operands=operands) | Or(operands=operands):
            decisive = isinstance(condition, Or)
            found = {truth(operand) for operand in operands}
            if decisive in found:
                return decisive
            return None if None in found else not decisive
        case Comparison() | IsNan() if _is_constant(condition):
            return bool(evaluate_expression(condition, _NOTHING))
    return None


def _is_constant(node: Expression) -> bool:
    return not any(isinstance(child, Measure | Counter | Call | Quantity) for child in nodes.walk(node))
