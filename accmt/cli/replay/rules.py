"""Rules from a command's arguments and its file, and all mistakes in them."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any, TypeVar

from accmt.cli.arguments import CommandError, MetricArgument, UsageError
from accmt.cli.replay.source import Source
from accmt.config.errors import ConfigError, Problem, did_you_mean, raise_problems
from accmt.config.rules import RuleSection, read_rules, rule_problems
from accmt.rules import Facts, Length, Reported, RuleError, Rules, SavingRule, StopCondition, assign_patience, check
from accmt.rules.printable import escaped
from accmt.rules.replay import unanswerable
from accmt.rules.store import ONLY_DATASET, VALID_LOSS

_T = TypeVar("_T")

_HINTS = {
    r"greater_is_better|^    .*\w:(max|min)\b": "give the direction with --metric, such as --metric accuracy:max",
    r"name=\.\.\.": "rules have names in a file: give it with --config",
}


class Mistakes:
    """Collects mistakes, so that all are reported at once."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def of(self, action: Callable[[], _T]) -> _T | None:
        """Return the result of an action, or None if it found mistakes."""
        try:
            return action()
        except RuleError as error:
            self._texts += [str(problem) for problem in error.problems]
        except ConfigError as error:
            self._texts.append(str(error))
        return None

    def tell(self) -> None:
        """Raise one error for the mistakes collected so far.

        Raises:
            CommandError: With all mistakes, if there are any.
        """
        texts = list(dict.fromkeys(self._texts))
        if texts:
            raise CommandError("\n\n".join([*texts, *hints(texts)]))


def hints(texts: Sequence[str]) -> list[str]:
    """Return how to give on the command line what mistakes call by the names of Python's arguments."""
    found = [hint for pattern, hint in _HINTS.items() if re.search(pattern, "\n".join(texts), re.MULTILINE)]
    return [f"On the command line, {hint}" for hint in found]


def given_rules(options: argparse.Namespace, mistakes: Mistakes, *, whole: bool = False) -> RuleSection:
    """Return the rules of the given file and the arguments, and the datasets that these hold out; with `whole`, report
    the mistakes of the entire file."""
    section = None
    if options.config is not None:
        section = mistakes.of(lambda: _section(options.config, whole=whole))
    section = section or RuleSection()
    savings = (*section.savings, *parsed(SavingRule.parse, options.rules, mistakes))
    stops = (*section.stop_when, *parsed(StopCondition.parse, options.stop_when, mistakes))
    return replace(section, savings=savings, stop_when=stops, held_out=(*section.held_out, *options.held_out))


def held_apart(source: Source, held_out: Sequence[str]) -> Source:
    """Return a source without its values on held-out datasets, which no rule uses."""
    facts = source.facts.holding_out(held_out)
    if not facts.held_out:
        return source
    observations = tuple(
        replace(one, values={key: values for key, values in one.values.items() if key not in facts.held_out})
        for one in source.history.observations
    )
    return replace(source, facts=facts, history=replace(source.history, observations=observations))


def chosen_rules(given: Rules, patience: int | None, source: Source) -> Rules:
    """Return the given rules; if none of them saves, the training's own rules plus the given ones.

    Raises:
        CommandError: If there are none.
    """
    recorded = source.description.rules if source.description is not None else None
    if given.savings or (given.stop_when and recorded is None):
        rules = with_patience(given, patience)
    elif recorded is None:
        raise CommandError("the source does not have the rules of the training: give --rule")
    elif patience is None:
        rules = replace(recorded, stop_when=given.stop_when or recorded.stop_when)
    else:
        impatient = tuple(replace(rule, patience=None) for rule in recorded.savings)
        rules = with_patience(Rules(impatient, given.stop_when or recorded.stop_when), patience)
    return replace(rules, evaluate=None, checkpoint=None if recorded is None else recorded.checkpoint)


def check_against(rules: Rules, source: Source, where: str | None = None) -> None:
    """Check the rules against the source; `where` stands above the mistakes.

    Raises:
        CommandError: With everything the rules need that the source lacks, and all other mistakes.
    """
    if not any(not observation.initial for observation in source.history.observations):
        raise CommandError("there are no evaluations yet: there is nothing to decide")
    problems = unanswerable(rules, source.lacking)
    places = {(problem.text, problem.span) for problem in problems}
    try:
        check(rules, source.facts)
    except RuleError as error:
        problems += [problem for problem in error.problems if (problem.text, problem.span) not in places]
    if problems:
        texts = [*([] if where is None else [where]), *map(str, problems)]
        raise CommandError("\n\n".join([*texts, *hints(texts)]))


def parsed(parse: Callable[[str], _T], texts: Iterable[str], mistakes: Mistakes) -> tuple[_T, ...]:
    """Parse the texts; return the rules of those without mistakes."""
    found = [mistakes.of(partial(parse, text)) for text in texts]
    return tuple(item for item in found if item is not None)


def with_patience(rules: Rules, patience: int | None) -> Rules:
    """Return the rules, with this patience for rules that have none."""
    savings = assign_patience(rules.savings, patience)
    return Rules(savings, rules.stop_when, rules.evaluate, rules.checkpoint)


def given_facts(metrics: Sequence[MetricArgument], datasets: Sequence[str], length: Length) -> Facts:
    """Return the facts of a training with these metrics. By default the datasets are those of the metrics, or one.

    Raises:
        UsageError: If a metric names a dataset that does not exist, or has two directions.
    """
    named = dict.fromkeys(dataset for metric in metrics for dataset in metric.datasets)
    keys = tuple(dict.fromkeys(datasets)) or tuple(named) or (ONLY_DATASET,)
    reported: dict[str, Reported] = {}
    for metric in metrics:
        for dataset in metric.datasets:
            if dataset not in keys:
                known = ", ".join(keys)
                raise UsageError(
                    f"--metric {metric.name}: '{dataset}' is not a dataset{did_you_mean(dataset, keys)} "
                    f"The datasets are: {known}"
                )
        before = reported.get(metric.name)
        if before is not None and before.greater_is_better != metric.greater_is_better:
            raise UsageError(f"--metric {metric.name} is given with two directions")
        on = (*(before.datasets if before else ()), *(metric.datasets or keys))
        reported[metric.name] = Reported(tuple(key for key in keys if key in on), metric.greater_is_better)
    reported[VALID_LOSS] = Reported(keys, greater_is_better=False)
    return Facts(reported, keys, length)


def _section(path: str, *, whole: bool) -> RuleSection:
    from accmt.config.document import read_document, rules_of  # imports yaml, which most commands do not need

    document = read_document(path)
    name = os.fspath(path)
    if "rules" not in document:
        keys = [str(key) for key in document]
        near = next((key for key in keys if did_you_mean(key, ["rules"]) != "."), None)
        there = escaped(", ".join(keys)) or "nothing"
        hint = f"; is '{escaped(near)}' a typing error?" if near else f"; the file has: {there}"
        raise ConfigError([Problem("rules", f"the section is missing{hint}")], name)
    section, problems = rules_of(document)
    problems = [*(_hyperparameter_problems(document) if whole else []), *problems, *rule_problems(section)]
    raise_problems(problems, name)
    return read_rules(section, name)


def _hyperparameter_problems(document: Mapping[Any, Any]) -> list[Problem]:
    """Check the rest of a file. torch is imported only if it has hyperparameters."""
    rest = {key: value for key, value in document.items() if key != "rules"}
    if not rest:
        return []
    hps = rest.get("hps", rest)
    if isinstance(hps, Mapping):
        rest = {**rest, "hps": _without_unknown_classes(hps)} if "hps" in rest else _without_unknown_classes(hps)
    problems: list[Problem] = import_module("accmt.hyperparameters.config").hyperparameter_problems(rest)
    return problems


def _without_unknown_classes(hps: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return the hyperparameters without an optimizer or scheduler from a module that only the script imports."""
    left = dict(hps)
    for key, kwargs in (("optimizer", "optim_kwargs"), ("scheduler", "scheduler_kwargs")):
        choice = hps.get(key)
        name = choice.get("type") if isinstance(choice, Mapping) else choice
        if isinstance(name, str) and "." in name and not name.startswith("torch."):
            left.pop(key)
            left.pop(kwargs, None)
    return left
