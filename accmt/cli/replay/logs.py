"""Histories from the logs of other trainers: transformers' `trainer_state.json`, the `metrics.csv` of Lightning's
CSVLogger, and event files of TensorBoard, which TensorBoard's own reader reads."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accmt.cli.arguments import CommandError, MetricArgument
from accmt.cli.replay.csv import Row, source_of
from accmt.cli.replay.source import Source
from accmt.files.foreign import MIB, read_bytes
from accmt.files.json_io import DamagedFile, reading
from accmt.rules.printable import escaped
from accmt.rules.store import ONLY_DATASET, VALID_LOSS

_STATE, _METRICS, _EVENTS = "trainer_state.json", "metrics.csv", "events.out.tfevents.*"
_LARGEST = 256 * MIB
_TIMES = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time", "jit_compilation_time")
_EVALUATED = re.compile(r"eval_(?:(.+)_)?runtime")
_LOSSES = ("loss", "val_loss", "valid_loss")
_LOADER = "/dataloader_idx_"
_PREFIXES = ("eval/", "eval_")
_OF_VALIDATION = (*_PREFIXES, "val")
_Series = Mapping[tuple[str, int], float]
"""(Name, step) -> value."""


def log_in(place: Path) -> Callable[[Sequence[MetricArgument], Sequence[str]], Source] | None:
    """Return how to read the log of another trainer: a file, or the newest one in a folder; None if it is not one."""
    checkpoints = sorted(place.glob(f"checkpoint-*/{_STATE}"), key=lambda path: path.stat().st_mtime)
    states = [path for path in (place, place / _STATE, *checkpoints[-1:]) if path.name == _STATE and path.is_file()]
    tables = [path for path in (place, place / _METRICS) if path.name == _METRICS and path.is_file()]
    if states:
        return lambda metrics, _: _trainer_state(states[0], metrics)
    if tables and _is_of_lightning(tables[0]):
        return lambda metrics, datasets: _series(tables[0], dict(_columns(tables[0])), metrics, datasets)
    if place.match(_EVENTS) or next(place.glob(_EVENTS), None) is not None:
        return lambda metrics, datasets: _series(place, dict(_scalars(place)), metrics, datasets)
    return None


def _trainer_state(path: Path, metrics: Sequence[MetricArgument]) -> Source:
    """Read what transformers' Trainer logged: `eval_dev_accuracy` is `accuracy` on `dev`.

    Raises:
        CommandError: If the file is damaged, or has no evaluations.
    """
    try:
        with reading(path):
            log = json.loads(read_bytes(path, _LARGEST))["log_history"]
            rows = {(row.step, row.dataset): row for number, entry in enumerate(log, 1) for row in _rows(number, entry)}
    except (DamagedFile, OSError) as error:
        raise CommandError(str(error)) from None
    except (AttributeError, KeyError, TypeError) as error:
        raise CommandError(f"{path} is not a log of transformers: {escaped(repr(error))}") from None
    if not rows:
        raise CommandError(f"{path} has no evaluations")
    return source_of(path, list(rows.values()), (), metrics)


def _rows(number: int, entry: Mapping[str, Any]) -> Iterator[Row]:
    """Yield the values of an entry for each dataset whose evaluation it logs."""
    found = (_EVALUATED.fullmatch(name) for name in entry)
    datasets = sorted((each[1] or "" for each in found if each), key=len, reverse=True)
    left = {name: value for name, value in entry.items() if name.startswith("eval_")}
    for dataset in datasets or ([""] if left else []):
        start = f"eval_{dataset}_" if dataset else "eval_"
        taken = {name: left.pop(name) for name in list(left) if name.startswith(start)}
        values = {name.removeprefix(start): float(value) for name, value in taken.items()}
        kept = {VALID_LOSS if name == "loss" else name: value for name, value in values.items() if name not in _TIMES}
        yield Row(number, int(entry["step"]), float(entry["epoch"]), 0.0, dataset or ONLY_DATASET, kept)


def _is_of_lightning(path: Path) -> bool:
    """Return whether a `metrics.csv` is Lightning's: a table for `accmt replay` has a column that Lightning's lacks."""
    with path.open(encoding="utf-8", errors="replace") as file:
        names = file.readline().strip().split(",")
    return {"epoch", "step"} <= set(names) and not {"dataset", "elapsed"} & set(names)


def _columns(path: Path) -> Iterator[tuple[tuple[str, int], float]]:
    """Yield the values of Lightning's table. It counts steps from 0: its row 9 was logged after 10 steps."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for cells in csv.DictReader(file, strict=True):
                values = {name: text for name, text in cells.items() if name not in ("epoch", "step") and text}
                yield from (((name, int(cells["step"]) + 1), float(text)) for name, text in values.items())
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise CommandError(f"{path} cannot be read: {escaped(error)}") from None


def _scalars(place: Path) -> Iterator[tuple[tuple[str, int], float]]:
    """Yield the scalars of event files."""
    try:
        from tensorboard.backend.event_processing import event_accumulator
    except ImportError:
        raise CommandError("TensorBoard is not installed: pip install tensorboard") from None
    events = event_accumulator.EventAccumulator(str(place), {event_accumulator.SCALARS: 0}).Reload()
    for name in events.Tags()[event_accumulator.SCALARS]:
        yield from (((name, event.step), event.value) for event in events.Scalars(name))


def _series(place: Path, series: _Series, metrics: Sequence[MetricArgument], datasets: Sequence[str]) -> Source:
    """Return the history of values that are logged by name and step; those of validation are known by their names.

    Raises:
        CommandError: If none is.
    """
    wanted = [metric.name for metric in metrics]
    rows: dict[tuple[int, str], Row] = {}
    for (name, step), value in sorted(series.items(), key=lambda item: item[0][1]):
        metric, dataset = _parted(name, datasets)
        if metric in wanted or metric == VALID_LOSS or name.startswith(_OF_VALIDATION):
            row = rows.setdefault((step, dataset), Row(len(rows) + 1, step, 0.0, 0.0, dataset, {}))
            row.values[metric] = value
    if not rows:
        names = escaped(", ".join(dict.fromkeys(name for name, _ in series)) or "nothing")
        raise CommandError(
            f"{place} has no values of validation, whose names begin with 'val' or 'eval', or are given with --metric; "
            f"it has: {names}"
        )
    source = source_of(place, list(rows.values()), (), metrics)
    return replace(source, lacking={**source.lacking, "epoch": f"{place} does not say when epochs end; use steps"})


def _parted(name: str, datasets: Iterable[str]) -> tuple[str, str]:
    """Return metric and dataset of a name, such as `val_acc/dataloader_idx_1`, `accuracy_dev` or `eval/loss`."""
    metric, loader, dataset = name.partition(_LOADER)
    for prefix in _PREFIXES:
        metric = metric.removeprefix(prefix)
    if not loader:
        dataset = next((key for key in datasets if metric.endswith(f"_{key}")), "")
        metric = metric.removesuffix(f"_{dataset}") if dataset else metric
    return VALID_LOSS if metric in _LOSSES else metric, dataset or ONLY_DATASET
