"""What a report tells of a training, read from its folder, or given by who read it elsewhere."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from accmt.checkpoint.saved_models import SavedModel, place_of_best
from accmt.display.lines import for_shell
from accmt.files.json_io import DamagedFile, read_json
from accmt.files.paths import shortened
from accmt.rules import Decision, Observation, Outcome, Progress, SavingRule, Verdict
from accmt.rules.describe import in_words
from accmt.rules.errors import numbered
from accmt.rules.nodes import Call, Measure, Node
from accmt.rules.printable import shown
from accmt.rules.reserved_names import LOG, RUN
from accmt.rules.store import TRAIN_LOSS, dataset_name
from accmt.tracking.history import entries_of, stop_of
from accmt.tracking.journal import DECISIONS, HISTORY
from accmt.tracking.step_log import CHECKPOINT, ENDS, RESUMED, LogLine, read_log
from accmt.tracking.training_file import Description, read_description

MEASURED = {"learning_rate": "learning rate", "grad_norm": "gradient norm", "seconds_per_step": "seconds per step"}
_FARTHEST = 10**15  # a step that somebody made up may be too large for charts
# Functions whose value lies where those of the metric lie, so that both are drawn in one chart.
_ALIKE = ("mean", "worst", "lowest", "highest", "avg", "ema", "best", "max", "min")


@dataclass(frozen=True, slots=True)
class Curve:
    """Values of a metric over the steps; `dataset` is "" for the training data and what has none."""

    metric: str
    dataset: str
    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class DrawnObjective:
    """An objective of a rule, and the metric in whose chart it is drawn."""

    name: str
    metric: str


@dataclass(frozen=True, slots=True)
class RuleCard:
    """A rule and what it decided: its verdicts, the evaluation and the `values` of the best model that it keeps, and
    where that lies, for a shell, and Python that loads it; both are "" if it is not there. `effect` says what a rule
    that the training did not have would have changed, and is "" for others. `held_out` are the values of the best model
    on held-out datasets, by names such as "accuracy@test"."""

    name: str
    words: str
    objectives: tuple[DrawnObjective, ...]
    verdicts: tuple[tuple[Progress, Verdict], ...]
    best: Progress | None
    values: tuple[float, ...]
    folder: str
    code: str
    effect: str = ""
    held_out: Mapping[str, float] = field(default_factory=dict)

    @property
    def saves(self) -> tuple[tuple[Progress, Verdict], ...]:
        return tuple(pair for pair in self.verdicts if pair[1].outcome is Outcome.SAVED)

    @property
    def pairs(self) -> tuple[tuple[DrawnObjective, float], ...]:
        """The best values with their objectives."""
        return tuple(zip(self.objectives, self.values, strict=False))

    @property
    def best_in_words(self) -> str:
        """The best values with what they are values of, or why there are none."""
        if self.values:
            return ", ".join(f"{objective.name} {value:.6g}" for objective, value in self.pairs)
        counts = Counter(verdict.outcome.value for _, verdict in self.verdicts)
        return ", ".join(["nothing saved", *(f"{word} {numbered(count, 'time')}" for word, count in counts.items())])


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened at a step: `kind` is evaluation, saved, checkpoint, resumed, signal, stop or end."""

    step: int
    kind: str
    text: str
    time: float | None = None
    rule: str = ""


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """All that a report tells of a training: what was trained (`about`) and how it ended, in sentences; its rules;
    its values, also those between evaluations; what happened; its decisions, settings and starts, as in `run.json`; its
    last step; and the step at which it was stopped, if it was."""

    name: str
    about: str
    outcome: str
    cards: tuple[RuleCard, ...] = ()
    curves: tuple[Curve, ...] = ()
    events: tuple[Event, ...] = ()
    decisions: tuple[Decision, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    starts: tuple[Mapping[str, Any], ...] = ()
    end: int = 0
    stopped: int | None = None

    @property
    def kept(self) -> str:
        """The models that it kept, in words."""
        cards = [card for card in self.cards if card.best and not card.effect]
        kept = [f"{card.name}, {when(card.best)}: {card.best_in_words}" for card in cards if card.best]
        return "; ".join(kept) or "nothing"


def read_training(folder: Path) -> TrainingReport:
    """Read the folder of a training, which may still run. Nothing in it is executed or changed.

    Raises:
        FileNotFoundError: It does not contain a training.
        ValueError: A file of it is damaged.
        OSError: A file of it cannot be read.
    """
    if not (folder / HISTORY).is_file():
        raise FileNotFoundError(f"{folder} is not the folder of a training: it has no {HISTORY}")
    observations = entries_of(folder / HISTORY, Observation.from_json, "an observation")
    decisions = tuple(_once(entries_of(folder / DECISIONS, Decision.from_json, "a decision")))
    about, log = read_description(folder), read_log(folder / LOG)
    run = read_json(folder / RUN, dict[str, Any]) if (folder / RUN).is_file() else {}
    settings, starts = _mapping(run.get("settings")), run.get("starts")
    starts = tuple(one for one in starts if isinstance(one, Mapping)) if isinstance(starts, list) else ()
    cards = tuple(_cards(folder, about, decisions))
    places = [*(one.progress for one in observations), *(one.progress for one in decisions)]
    last = max(places, key=lambda one: one.step, default=Progress())
    end = min(max(last.step, *(one.step for one in log), 0), _FARTHEST)
    stop = stop_of(decisions) if decisions else None
    return TrainingReport(
        name=str(shortened(folder)),
        about=_about(run, about, last, end),
        outcome=_outcome(stop, log, end),
        cards=cards,
        curves=tuple(_curves(observations, log)),
        events=tuple(_events(observations, decisions, log)),
        decisions=decisions,
        settings={name: value if isinstance(value, str) else json.dumps(value) for name, value in settings.items()},
        starts=starts,
        end=end,
        stopped=None if stop is None else min(stop.progress.step, _FARTHEST),
    )


def training_of(name: str, observations: Sequence[Observation]) -> TrainingReport:
    """Return the report of evaluations that another trainer, or a table, has recorded."""
    end = min(max((one.progress.step for one in observations), default=0), _FARTHEST)
    curves = tuple(curve for curve in _curves(observations, ()) if not all(map(math.isnan, curve.values)))
    about = "It was read from a log or a table, which knows neither rules nor decisions."
    outcome = f"{numbered(len(observations), 'evaluation', ',')}, the last at step {end:,}"
    return TrainingReport(name, about, outcome, curves=curves, events=tuple(_events(observations, (), ())), end=end)


def brief(text: str, most: int) -> str:
    """Return a text without control characters, and not too long."""
    whole = shown(text[: most + 1])
    return whole if len(whole) <= most else f"{whole[: most - 1]}…"


def duration(seconds: float) -> str:
    """Return a duration as people say it."""
    if not seconds < 1e9:
        return "an unknown time"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60:02d} min"


def when(progress: Progress) -> str:
    """Say when something was, in epochs and steps."""
    if not progress.step_in_epoch and progress.epoch:
        return f"after epoch {progress.epoch} (step {progress.step:,})"
    return f"at step {progress.step:,}, in epoch {progress.epoch + 1}"


def _once(decisions: Sequence[Decision]) -> Iterator[Decision]:
    """Yield the decisions without a stop between evaluations that the evaluation at the same step repeats."""
    for decision, following in zip_longest(decisions, decisions[1:]):
        at_one_step = following is not None and following.progress.step == decision.progress.step
        if decision.all_verdicts or not at_one_step or decision.stop != following.stop:
            yield decision


def _about(run: Mapping[str, Any], about: Description | None, last: Progress, end: int) -> str:
    model, samples = _mapping(run.get("model")), run.get("train_samples")
    known = isinstance(model.get("parameters"), int)
    what = f"A model of {model['parameters']:,} parameters" if known else "A model"
    on = f" on {samples:,} samples" if isinstance(samples, int) else ""
    total = None if about is None else about.facts.length.total_steps
    steps = numbered(end, "step", ",") if total in (None, end) else f"{end:,} of {numbered(total, 'step', ',')}"
    took = f", in {duration(last.elapsed)}" if last.elapsed else ""
    return f"{what}, trained{on} for {steps} ({numbered(last.epoch, 'epoch', ',')}{took})."


def _outcome(stop: Decision | None, log: Sequence[LogLine], end: int) -> str:
    """Say how the training ended."""
    if stop is not None and stop.stop is not None and stop.progress.step == end:
        return f"Stopped {when(stop.progress)}: {stop.stop.reason}"
    last = log[-1] if log else LogLine(0, 0.0)
    said = {"FAILED": f"Failed at step {end:,}: {last.text}", "KILLED": f"Interrupted at step {end:,}"}
    said["FINISHED"] = f"Trained to its end, step {end:,}"
    return said.get(last.event, f"At step {end:,}: it is still running, or its process was killed")


def _cards(folder: Path, about: Description | None, decisions: Sequence[Decision]) -> Iterator[RuleCard]:
    """Yield a card for each rule: those of the description, and others that decided before a resume."""
    known: dict[str, SavingRule] = {} if about is None else {rule.name: rule for rule in about.rules.savings}
    verdicts: dict[str, list[tuple[Progress, Verdict]]] = {name: [] for name in known}
    moments: dict[int, Progress] = {}
    averages: dict[str, Decision] = {}
    for decision in decisions:
        for verdict in decision.verdicts:
            moments[decision.progress.evaluation] = decision.progress
            verdicts.setdefault(verdict.rule, []).append((decision.progress, verdict))
        for verdict in decision.saved:
            averages.pop(verdict.rule, None)  # one that was made before the training was continued
        if decision.average is not None and decision.average.outcome is Outcome.SAVED:
            averages[decision.average.rule] = decision
    for name, pairs in verdicts.items():
        rule, kept, place = known.get(name), pairs[-1][1].kept if pairs else (), None
        words = "a rule that training.json does not describe, such as one of an earlier start"
        objectives = tuple(DrawnObjective(name, name) for _ in (pairs[0][1].values if pairs else ()))
        if rule is not None and about is not None:
            words, place = in_words(rule, about.facts), _place(folder / rule.folder) if kept else None
            objectives = tuple(map(objective_of, rule.saving.ranking.objectives))
        best = moments.get(kept[0].evaluation, Progress(step=kept[0].step)) if kept else None
        code = "" if place is None else f"accmt.load_best({str(shortened(folder))!r}, module, {name!r})"
        shell, values = "" if place is None else for_shell(place), kept[0].values if kept else ()
        if (average := averages.get(name)) is not None and average.average is not None:
            best, values = average.progress, average.average.values
        held_out = {} if place is None else _held_out(place)
        yield RuleCard(name, words, objectives, tuple(pairs), best, values, shell, code, held_out=held_out)


def _held_out(place: Path) -> dict[str, float]:
    with suppress(DamagedFile, OSError):
        return SavedModel.read(place).measured
    return {}


def _place(folder: Path) -> Path | None:
    with suppress(DamagedFile, OSError):
        return place_of_best(folder)
    return None


def objective_of(node: Node) -> DrawnObjective:
    """Return an objective with the metric in whose chart it is drawn."""
    inner = node
    while isinstance(inner, Call) and inner.function in _ALIKE and inner.arguments:
        inner = inner.arguments[0]
    return DrawnObjective(str(node), inner.metric.text if isinstance(inner, Measure) else str(node))


def _curves(observations: Sequence[Observation], log: Sequence[LogLine]) -> Iterator[Curve]:
    """Yield the values of evaluations, and those logged between them, such as the training loss if it was."""
    logged = {name for line in log for name in line.values}
    points: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for metric, dataset, step, value in _values(observations):
        if metric not in logged:
            points.setdefault((metric, dataset), []).append((step, value))
    for line in log:
        for name, value in line.values.items():
            points.setdefault((MEASURED.get(name, name), ""), []).append((line.step, value))
    for (metric, dataset), pairs in points.items():
        if metric == TRAIN_LOSS and all(math.isnan(value) for _, value in pairs):
            continue  # a loop by hand need not tell it
        yield Curve(metric, dataset, tuple(step for step, _ in pairs), tuple(value for _, value in pairs))


def _values(observations: Sequence[Observation]) -> Iterator[tuple[str, str, int, float]]:
    """Yield metric, dataset, step and value."""
    for one in observations:
        step = one.progress.step
        for key, metrics in one.values.items():
            dataset = dataset_name(key, one.values)
            yield from ((metric, dataset, step, value) for metric, value in metrics.items())
        training = {} if one.initial else {TRAIN_LOSS: one.train_loss, **one.training}
        yield from ((metric, "", step, value) for metric, value in training.items())


def _events(
    observations: Sequence[Observation], decisions: Sequence[Decision], log: Sequence[LogLine]
) -> Iterator[Event]:
    for one in observations:
        yield Event(one.progress.step, "evaluation", f"evaluation {one.progress.evaluation}")
    for decision in decisions:
        for verdict in decision.all_verdicts:
            if verdict.outcome is Outcome.SAVED:
                yield Event(decision.progress.step, "saved", str(verdict), rule=verdict.rule)
        if decision.stop is not None:
            yield Event(decision.progress.step, "stop", decision.stop.reason)
    for line in log:
        if line.event in (RESUMED, CHECKPOINT):
            yield Event(line.step, line.event, line.text, line.time)
        elif line.event:
            kind = "end" if line.event in ENDS else "signal"
            yield Event(line.step, kind, f"{line.event.lower()} {line.text}".strip(), line.time)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
