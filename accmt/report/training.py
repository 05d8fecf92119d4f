"""What a report tells of a training, read from its folder, or given by who read it elsewhere."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

from accmt.checkpoint.saved_models import place_of_best
from accmt.display.lines import for_shell
from accmt.files.json_io import DamagedFile, read_json
from accmt.files.paths import shortened
from accmt.rules import Decision, Observation, Outcome, Progress, SavingRule, Verdict
from accmt.rules.describe import in_words
from accmt.rules.errors import numbered
from accmt.rules.nodes import Call, Measure
from accmt.rules.printable import shown
from accmt.rules.reserved_names import LOG, RUN
from accmt.rules.store import TRAIN_LOSS, dataset_name
from accmt.tracking.history import entries_of, stop_of
from accmt.tracking.journal import DECISIONS, HISTORY
from accmt.tracking.step_log import CHECKPOINT, ENDS, RESUMED, LogLine, read_log
from accmt.tracking.training_file import Description, read_description

_PLACE = re.compile(r"checkpoint-\d+-step-(\d{1,15})")
MEASURED = {"learning_rate": "learning rate", "grad_norm": "gradient norm", "seconds_per_step": "seconds per step"}
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
class Objective:
    """An objective of a rule, and the metric in whose chart it is drawn."""

    name: str
    metric: str


@dataclass(frozen=True, slots=True)
class RuleCard:
    """A rule and what it decided.

    Attributes:
        name, words: Its name, and what it does in words.
        objectives: What it ranks by.
        verdicts: Its verdict on each evaluation.
        best: The evaluation of the best model that it keeps; None if it keeps none.
        values: The values of that model.
        folder: Where the model lies, for a shell; "" if it is not there.
        code: Python that loads it; "" if it is not there.
        effect: For a rule that the training did not have: what would have been different; "" for one that it had.
    """

    name: str
    words: str
    objectives: tuple[Objective, ...]
    verdicts: tuple[tuple[Progress, Verdict], ...]
    best: Progress | None
    values: tuple[float, ...]
    folder: str
    code: str
    effect: str = ""

    @property
    def saves(self) -> tuple[tuple[Progress, Verdict], ...]:
        return tuple(pair for pair in self.verdicts if pair[1].outcome is Outcome.SAVED)

    @property
    def pairs(self) -> tuple[tuple[Objective, float], ...]:
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


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """All that a report tells of a training.

    Attributes:
        name: What it is called on the page: its folder.
        about, outcome: What was trained, and how it ended, in sentences.
        cards, curves, events: Its rules; its values, also of what was logged between evaluations; what happened.
        decisions: Its decisions, oldest first.
        settings: Setting -> value.
        starts: Each start: time, command, host, versions, commit, and what was changed.
        end: Its last step.
        stopped: The step at which it was stopped; None if it was not.
    """

    name: str
    about: str
    outcome: str
    cards: tuple[RuleCard, ...] = ()
    curves: tuple[Curve, ...] = ()
    events: tuple[Event, ...] = ()
    decisions: tuple[Decision, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    starts: tuple[Mapping[str, Any], ...] = ()
    end: int = 0
    stopped: int | None = None

    @property
    def kept(self) -> str:
        """The models that it kept, in words."""
        kept = [
            f"{card.name}, {moment(card.best)}: {card.best_in_words}"
            for card in self.cards
            if card.best and not card.effect
        ]
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
    starts = tuple(one for one in _list(run.get("starts")) if isinstance(one, Mapping))
    cards = tuple(_cards(folder, about, decisions))
    places = [*(one.progress for one in observations), *(one.progress for one in decisions)]
    last, end = max(places, key=lambda one: one.step, default=Progress()), max((one.step for one in log), default=0)
    stop = stop_of(decisions) if decisions else None
    return TrainingReport(
        name=str(shortened(folder)),
        about=_about(run, about, last, max(end, last.step)),
        outcome=_outcome(decisions, log, about, max(end, last.step)),
        cards=cards,
        curves=tuple(_curves(observations, log)),
        events=tuple(_events(observations, decisions, log, starts)),
        decisions=decisions,
        settings=_mapping(run.get("settings")),
        starts=starts,
        end=max(end, last.step),
        stopped=None if stop is None else stop.progress.step,
    )


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


def moment(progress: Progress) -> str:
    """Say when something was, in epochs and steps."""
    if not progress.step_in_epoch and progress.epoch:
        return f"after epoch {progress.epoch} (step {progress.step:,})"
    return f"at step {progress.step:,}, in epoch {progress.epoch + 1}"


def _once(decisions: Sequence[Decision]) -> Iterator[Decision]:
    """Yield the decisions without a stop between evaluations that the evaluation at the same step repeats."""
    for decision, following in zip_longest(decisions, decisions[1:]):
        at_one_step = following is not None and following.progress.step == decision.progress.step
        if decision.verdicts or not at_one_step or decision.stop != following.stop:
            yield decision


def _about(run: Mapping[str, Any], about: Description | None, last: Progress, end: int) -> str:
    model, samples = _mapping(run.get("model")), run.get("train_samples")
    parts = [f"{model['parameters']:,} parameters"] if isinstance(model.get("parameters"), int) else []
    what = f"A model of {parts[0]}" if parts else "A model"
    on = f" on {samples:,} samples" if isinstance(samples, int) else ""
    total = None if about is None else about.facts.length.total_steps
    steps = numbered(end, "step", ",") if total in (None, end) else f"{end:,} of {numbered(total, 'step', ',')}"
    took = f", in {duration(last.elapsed)}" if last.elapsed else ""
    return f"{what}, trained{on} for {steps} ({numbered(last.epoch, 'epoch')}{took})."


def _outcome(
    decisions: Sequence[Decision],
    log: Sequence[LogLine],
    about: Description | None,
    end: int,
) -> str:
    """Say how the training ended."""
    stop, total = stop_of(decisions) if decisions else None, None if about is None else about.facts.length.total_steps
    last = log[-1] if log else LogLine(0, 0.0)
    if stop is not None and stop.stop is not None and stop.progress.step == end:
        how = f"Stopped {moment(stop.progress)}: {stop.stop.reason}"
    elif last.event == "FAILED":
        how = f"Failed at step {end:,}: {last.text}"
    elif last.event == "KILLED":
        how = f"Interrupted at step {end:,}"
    elif last.event == "FINISHED" or end == total:
        how = f"Trained to its end, step {end:,}"
    else:
        how = f"At step {end:,}: it is still running, or its process was killed"
    return how


def _cards(folder: Path, about: Description | None, decisions: Sequence[Decision]) -> Iterator[RuleCard]:
    """Yield a card for each rule: those of the description, and others that decided before a resume."""
    known: dict[str, SavingRule] = {} if about is None else {rule.name: rule for rule in about.rules.savings}
    verdicts: dict[str, list[tuple[Progress, Verdict]]] = {name: [] for name in known}
    moments: dict[int, Progress] = {}
    for decision in decisions:
        for verdict in decision.verdicts:
            moments[decision.progress.evaluation] = decision.progress
            verdicts.setdefault(verdict.rule, []).append((decision.progress, verdict))
    for name, pairs in verdicts.items():
        rule, kept = known.get(name), pairs[-1][1].kept if pairs else ()
        words = "a rule of an earlier start, which is not described any more"
        count = len(pairs[0][1].values) if pairs else 0
        objectives = tuple(Objective(name, name) for _ in range(count))
        if rule is not None and about is not None:
            words = in_words(rule, about.facts)
            objectives = tuple(objective_of(rule, number) for number in range(len(rule.saving.ranking.objectives)))
        best = moments.get(kept[0].evaluation, Progress(step=kept[0].step)) if kept else None
        place = _place(folder / rule.folder) if kept and rule is not None and about and about.rules.writes else None
        code = "" if place is None else f"accmt.load_best({str(shortened(folder))!r}, module, {name!r})"
        shell = "" if place is None else for_shell(place)
        yield RuleCard(name, words, objectives, tuple(pairs), best, kept[0].values if kept else (), shell, code)


def _place(folder: Path) -> Path | None:
    try:
        return place_of_best(folder)
    except (DamagedFile, OSError):
        return None


def objective_of(rule: SavingRule, number: int) -> Objective:
    """Return an objective of a rule, by its number."""
    node = rule.saving.ranking.objectives[number]
    name, inner = str(node), node
    while isinstance(inner, Call) and inner.function in _ALIKE and inner.arguments:
        inner = inner.arguments[0]  # type: ignore[assignment]  # a quantity is never the first
    return Objective(name, inner.metric.text if isinstance(inner, Measure) else name)


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
    if "seconds_per_step" not in logged:
        points["seconds per step, evaluations included", ""] = list(_paces(observations))
    for (metric, dataset), pairs in points.items():
        if pairs:
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


def _paces(observations: Sequence[Observation]) -> Iterator[tuple[int, float]]:
    for before, after in pairwise([Progress(), *(one.progress for one in observations)]):
        if after.step > before.step and after.elapsed > before.elapsed:
            yield after.step, (after.elapsed - before.elapsed) / (after.step - before.step)


def _events(
    observations: Sequence[Observation],
    decisions: Sequence[Decision],
    log: Sequence[LogLine],
    starts: Sequence[Mapping[str, Any]],
) -> Iterator[Event]:
    """Yield what happened. Without a log, checkpoints are those due at evaluations, and resumes those of the starts."""
    for one in observations:
        yield Event(one.progress.step, "evaluation", f"evaluation {one.progress.evaluation}")
    for decision in decisions:
        for verdict in decision.saved:
            yield Event(decision.progress.step, "saved", str(verdict))
        if decision.stop is not None:
            yield Event(decision.progress.step, "stop", decision.stop.reason)
        if decision.checkpoint and not log:
            yield Event(decision.progress.step, "checkpoint", "a checkpoint was due")
    for start in starts if not log else ():
        if found := _PLACE.fullmatch(str(start.get("checkpoint"))):
            yield Event(int(found[1]), RESUMED, found[0])
    for line in log:
        if line.event:
            plain = line.event in (RESUMED, CHECKPOINT)
            kind = line.event if plain else "end" if line.event in ENDS else "signal"
            text = line.text or line.event
            yield Event(line.step, kind, text if plain else f"{line.event.lower()} {line.text}".strip(), line.time)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
