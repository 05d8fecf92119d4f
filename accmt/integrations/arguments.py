"""What is given to `Rules` of an integration: read, and checked as far as it is known."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from accmt.config.errors import ConfigError, Problem, must_be, raise_problems, unknown_key
from accmt.config.kinds import is_whole
from accmt.config.rules import REPLICATES, REPLICATES_DEFAULT, RuleSection, read_rules
from accmt.files.paths import resolved
from accmt.rules import CadenceRule, Facts, Length, Reported, RuleError, Rules, SavingRule, StopCondition
from accmt.rules.checker import assign_patience, check
from accmt.rules.errors import RuleProblem, listed
from accmt.rules.nodes import Name, Node
from accmt.rules.static_checks import measures
from accmt.rules.store import TRAIN_LOSS, VALID_LOSS

# The length of a training that is not known yet: so long that no rule starts too late.
_ENDLESS = Length(total_steps=10**18, steps_per_epoch=10**6)
_DIRECTIONS = {"max": True, "min": False}
_METRIC = '"max" or "min", or such a direction and a list of datasets: ("max", ["dev"])'
_AVERAGE = "only accmt.Trainer averages the kept models at the end of a training: leave 'average' out"
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Declaration:
    """What is given before a training, whatever trains.

    Attributes:
        model_path: The folder of the training.
        rules: The rules; their saving rules have no patience yet, and there may be none.
        patience: The patience of all, or by the name of a rule.
        metrics: Metric -> whether greater is better, and the datasets it is reported on (None for all).
        datasets: The validation datasets that rules may use, None if not known yet.
        held_out: Datasets that no rule may use.
        replicates: The number of resamples for standard errors.
    """

    model_path: Path
    rules: Rules
    patience: int | dict[str, int] | None
    metrics: Mapping[str, tuple[bool, tuple[str, ...] | None]]
    datasets: tuple[str, ...] | None
    held_out: tuple[str, ...]
    replicates: int

    def on(self, datasets: Iterable[Any] | None, held_out: Iterable[Any] | None) -> Declaration:
        """Return the declaration with datasets that are known now; None leaves what was given before.

        Raises:
            ConfigError: They are not lists of names.
        """
        problems: list[Problem] = []
        kept = self.held_out if held_out is None else _names("held_out", held_out, problems)
        named = self.datasets if datasets is None else _names("datasets", datasets, problems)
        raise_problems(problems, "Rules")
        return replace(self, datasets=None if named is None else _without(named, kept), held_out=kept)

    def checked(self, length: Length | None) -> tuple[Rules, Facts, list[RuleProblem]]:
        """Check all rules, and return them with the facts that they were checked against, and the warnings.

        Args:
            length: The length of the training; None as long as it may become known later.

        Raises:
            RuleError: With every problem.
        """
        facts = self._facts(_ENDLESS if length is None else length)
        default = SavingRule.parse("best_valid_loss" if facts.datasets else "best_train_loss")
        rules, problems = self.rules, list(self._unknown_datasets(facts))
        savings = rules.savings or (default,)
        try:
            savings = assign_patience(savings, self.patience, self.held_out)
        except RuleError as error:
            problems += error.problems
        rules = replace(rules, savings=savings)
        warnings: list[RuleProblem] = []
        try:
            warnings = check(rules, facts)
        except RuleError as error:
            problems += error.problems
        if problems:
            raise RuleError(problems)
        return rules, facts, warnings

    def _facts(self, length: Length) -> Facts:
        keys = self.datasets
        if keys is None:  # not known yet: assume the datasets that rules name
            named = (name for _, node in _texts(self.rules) for name in _named(node))
            keys = tuple(dict.fromkeys(name for name in named if name not in self.held_out)) or ("0",)
        reported = {
            name: Reported(keys if on is None else tuple(key for key in keys if key in on), greater)
            for name, (greater, on) in self.metrics.items()
        }
        if keys:
            reported.setdefault(VALID_LOSS, Reported(keys, greater_is_better=False))
        known = reported if keys else {}
        return Facts(known, keys, length, held_out=self.held_out, replicates=self.replicates)

    def _unknown_datasets(self, facts: Facts) -> Iterable[RuleProblem]:
        """Yield a problem for each dataset of a metric that does not exist."""
        for name, (_, on) in self.metrics.items() if self.datasets is not None else ():
            if unknown := [key for key in on or () if key not in facts.datasets]:
                known = listed(facts.datasets) or "none"
                yield RuleProblem(
                    f"the metric '{name}' is declared on '{unknown[0]}'", allowed=f"the datasets are: {known}"
                )


def read_declaration(given: Mapping[str, Any]) -> Declaration:
    """Read the arguments of `Rules`.

    Raises:
        ConfigError, RuleError: With every mistake.
    """
    reader = _Reader(given)
    declaration = reader.declaration()
    try:
        declaration.checked(None)
    except RuleError as error:
        reader.rule_problems += error.problems
    reader.finish()
    return declaration


class _Reader:
    """Reads arguments and collects their problems."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._given = given
        self._problems: list[Problem] = []
        self.rule_problems: list[RuleProblem] = []

    def declaration(self) -> Declaration:
        given, section = self._given, self._section()
        stops = [self._parsed(StopCondition.parse, text, "stop_when") for text in _listed(given["stop_when"])]
        savings = [self._saving(text) for text in _listed(given["save"])]
        evaluate = self._cadence("evaluate_every", partial(CadenceRule.parse, evaluates=True)) or section.evaluate
        rules = Rules(
            tuple(rule for rule in savings if rule is not None) or section.savings,
            tuple(stop for stop in stops if stop is not None) or section.stop_when,
            evaluate,
            self._cadence("checkpoint_every", CadenceRule.parse) or section.checkpoint,
        )
        averaged = [rule.text for rule in rules.savings if rule.averages]
        self._problems += [Problem("save", f"'{text}': {_AVERAGE}") for text in averaged]
        datasets, held_out = given["datasets"], given["held_out"]
        kept = section.held_out if held_out is None else _names("held_out", held_out, self._problems)
        named = None if datasets is None else _without(_names("datasets", datasets, self._problems), kept)
        return Declaration(
            self._model_path(), rules, self._patience(), self._metrics(), named, kept, self._replicates(section)
        )

    def finish(self) -> None:
        """Raise the problems: of rules alone as a RuleError, else all of them as a ConfigError."""
        if self.rule_problems and not self._problems:
            raise RuleError(self.rule_problems)
        of_rules = [Problem("", str(problem)) for problem in self.rule_problems]
        raise_problems([*self._problems, *of_rules], "Rules(...)")

    def _wrong(self, name: str, text: str) -> None:
        self._problems.append(Problem(name, text))

    def _section(self) -> RuleSection:
        path = self._given["config"]
        if path is None:
            return RuleSection()
        if not isinstance(path, str | os.PathLike):
            self._wrong("config", must_be("the path of a YAML file", path))
            return RuleSection()
        from accmt.config.document import read_document, rules_of  # imports yaml, which texts do not need

        try:
            document = read_document(path)
            section, problems = rules_of(document)
            problems += [Problem(str(key), unknown_key(key, ["rules"])) for key in document if key != "rules"]
            raise_problems(problems, os.fspath(path))
            return read_rules(section)
        except ConfigError as error:
            self._problems += [
                replace(problem, path=f"{path}: {problem.path}".strip(": ")) for problem in error.problems
            ]
            return RuleSection()

    def _saving(self, given: Any) -> SavingRule | None:
        if isinstance(given, SavingRule):
            return given
        return self._parsed(SavingRule.parse, given, "save", "a string or a SavingRule")

    def _cadence(self, name: str, parse: Callable[[str], CadenceRule]) -> CadenceRule | None:
        return None if self._given[name] is None else self._parsed(parse, self._given[name], name)

    def _parsed(self, parse: Callable[[str], _T], text: Any, name: str, wanted: str = "a string") -> _T | None:
        if not isinstance(text, str):
            self._wrong(name, must_be(wanted, text))
            return None
        try:
            return parse(text)
        except RuleError as error:
            self.rule_problems += error.problems
            return None

    def _patience(self) -> int | dict[str, int] | None:
        given = self._given["patience"]
        return dict(given) if isinstance(given, Mapping) else given

    def _replicates(self, section: RuleSection) -> int:
        given = self._given["replicates"]
        given = section.replicates or REPLICATES_DEFAULT if given is None else given
        self._problems += REPLICATES.problems("replicates", given)
        return int(given) if is_whole(given) else 0

    def _model_path(self) -> Path:
        given = self._given["model_path"]
        if not isinstance(given, str | Path) or not str(given):
            self._wrong("model_path", must_be("a path", given))
            return Path("model")
        try:
            path = resolved(given)
        except ValueError as error:
            self._wrong("model_path", str(error))
            return Path("model")
        if path.exists() and not path.is_dir():
            self._wrong("model_path", f"'{given}' is a file: give a folder")
        return path

    def _metrics(self) -> dict[str, tuple[bool, tuple[str, ...] | None]]:
        given = self._given["metrics"]
        if not isinstance(given, Mapping | None):
            self._wrong("metrics", must_be('a dictionary such as {"accuracy": "max", "ppl": "min"}', given))
            return {}
        return {str(name): self._metric(name, value) for name, value in (given or {}).items()}

    def _metric(self, name: Any, value: Any) -> tuple[bool, tuple[str, ...] | None]:
        place = f"metrics[{name!r}]"
        direction, on = value if isinstance(value, tuple | list) and len(value) == 2 else (value, None)
        if not isinstance(name, str) or not name.strip():
            self._wrong(place, "the name of a metric must be a string")
        if not isinstance(direction, str) or direction not in _DIRECTIONS:
            self._wrong(place, must_be(_METRIC, value))
            return True, None
        if name == TRAIN_LOSS:
            self._wrong(place, "the name is reserved for the loss given to step(train_loss=), which rules know anyway")
        if name == VALID_LOSS and direction == "max":
            self._wrong(place, 'must be "min": a loss is better when it is lower')
        return _DIRECTIONS[direction], None if on is None else _names(place, on, self._problems)


def _names(place: str, given: Any, problems: list[Problem]) -> tuple[str, ...]:
    """Return the names of datasets, as text."""
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        problems.append(Problem(place, must_be('a list of names such as ["dev"]', given)))
        return ()
    names = tuple(given)
    for name in names:
        if isinstance(name, bool) or not isinstance(name, str | int) or not str(name).strip():
            problems.append(Problem(place, must_be("a list of names", name)))
    keys = tuple(str(name) for name in names)
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        problems.append(Problem(place, f"'{twice}' is named twice"))
    return keys


def _without(names: tuple[str, ...], held_out: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name not in held_out)


def _listed(given: Any) -> list[Any]:
    """Return the items of an argument that may be one, several, or None."""
    return list(given) if isinstance(given, list | tuple) else [] if given is None else [given]


def _texts(rules: Rules) -> list[tuple[str, Node]]:
    texts: list[tuple[str, Node]] = [(rule.text, rule.saving) for rule in rules.savings]
    return texts + [(stop.text, stop.condition) for stop in rules.stop_when]


def _named(node: Node) -> Iterable[str]:
    """Yield the datasets that a rule names."""
    return (dataset.text for measure in measures(node) for dataset in measure.datasets if isinstance(dataset, Name))
