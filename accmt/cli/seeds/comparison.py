"""Whether the best models of two sets of runs differ by more than noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from accmt.cli.output import table
from accmt.cli.seeds.intervals import MeanDifference, paired_difference, welch_difference
from accmt.cli.seeds.results import Named, RunSet, named_in
from accmt.rules.errors import listed
from accmt.rules.printable import escaped

if TYPE_CHECKING:
    from rich.table import Table


def comparison_of(first: RunSet, second: RunSet) -> tuple[Table | str, ...]:
    """Return a table with the difference of each value, and how it was computed."""
    why_not = _why_not_paired(first, second)
    compared = table("rule", "seeds", "A", "B", "A - B", "95 % interval", "value", "the difference is")
    for named in named_in(first, second):
        pair = _paired(named, first, second) if why_not is None else (first.values_of(named), second.values_of(named))
        cells = _cells(*pair, paired_difference if why_not is None else welch_difference)
        compared.add_row(escaped(named[0]), *cells[:-1], escaped(named[1]), cells[-1])
    how = "paired by seed: both have the same seeds and validation data (Student's t)"
    if why_not is not None:
        how = f"not paired (Welch's t): {why_not}"
    return compared, "", f"A: {first.name}", f"B: {second.name}", how


def _why_not_paired(first: RunSet, second: RunSet) -> str | None:
    """Return why runs cannot be paired; None if they can."""
    by_seed = [{run.seed: run.data for run in one.runs} for one in (first, second)]
    if any(None in seeds or len(seeds) < len(one.runs) for seeds, one in zip(by_seed, (first, second), strict=True)):
        return "a seed is not known, or occurs twice in a set"
    if by_seed[0].keys() != by_seed[1].keys():
        seeds = [listed([str(seed) for seed in sorted(seed for seed in one if seed is not None)]) for one in by_seed]
        return f"A has the seeds {seeds[0]}, B {seeds[1]}"
    if any(None in one.values() for one in by_seed):
        return "it is not known that the validation data are the same (runs of accmt seeds record it)"
    return None if by_seed[0] == by_seed[1] else "the validation data differ"


def _paired(named: Named, first: RunSet, second: RunSet) -> tuple[list[float], list[float]]:
    """Return the values of the seeds that have one in both sets."""
    tables = [{run.seed: run.values[named] for run in one.runs if named in run.values} for one in (first, second)]
    seeds = [seed for seed in tables[0] if seed in tables[1]]
    return [tables[0][seed] for seed in seeds], [tables[1][seed] for seed in seeds]


def _cells(
    first: Sequence[float],
    second: Sequence[float],
    difference: Callable[[Sequence[float], Sequence[float]], MeanDifference],
) -> tuple[str, ...]:
    counts = str(len(first)) if len(first) == len(second) else f"{len(first)} and {len(second)}"
    means = [f"{fmean(values):.6g}" if values else "" for values in (first, second)]
    if not (first and second):
        return counts, *means, "", "", "not known: one set lacks the value"
    if min(len(first), len(second)) < 2:
        return counts, *means, f"{fmean(first) - fmean(second):+.4g}", "", "not known: it takes two seeds"
    found = difference(first, second)
    said = "beyond noise" if found.is_beyond_noise else "within noise"
    return counts, *means, f"{found.mean:+.4g}", f"{found.low:+.4g} to {found.high:+.4g}", said
