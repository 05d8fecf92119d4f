"""What finished runs reached: the best values of each rule, and their spread over the seeds."""

from __future__ import annotations

import glob
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from accmt.cli.arguments import CommandError
from accmt.cli.output import table
from accmt.cli.replay.opening import sources_in
from accmt.files.json_io import read_json
from accmt.files.paths import resolved, shortened
from accmt.report.training import read_training
from accmt.rules.errors import numbered
from accmt.rules.printable import escaped
from accmt.rules.reserved_names import HISTORY, RUN

if TYPE_CHECKING:
    from rich.table import Table

Named = tuple[str, str]
"""A rule, and the objective or the held-out value."""


@dataclass(frozen=True, slots=True)
class SeedResult:
    """What a run reached: its seed, what identifies its validation data (None if that is not known), and the values of
    the best model of each rule."""

    seed: int | None
    data: Mapping[str, Any] | None
    values: Mapping[Named, float]


@dataclass(frozen=True, slots=True)
class RunSet:
    """Runs that are compared together, and how the user calls them."""

    name: str
    runs: tuple[SeedResult, ...]

    def values_of(self, named: Named) -> list[float]:
        """Return the value in all runs that have it."""
        return [run.values[named] for run in self.runs if named in run.values]


def read_set(name: str) -> RunSet:
    """Read the runs in a folder, or in the folders that match a pattern.

    Raises:
        CommandError: There is none, or one cannot be read.
    """
    places = [Path(found) for found in sorted(glob.glob(name))] or [Path(name)]
    folders = [folder for place in places for folder in _trainings_in(place)]
    if not folders:
        raise CommandError(f"{name}: no training was found there")
    return RunSet(name, tuple(map(read_result, folders)))


def read_result(folder: Path) -> SeedResult:
    """Read what a run reached.

    Raises:
        CommandError: It is not the folder of a training, or a file of it is damaged.
    """
    try:
        training = read_training(resolved(folder))
        run = read_json(folder / RUN, dict[str, Any]) if (folder / RUN).is_file() else {}
    except (OSError, ValueError) as error:
        raise CommandError(escaped(error)) from None
    values = {(card.name, objective.name): value for card in training.cards for objective, value in card.pairs}
    values |= {
        (card.name, f"{name}, held out"): card.held_out[name] for card in training.cards for name in card.held_out
    }
    seed, data = run.get("seed"), run.get("data")
    return SeedResult(
        seed if isinstance(seed, int) else None,
        data if isinstance(data, dict) and all(map(_is_identified, data.values())) else None,
        {named: value for named, value in values.items() if math.isfinite(value)},
    )


def spread_table(parent: Path, folders: Sequence[Path]) -> tuple[str, Table]:
    """Return a title, and a table of the mean and the spread of each value over the seeds."""
    found = RunSet("", tuple(map(read_result, folders)))
    spread = table("rule", "seeds", "mean", "sd", "min", "max", "value")
    for rule, value in named_in(found):
        values = found.values_of((rule, value))
        deviation = f"{stdev(values):.4g}" if len(values) > 1 else ""
        numbers = f"{fmean(values):.6g}", deviation, f"{min(values):.6g}", f"{max(values):.6g}"
        spread.add_row(escaped(rule), str(len(values)), *numbers, escaped(value))
    return f"{shortened(parent)}, the best models of {numbered(len(folders), 'seed')}:", spread


def named_in(*sets: RunSet) -> list[Named]:
    """List all rules and values of all runs, rule by rule."""
    every = dict.fromkeys(named for one in sets for run in one.runs for named in run.values)
    rules = list(dict.fromkeys(rule for rule, _ in every))
    return sorted(every, key=lambda named: rules.index(named[0]))


def _trainings_in(place: Path) -> Iterator[Path]:
    """Yield the runs of all seeds in a folder; if it has none, every training in it, or itself."""
    of_seeds = [path for path in sorted(place.glob("seed-*")) if (path / HISTORY).is_file()]
    yield from of_seeds or (path for path in map(Path, sources_in(str(place))) if (path / HISTORY).is_file())


def _is_identified(identity: Any) -> bool:
    return isinstance(identity, dict) and identity.get("samples") is not None
