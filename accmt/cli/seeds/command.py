"""`accmt seeds`: run a script once for each seed, or compare the models of two such sets of runs."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from accmt.cli.arguments import CommandError, UsageError, path, positive
from accmt.cli.output import write, write_rich
from accmt.cli.seeds.comparison import comparison_of
from accmt.cli.seeds.results import read_set, spread_table
from accmt.cli.seeds.runs import Program, SeedOutcome, run_seeds
from accmt.rules.errors import numbered
from accmt.seed_run import LARGEST

_RANGE = re.compile(r"(\d+)(?:\.\.(\d+))?", re.ASCII)
_MOST = 10_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Complete the parser of the command."""
    parser.description = (
        "Run a script once for each seed, without a change in it: all random numbers start from the seed, and seed-N\n"
        "is appended to the model_path of its trainings. The same command continues what was interrupted. At the end,\n"
        "a table shows the best values of each rule over the seeds; the exit status is 1 if a run failed. --compare\n"
        "says for each rule whether the best models of two sets of runs differ by more than noise."
    )
    parser.epilog = """examples:
  accmt seeds train.py --seeds 0..4
  accmt seeds train.py --seeds 0..4 --jobs 2 -- --lr 0.1
  accmt seeds launch --seeds 0,7 -- -N 2 train.py --lr 0.1
  accmt seeds --compare runs/wide runs/narrow
"""
    _add_options(parser)
    parser.add_argument(
        "script", type=path, nargs="?", metavar="SCRIPT", help="the script; or `launch`, with the arguments of that"
    )
    rest = parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, metavar="-- ...", help="the arguments of the script, after --"
    )
    rest.required = False


def run(options: argparse.Namespace) -> int:
    """Run the script or compare runs.

    Raises:
        UsageError: The arguments do not fit together.
        CommandError: A set of runs cannot be compared.
    """
    arguments = _read_rest(options)
    if options.compare is not None:
        if (options.script, options.seeds, options.jobs) != (None, None, None):
            raise UsageError("--compare takes two folders of finished runs, and runs nothing: leave out the rest")
        write_rich(*comparison_of(*map(read_set, options.compare)))
        return 0
    if options.script is None:
        raise UsageError("give a script, or --compare with two sets of runs")
    if options.seeds is None:
        raise UsageError("give the seeds, as in --seeds 0..4")
    if options.script != "launch" and not Path(options.script).is_file():
        raise CommandError(f"there is no script {options.script} (the current folder is {Path.cwd()})")
    outcomes, ended_by = run_seeds(Program(options.script, tuple(arguments)), options.seeds, options.jobs or 1)
    if ended_by:
        _say_how_to_continue(outcomes)
        return 128 + ended_by
    return _summarize(outcomes)


def seed_list(text: str) -> list[int]:
    """Parse `--seeds`: different numbers and ranges that include their end, such as `0..4` or `0,3,7..9`."""
    seeds: list[int] = []
    for part in text.split(","):
        found = _RANGE.fullmatch(part)
        first, last = (0, -1) if found is None else (int(found[1]), int(found[2] or found[1]))
        if last < first or last > LARGEST or last - first >= _MOST:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a list of seeds: write numbers from 0 to 2**31 - 1 and ranges, such as 0..4 or 0,3,7"
            )
        seeds += range(first, last + 1)
    if repeated := [seed for seed in seeds if seeds.count(seed) > 1]:
        raise argparse.ArgumentTypeError(f"{text!r} has the seed {repeated[0]} more than once")
    return seeds


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=seed_list, metavar="LIST", help="the seeds, such as 0..4 or 0,3,7")
    parser.add_argument("--jobs", type=positive, metavar="N", help="how many runs at a time, 1 by default")
    about = "two sets of finished runs: folders of seed-N folders, or quoted patterns such as 'runs/*/seed-*'"
    parser.add_argument("--compare", type=path, nargs=2, metavar="RUNS", help=about)


def _read_rest(options: argparse.Namespace) -> list[str]:
    """Read our options behind the script, and return the arguments of the script, which follow `--`."""
    rest = list(options.arguments)
    end = rest.index("--") if "--" in rest else len(rest)
    later = type(options.parser)(prog=options.parser.prog, add_help=False, allow_abbrev=False)
    _add_options(later)
    _, unknown = later.parse_known_args(rest[:end], options)
    if unknown:
        raise UsageError(f"unrecognized arguments: {' '.join(unknown)} (the arguments of the script follow --)")
    return rest[end + 1 :]


def _summarize(outcomes: Sequence[SeedOutcome]) -> int:
    """Print the table of all trainings, grouped by the folder above those of the seeds."""
    groups: dict[Path, list[Path]] = {}
    for outcome in outcomes:
        for folder in outcome.folders if outcome.is_done else ():
            groups.setdefault(folder.parent, []).append(folder)
    for parent, folders in groups.items():
        write_rich("", *spread_table(parent, folders))
    failed = [str(outcome.seed) for outcome in outcomes if not outcome.is_done]
    if failed:
        write(f"failed: seed {', '.join(failed)}. The same command tries {'it' if len(failed) == 1 else 'them'} again")
    sys.stdout.flush()
    return 1 if failed else 0


def _say_how_to_continue(outcomes: Sequence[SeedOutcome]) -> None:
    done = sum(outcome.is_done for outcome in outcomes)
    write(f"interrupted: {numbered(done, 'seed')} finished. The same command continues")
