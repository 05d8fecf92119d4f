"""Checks rules against what a training reports: all problems at once, before the first step."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from accmt.rules.cadence import never_due, never_passes
from accmt.rules.direction import DIRECTED, Disagree, direction_of
from accmt.rules.errors import RuleError, RuleProblem, listed, nearest, numbered
from accmt.rules.functions import FUNCTIONS
from accmt.rules.nodes import (
    COUNTERS,
    Amount,
    Call,
    Comparison,
    Counter,
    Everywhere,
    Expression,
    Measure,
    Name,
    Node,
    Quantity,
    Ranking,
    Saving,
    Span,
    is_plain,
    quote,
    walk,
)
from accmt.rules.parser import parse_saving
from accmt.rules.reserved_names import as_on_disk
from accmt.rules.rule import CadenceRule, Facts, Rules, SavingRule, is_patience, no_patience
from accmt.rules.static_checks import measures, truth
from accmt.rules.store import ONLY_DATASET, TRAIN_LOSS, VALID_LOSS, dataset_name
from accmt.rules.units import BY_SPELLING, PERCENT, SECONDS

MOST_RULES = 1_000
LONGEST_FOLDER = 120
LONGEST_FOLDER_BYTES = 240  # file systems allow 255 bytes per name, and a folder has a longer name while it is written


@dataclass(slots=True)
class Findings:
    """Result of a check: `problems` prevent the training, `warnings` do not."""

    problems: list[RuleProblem] = field(default_factory=list)
    warnings: list[RuleProblem] = field(default_factory=list)


def check(rules: Rules, facts: Facts) -> list[RuleProblem]:
    """Check all rules of a training against its facts and return the warnings.

    Raises:
        RuleError: With all problems of all rules.
    """
    findings = Findings()
    number = len(rules.savings) + len(rules.stop_when)
    if number > MOST_RULES:
        raise RuleError([RuleProblem(f"a training has at most {MOST_RULES:,} rules, this one has {number:,}")])
    findings.problems += clashes(rules.savings)
    for rule in rules.savings:
        _Check(rule.text, facts, findings).saving(rule.saving)
    for stop in rules.stop_when:
        _Check(stop.text, facts, findings).condition(stop.condition)
    for cadence, evaluates in ((rules.evaluate, True), (rules.checkpoint, False), (rules.log, False)):
        if cadence is not None:
            _Check(cadence.text, facts, findings).cadence(cadence, evaluates=evaluates)
    if findings.problems:
        raise RuleError(findings.problems)
    return findings.warnings


def assign_patience(savings: tuple[SavingRule, ...], patience: int | dict[str, int] | None) -> tuple[SavingRule, ...]:
    """Give every rule its patience: the same to all, or by name. A patience given at registration takes precedence.

    Raises:
        RuleError: With every key that is not a rule or names the same rule as another key, and every invalid value.
    """
    if not isinstance(patience, dict):
        if patience is not None and not is_patience(patience):
            raise RuleError([no_patience(patience)])
        return tuple(rule.with_patience(patience) for rule in savings)
    names = {rule.name for rule in savings}
    by_name: dict[str, int] = {}
    problems: list[RuleProblem] = []
    for key, value in patience.items():
        name = key if key in names else canonical_name(key)
        if name not in names:
            problems.append(_no_rule(key, names))
        elif name in by_name:
            problems.append(RuleProblem(f"patience is given twice for '{name}'", allowed=f"once as '{key}'"))
        elif not is_patience(value):
            problems.append(no_patience(value, key))
        by_name[name] = value
    if problems:
        raise RuleError(problems)
    return tuple(rule.with_patience(by_name.get(rule.name)) for rule in savings)


def canonical_name(key: str) -> str:
    """Return the canonical name of a rule (`best_accuracy` for `accuracy`); the text itself if it is not a rule."""
    try:
        return parse_saving(key).name
    except (RuleError, TypeError):
        return key


def _no_rule(key: object, names: set[str]) -> RuleProblem:
    ordered = sorted(names)
    near = nearest(key, ordered) if isinstance(key, str) else None
    allowed = f"the rules of this training: {listed(ordered)}"
    return RuleProblem(f"patience is given for {key!r}, which is no rule", allowed=allowed, suggestion=near)


def clashes(savings: tuple[SavingRule, ...]) -> Iterator[RuleProblem]:
    """Yield a problem for rules with the same name or folder, and for folder names that are too long."""
    names: dict[str, SavingRule] = {}
    folders: dict[str, SavingRule] = {}
    for rule in savings:
        folder = as_on_disk(rule.folder)
        if rule.name in names:
            yield RuleProblem(
                f"the rule '{rule.name}' is registered twice", allowed="give one of them a name: name=..."
            )
        elif folder in folders:
            other = folders[folder].name
            yield RuleProblem(
                f"the rules '{other}' and '{rule.name}' would save into one folder, '{rule.folder}'",
                allowed="give one of them a name: name=...",
            )
        if len(rule.folder) > LONGEST_FOLDER or len(rule.folder.encode()) > LONGEST_FOLDER_BYTES:
            size = f"{len(rule.folder)} characters, {len(rule.folder.encode())} bytes"
            yield RuleProblem(
                f"the folder of '{rule.name}' would have a name of {size}",
                allowed=f"at most {LONGEST_FOLDER} characters, {LONGEST_FOLDER_BYTES} bytes: "
                "give the rule a name: name=...",
            )
        names[rule.name] = folders[folder] = rule


def meetings(savings: Iterable[SavingRule], names: Collection[str]) -> Iterator[RuleProblem]:
    """Yield a problem for each rule whose folder name is already in `names`, such as a tracker's folder."""
    taken = {as_on_disk(name) for name in names}
    for rule in savings:
        if as_on_disk(rule.folder) in taken:
            yield RuleProblem(
                f"the rule '{rule.name}' would save into '{rule.folder}', which a tracker of this training writes to",
                allowed="give the rule a name of its own: name=..., or the tracker another logging_dir",
            )


class _Check:
    """Checks one text."""

    def __init__(self, text: str, facts: Facts, findings: Findings) -> None:
        self._text, self._facts, self._findings = text, facts, findings

    def saving(self, saving: Saving) -> None:
        for objective in saving.ranking.objectives:
            if self._measured(objective):
                self._has_direction(objective)
        if saving.by is not None and saving.by.standard_errors:
            self._has_replicates(saving.ranking, saving.by)
        if saving.condition is not None:
            self.condition(saving.condition)
        after = saving.after
        if after is not None and self._length_is_known(after) and never_passes(after, self._facts.length):
            self._warn("this rule never saves", after, self._how_long())

    def condition(self, condition: Expression) -> None:
        self._measured(condition)
        for node in walk(condition):
            if isinstance(node, Comparison) and isinstance(node.right, Quantity) and node.right.unit == PERCENT:
                by_epochs = isinstance(node.left, Counter) and node.left.name == "epoch"
                if self._length_is_known(node.right) and by_epochs:
                    self._epochs_are_known(node.right)
        always = truth(condition)
        if always is not None:
            self._warn("this condition never changes", condition, f"it is always {'true' if always else 'false'}")

    def cadence(self, rule: CadenceRule, *, evaluates: bool) -> None:
        after = rule.cadence.after
        quantities = (*rule.cadence.every, after) if after is not None else rule.cadence.every
        known = [self._length_is_known(quantity) for quantity in quantities]
        if evaluates:
            self._findings.problems += rule.circular()
        for quantity in quantities:
            if quantity.unit == "evaluation" and not evaluates and not self._facts.datasets:
                self._problem("there are no evaluations to count", quantity, "this training has no validation data")
        if all(known) and never_due(rule.cadence, self._facts.length):
            self._warn("this never comes due", rule.cadence, self._how_long())

    def _problem(self, message: str, node: Node, allowed: str | None = None, suggestion: str | None = None) -> None:
        self._findings.problems.append(RuleProblem(message, self._text, node.span, allowed, suggestion))

    def _warn(self, message: str, node: Node, why: str) -> None:
        self._findings.warnings.append(RuleProblem(message, self._text, node.span, why))

    def _how_long(self) -> str:
        total, per_epoch = self._facts.length.total_steps or 0, self._facts.length.steps_per_epoch
        epochs = f" in {numbered(-(-total // per_epoch), 'epoch', ',')}" if per_epoch else ""
        return f"the training has {numbered(total, 'step', ',')}{epochs}"

    def _length_is_known(self, quantity: Quantity) -> bool:
        length = self._facts.length
        if quantity.unit == PERCENT and length.total_steps is None:
            self._problem(
                "per cent of what? The length of this training is not known",
                quantity,
                "set max_steps, or use another unit",
            )
            return False
        return quantity.unit != "epoch" or quantity.value.is_integer() or self._epochs_are_known(quantity)

    def _epochs_are_known(self, quantity: Quantity) -> bool:
        if self._facts.length.steps_per_epoch is None:
            message = "a part of an epoch needs the number of its steps, which is not known here"
            self._problem(message, quantity, "use steps")
        return self._facts.length.steps_per_epoch is not None

    def _measured(self, node: Expression) -> bool:
        """Check all measures of an expression, and the functions that need a direction."""
        before = len(self._findings.problems)
        for measure in measures(node):
            self._measure(measure)
        calls = [call for call in walk(node) if isinstance(call, Call)]
        for call in calls:
            self._has_datasets(call)
        if len(self._findings.problems) == before:
            for call in calls:
                if call.function in DIRECTED:
                    self._has_direction(call)
        return len(self._findings.problems) == before

    def _has_datasets(self, call: Call) -> None:
        """Check that a function over datasets is not applied to a training metric."""
        subject = call.arguments[0]
        if isinstance(subject, Measure) and subject.metric.text in self._facts.training:
            name = subject.metric.text
            if FUNCTIONS[call.function].over == "datasets" and not subject.datasets:
                message = f"'{call.function}' runs over datasets, and '{name}' has none"
                self._problem(message, subject, f"write {quoted(name)} alone")

    def _measure(self, measure: Measure) -> None:
        metric, of_training = measure.metric.text, [TRAIN_LOSS, *self._facts.training]
        if metric in of_training:
            if measure.datasets:
                self._problem(f"'{metric}' has no dataset", measure, f"write {quoted(metric)} alone")
            return
        if not self._facts.datasets:
            are = "is" if len(of_training) == 1 else "are"
            allowed = f"this training has no validation data: only {listed(of_training)} {are} reported"
            near = _meant(metric, of_training)
            self._problem(f"'{metric}' is measured on validation data", measure.metric, allowed, near)
            return
        if metric not in self._facts.metrics:
            if (whole := _in_one_name(measure, self._facts)) is not None:
                self._problem(f"unknown metric '{metric}'", measure, self._reports(), whole)
                return
            near = _meant(metric, [*self._facts.metrics, *of_training])
            self._problem(f"unknown metric '{metric}'", measure.metric, self._reports(), near)
        self._datasets(measure)
        if metric not in self._facts.metrics:
            return
        reported = self._facts.metrics[metric].datasets
        for dataset in measure.datasets:
            if isinstance(dataset, Name) and dataset.text in self._facts.datasets and dataset.text not in reported:
                self._problem(
                    f"'{metric}' is not reported on '{dataset.text}'",
                    dataset,
                    f"{metric} is reported on: {listed(reported)}",
                )

    def _datasets(self, measure: Measure) -> None:
        seen: set[str] = set()
        for dataset in measure.datasets:
            if isinstance(dataset, Everywhere):
                if len(measure.datasets) > 1:
                    self._problem("'*' already stands for all datasets", dataset, "name datasets, or write @* alone")
                continue
            if dataset.text in seen:
                self._problem(f"the dataset '{dataset.text}' is named twice", dataset)
            seen.add(dataset.text)
            known = self._facts.datasets
            if dataset.text not in known:
                allowed = f"the datasets are: {listed(known)}"
                if known == (ONLY_DATASET,) and dataset.text == dataset_name(ONLY_DATASET, known):
                    name = quoted(measure.metric.text)
                    allowed = f"the only dataset is called 0 in rules: write {name}@0, or {name} alone"
                self._problem(f"unknown dataset '{dataset.text}'", dataset, allowed, _near(dataset.text, known))

    def _has_replicates(self, ranking: Ranking, by: Amount) -> None:
        """Check that every metric of a ranking has a standard error."""
        plainly = "write an amount, such as by 0.01 or by 1%"
        if not any(measures(ranking)):
            self._problem("nothing here has a standard error", by, f"a counter is exact: {plainly}")
        for measure in measures(ranking):
            metric, reported = measure.metric.text, self._facts.metrics.get(measure.metric.text)
            of_training = metric == TRAIN_LOSS or metric in self._facts.training
            why = "it is not computed from samples of a dataset" if of_training else ""
            why = why or (reported.no_replicates if reported is not None else "")
            if why:
                self._problem(f"'{metric}' has no standard error, which 'by {by}' needs", measure, f"{why}: {plainly}")

    def _reports(self) -> str:
        reported = self._facts.metrics
        names = [*(name for name in reported if name != VALID_LOSS), *self._facts.training, TRAIN_LOSS]
        names += [VALID_LOSS] if VALID_LOSS in reported else []
        shown = [f"{n} ({listed(reported[n].datasets, 6)})" if n in reported else n for n in names]
        return f"this training reports: {listed(shown)}"

    def _has_direction(self, node: Expression) -> None:
        try:
            direction = direction_of(node, self._facts)
        except Disagree as clash:
            higher, lower = clash.higher, clash.lower
            self._problem(
                "which way is better? The parts disagree",
                node,
                f"higher is better for {higher}, lower for {lower}; "
                f"change a sign, or put max(...) or min(...) around the whole objective",
            )
            return
        if direction is None:
            self._problem("nothing says which way is better here", node, self._no_direction(node))

    def _no_direction(self, node: Expression) -> str:
        greater = self._facts.greater_is_better
        names = [measure.metric.text for measure in measures(node)]
        unknown = [name for name in dict.fromkeys(names) if greater.get(name, False) is None]
        if unknown:
            how = "" if isinstance(node, Call) else ", or put max(...) or min(...) around the whole objective"
            return f"give {listed(unknown)} a direction (greater_is_better){how}"
        if names:
            return "a metric times 0 has no direction"
        return "a number or a counter has no direction: a metric belongs here"


def _in_one_name(measure: Measure, facts: Facts) -> str | None:
    """Return the quoted metric if part of its name was parsed as a dataset: "recall@10"."""
    name = "@".join([measure.metric.text, *(d.text if isinstance(d, Name) else "*" for d in measure.datasets)])
    return quote(name) if name in facts.metrics else None


def _meant(metric: str, names: Sequence[str]) -> str | None:
    """Return what an unknown metric may be: a difference, one of these names, or a counter that is named in plural."""
    parts, unit = metric.split("-"), BY_SPELLING.get(metric, "")
    if all(part in names for part in parts):
        return " - ".join(parts)
    return _near(metric, names) or ("elapsed" if unit in SECONDS else unit if unit in COUNTERS else None)


def _near(given: str, names: Sequence[str]) -> str | None:
    """Return the nearest name, or one that had to be in quotes, because only a part of it was read as a name."""
    parted = (name for name in names if not is_plain(name) and given in re.split(r"\W+", name))
    name = nearest(given, names) or next(parted, None)
    return name if name is None or name.isdecimal() else quoted(name)


def quoted(name: str) -> str:
    """Return a metric as it is written in a rule."""
    return str(Measure(Name(name, span=Span(0, 0)), (), span=Span(0, 0)))
