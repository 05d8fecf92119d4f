"""History of a training from a CSV file with a row for each evaluation and dataset."""

from __future__ import annotations

import csv
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from accmt.cli.arguments import CommandError, MetricArgument
from accmt.cli.replay.source import Source, facts_seen
from accmt.config.errors import did_you_mean
from accmt.rules import Observation, Progress
from accmt.rules.printable import escaped
from accmt.rules.replay import History, Need
from accmt.rules.store import ONLY_DATASET, TRAIN_LOSS

_NEEDED = ("step", "epoch")
_COUNTERS = (*_NEEDED, "dataset", "elapsed")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table: the values of one dataset at one step."""

    line: int
    step: int
    epoch: float
    elapsed: float
    dataset: str
    values: dict[str, float]


def open_table(path: Path, directions: Sequence[MetricArgument]) -> Source:
    """Read the history from a CSV file.

    Raises:
        CommandError: If it is not such a table; the message names the line.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, strict=True)
            columns = _columns(path, next(lines, []))
            rows = [_row(path, lines.line_num, columns, cells) for cells in lines if any(map(str.strip, cells))]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CommandError(f"{path} cannot be read: {error}") from None
    if not rows:
        raise CommandError(f"{path} has no rows")
    return source_of(path, rows, columns, directions)


def source_of(path: Path, rows: list[Row], columns: Collection[str], directions: Sequence[MetricArgument]) -> Source:
    """Return the history of rows that have these columns.

    Raises:
        CommandError: If the rows contradict each other; the message names the line.
    """
    observations = tuple(_observations(path, rows))
    lacking: dict[Need, str] = {
        "samples": f"{path} does not have it",
        "length": f"{path} does not have it; use another unit",
        "steps_per_epoch": f"{path} does not have it; use steps",
        "replicates": f"{path} has no replicates: write an amount, such as by 0.01 or by 1%",
    }
    if "elapsed" not in columns:
        lacking["elapsed"] = f"{path} has no column 'elapsed'"
    if TRAIN_LOSS not in columns:
        lacking["train_loss"] = f"{path} has no column '{TRAIN_LOSS}'"
    return Source(History(observations), facts_seen(observations, directions), lacking)


def _columns(path: Path, header: list[str]) -> list[str]:
    columns = [name.strip() for name in header]
    for name in _NEEDED:
        if name not in columns:
            hint = did_you_mean(name, columns if len(columns) > 1 else [])
            shown = ", ".join(columns) or "none"
            listed = escaped(f"{hint} Its columns, separated by commas, are: {shown}")
            raise CommandError(f"{path} has no column '{name}'{listed}")
    for name in columns:
        if not name or columns.count(name) > 1:
            what = f"the column '{escaped(name)}' twice" if name else "a column without a name"
            raise CommandError(f"{path} has {what}")
    if not set(columns) - set(_COUNTERS):
        raise CommandError(f"{path} has no column for a metric")
    return columns


def _row(path: Path, line: int, columns: list[str], cells: list[str]) -> Row:
    if len(cells) != len(columns):
        raise CommandError(f"{path}, line {line} has {len(cells)} cells, but the table has {len(columns)} columns")
    texts = {name: cell.strip() for name, cell in zip(columns, cells, strict=True)}
    numbers = {name: _number(path, line, name, text) for name, text in texts.items() if name != "dataset" and text}
    for name in (*_NEEDED, "elapsed"):
        value = numbers.get(name, math.nan) if name in columns else 0.0
        if not 0 <= value < math.inf or (name == "step" and not value.is_integer()):
            kind = "whole number" if name == "step" else "number"
            raise CommandError(f"{path}, line {line}: {name} must be a {kind} of at least 0, not {texts[name]!r}")
    values = {name: value for name, value in numbers.items() if name not in _COUNTERS}
    dataset = texts.get("dataset") or ONLY_DATASET
    return Row(line, int(numbers["step"]), numbers["epoch"], numbers.get("elapsed", 0.0), dataset, values)


def _number(path: Path, line: int, name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise CommandError(f"{path}, line {line}: {name} is {text!r}, which is not a number") from None


def _observations(path: Path, rows: list[Row]) -> Iterator[Observation]:
    """Yield the evaluations in the order of their steps. One at step 0 is the initial evaluation."""
    by_step: dict[int, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.step):
        by_step.setdefault(row.step, []).append(row)
    before, evaluation = Progress(), 0
    for step, group in by_step.items():
        evaluation += step > 0
        before = _progress(path, group, before, evaluation)
        yield Observation(before, _values(path, group), _train_loss(path, group), initial=step == 0)


def _progress(path: Path, group: list[Row], before: Progress, evaluation: int) -> Progress:
    """Return the counters of an evaluation. The first one with a whole number of epochs is at the end of an epoch."""
    first = group[0]
    for row in group:
        if row.epoch != first.epoch:
            raise CommandError(
                f"{path}, line {row.line}: the epoch of step {row.step} is {row.epoch:g}, but {first.epoch:g} in line "
                f"{first.line}"
            )
    epoch, elapsed = int(first.epoch), max(row.elapsed for row in group)
    for name, now, then in (("epoch", epoch, before.epoch), ("elapsed", elapsed, before.elapsed)):
        if now < then:
            raise CommandError(f"{path}, line {first.line}: {name} decreases, from {then:g} to {now:g}")
    ended = epoch > before.epoch and first.epoch == epoch
    in_epoch = 0 if ended else before.step_in_epoch * (epoch == before.epoch) + first.step - before.step
    return Progress(first.step, epoch, in_epoch, evaluation, 0, elapsed)


def _values(path: Path, group: list[Row]) -> dict[str, dict[str, float]]:
    values: dict[str, dict[str, float]] = {}
    for row in group:
        if row.dataset in values:
            raise CommandError(
                f"{path}, line {row.line}: there already is a row for step {row.step} and '{escaped(row.dataset)}'"
            )
        values[row.dataset] = {name: value for name, value in row.values.items() if name != TRAIN_LOSS}
    return values


def _train_loss(path: Path, group: list[Row]) -> float:
    """Return the training loss of an evaluation: it has no dataset, so all rows that give it must agree."""
    losses = [row.values[TRAIN_LOSS] for row in group if TRAIN_LOSS in row.values]
    if len({str(loss) for loss in losses}) > 1:
        raise CommandError(f"{path}, line {group[-1].line}: step {group[0].step} has several values of {TRAIN_LOSS}")
    return losses[0] if losses else math.nan
