"""Rules of a training as declared: values that the checker checks and the engine runs."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from accmt.rules.codec import SPARSE, Jsonable, to_plain
from accmt.rules.errors import RuleError, RuleProblem
from accmt.rules.nodes import Cadence, Expression, Saving, format_number
from accmt.rules.parser import parse_cadence, parse_condition, parse_saving
from accmt.rules.progress import Length
from accmt.rules.reserved_names import is_taken
from accmt.rules.static_checks import Form

_NAME = re.compile(r"(?!\.)[\w.-]{1,100}")
_Parsed = TypeVar("_Parsed")


@dataclass(frozen=True, slots=True)
class SavingRule:
    """A saving rule as registered.

    Attributes:
        saving: The parsed text.
        text: The text as the user wrote it, for messages.
        given_name: The name given by the user, also of its folder; None for the canonical text of its ranking.
        patience: Evaluations without improvement after which it requests a stop; None for never.
        saving_below: Limit that every objective must be below to save.
        saving_above: Limit that every objective must be above to save.
    """

    saving: Saving
    text: str
    given_name: str | None = None
    patience: int | None = None
    saving_below: float | None = None
    saving_above: float | None = None

    @classmethod
    def parse(
        cls,
        text: str,
        *,
        name: str | None = None,
        patience: int | None = None,
        saving_below: float | None = None,
        saving_above: float | None = None,
    ) -> SavingRule:
        """Parse the text and check all that needs no training.

        Raises:
            RuleError: With every mistake in the text and the other arguments.
        """
        try:
            saving = _checked(text, parse_saving, Form.saving)
            problems: list[RuleProblem] = []
        except RuleError as error:
            saving, problems = None, list(error.problems)
        if name is not None and not _is_name(name):
            problems.append(_no_name(name))
        if patience is not None and not is_patience(patience):
            problems.append(no_patience(patience, text))
        limits = {"saving_below": saving_below, "saving_above": saving_above}
        wrong = [f"the {key} of '{text}' is {value!r}" for key, value in limits.items() if not _is_limit(value)]
        problems += [RuleProblem(message, allowed="a number belongs there") for message in wrong]
        if saving is None or problems:
            raise RuleError(problems)
        below, above = (None if value is None else float(value) for value in limits.values())
        if below is not None and above is not None and above >= below:
            raise RuleError([_no_value_between(above, below, text)])
        return cls(saving, text, name, patience, below, above)

    @property
    def name(self) -> str:
        return self.given_name or self.saving.name

    @property
    def folder(self) -> str:
        """Name of its folder in `model_path`. No dataset or metric name can escape from there."""
        return self.given_name or _encoded(self.saving.name)

    @property
    def keep(self) -> int:
        """Number of models it keeps."""
        return int(self.saving.keep.value) if self.saving.keep is not None else 1

    @property
    def averages(self) -> bool:
        """True if the weights of the kept models are averaged at the end."""
        return self.saving.is_averaged

    @property
    def identity(self) -> dict[str, Any]:
        """Identity of the rule after a resume; its patience is not part of it, nor what is done at the end."""
        rule = str(replace(self.saving, is_averaged=False))
        return {"rule": rule, "below": to_plain(self.saving_below), "above": to_plain(self.saving_above)}

    def with_patience(self, patience: int | None) -> SavingRule:
        """Return the rule with this patience, unless it was registered with its own."""
        return self if self.patience is not None else replace(self, patience=patience)


@dataclass(frozen=True, slots=True)
class StopCondition:
    """A condition under which the training stops, and the text that the user wrote."""

    condition: Expression
    text: str

    @classmethod
    def parse(cls, text: str) -> StopCondition:
        """Parse and check a condition. Raises RuleError with every mistake in the text."""
        return cls(_checked(text, parse_condition, Form.condition), text)


@dataclass(frozen=True, slots=True)
class CadenceRule:
    """A cadence and the text that the user wrote."""

    cadence: Cadence
    text: str

    @classmethod
    def parse(cls, text: str, *, evaluates: bool = False, logs: bool = False) -> CadenceRule:
        """Parse and check a cadence. Raises RuleError with every mistake; a cadence that `evaluates` or `logs` cannot
        count evaluations."""
        rule = cls(_checked(text, parse_cadence, Form.cadence), text)
        if (evaluates or logs) and (problems := rule.circular("evaluations" if evaluates else "logs")):
            raise RuleError(problems)
        return rule

    def circular(self, counted: str = "evaluations") -> list[RuleProblem]:
        """Return a problem for each quantity in evaluations, which a cadence of evaluations or logs cannot count."""
        after = self.cadence.after
        return [
            RuleProblem(
                f"{counted} cannot be counted in evaluations",
                self.text,
                quantity.span,
                "use steps, epochs, samples, time or %",
            )
            for quantity in (*self.cadence.every, *((after,) if after is not None else ()))
            if quantity.unit == "evaluation"
        ]


@dataclass(frozen=True, slots=True)
class Rules:
    """All rules of a training. Without `writes` its saving rules decide as usual, but no model is written.

    `log` is how often the training loss is logged, if that is given as a text.
    """

    savings: tuple[SavingRule, ...]
    stop_when: tuple[StopCondition, ...] = ()
    evaluate: CadenceRule | None = None
    checkpoint: CadenceRule | None = None
    writes: bool = True
    log: CadenceRule | None = None


@dataclass(frozen=True, slots=True)
class Reported(Jsonable):
    """A metric that a training reports.

    Attributes:
        datasets: Its datasets.
        greater_is_better: Its direction; None if it has none.
        no_replicates: Why it has no replicates, which `by 2 se` needs; empty if it has.
    """

    datasets: tuple[str, ...]
    greater_is_better: bool | None
    no_replicates: str = field(default="", metadata=SPARSE)


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts about a training that rules are checked against.

    Attributes:
        metrics: Name -> metric, including `valid_loss`; `train_loss` always exists and is not listed.
        datasets: The keys of the validation datasets; empty without validation data.
        length: The length of the training.
        training: Training metric -> its direction (None if it has none); like `train_loss` they have no dataset.
        held_out: The keys of datasets that are evaluated after the training only; no rule may name them. They are not
            among `datasets`, and a metric that is measured on these alone has no datasets.
        replicates: The number of replicates of metrics; those of another number do not pair with them.
    """

    metrics: Mapping[str, Reported] = field(default_factory=dict)
    datasets: tuple[str, ...] = ()
    length: Length = field(default_factory=Length)
    training: Mapping[str, bool | None] = field(default_factory=dict)
    held_out: tuple[str, ...] = ()
    replicates: int | None = None

    @property
    def greater_is_better(self) -> dict[str, bool | None]:
        """Metric -> direction."""
        return {**{name: metric.greater_is_better for name, metric in self.metrics.items()}, **self.training}

    def holding_out(self, held_out: Iterable[str]) -> Facts:
        """Return the facts with these datasets held out."""
        apart = tuple(dict.fromkeys([*self.held_out, *held_out]))
        metrics = {
            name: Reported(tuple(key for key in metric.datasets if key not in apart), metric.greater_is_better)
            for name, metric in self.metrics.items()
        }
        return replace(
            self, metrics=metrics, datasets=tuple(key for key in self.datasets if key not in apart), held_out=apart
        )


def is_patience(value: object) -> bool:
    """Return whether a value is a valid patience: an integer, at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def no_patience(value: object, rule: str | None = None) -> RuleProblem:
    whose = "" if rule is None else f" of '{rule}'"
    return RuleProblem(f"the patience{whose} is {value!r}", allowed="a whole number from 1 belongs there")


def _checked(
    text: str, parse: Callable[[str], _Parsed], check: Callable[[Form, _Parsed], list[RuleProblem]]
) -> _Parsed:
    node = parse(text)
    if problems := check(Form(text), node):
        raise RuleError(problems)
    return node


def _is_name(name: object) -> bool:
    return isinstance(name, str) and _NAME.fullmatch(name) is not None and not is_taken(name)


def _no_name(name: object) -> RuleProblem:
    allowed = "letters, digits, '_', '-' and '.', not starting with '.', at most 100 characters"
    if isinstance(name, str) and is_taken(name):
        allowed = "the files of a training have this name: choose another one"
    return RuleProblem(f"{name!r} is not a name for a rule", allowed=allowed)


def _is_limit(value: object) -> bool:
    if value is None:
        return True
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return not math.isnan(value)
    except OverflowError:  # an integer too large for a float
        return False


def _no_value_between(above: float, below: float, text: str) -> RuleProblem:
    limits = f"above {format_number(above)} and below {format_number(below)}"
    return RuleProblem(
        f"'{text}' would save {limits}: no value is", allowed="saving_above must be less than saving_below"
    )


def _encoded(name: str) -> str:
    plain = name.replace("/", "__")
    return "".join(
        character if character.isalnum() or character in "_-.@+()," else _percent(character) for character in plain
    )


def _percent(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode())
