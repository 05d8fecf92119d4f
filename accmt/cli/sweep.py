"""`accmt sweep`: what each patience and `by` would have saved in finished trainings, and what it would have lost."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean

from accmt.cli.arguments import CommandError, add_metric_options, path, positive
from accmt.cli.output import complain, print_csv, print_json, table, write_rich
from accmt.cli.replay.opening import open_source, read_all
from accmt.cli.replay.rules import Mistakes, check_against, held_apart, parsed
from accmt.cli.replay.source import Source
from accmt.rules import RuleError, Rules, SavingRule, parse_saving
from accmt.rules.nodes import Amount
from accmt.rules.printable import escaped
from accmt.rules.trials import Trial, best_of_all, pareto, tried

_COLUMNS = ("rule", "by", "patience", "stopped", "steps_saved", "time_saved", "lost", "most_lost", "front")
_MOST = 10_000


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting over all trainings.

    Attributes:
        rule: The rule, with its `by` and its patience.
        trials: Its trial on each training.
        steps: The mean share of the steps that it would have saved.
        time: The same of the time; NaN unless every training recorded it.
        lost: The mean loss of each objective, over the trainings in which the rule saves a model.
        most: The largest loss of each objective.
        front: No other setting of the rule saves more steps without losing more of the first objective.
    """

    rule: SavingRule
    trials: tuple[Trial, ...]
    steps: float
    time: float
    lost: tuple[float, ...]
    most: tuple[float, ...]
    front: bool = False

    @property
    def stopped(self) -> int:
        """Number of trainings that it would have stopped."""
        return sum(trial.stop is not None for trial in self.trials)

    @property
    def row(self) -> tuple[object, ...]:
        """The cells of `_COLUMNS`."""
        by = self.rule.saving.by
        return (
            _ranking(self.rule),
            "" if by is None else str(by),
            self.rule.patience or "",
            self.stopped,
            *(None if math.isnan(share) else share for share in (self.steps, self.time)),
            self.lost,
            self.most,
            self.front,
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Complete the parser of the command."""
    parser.description = (
        "Show how much of finished trainings each patience would have saved, and what quality it would have lost: the\n"
        "difference to the best model that the same ranking finds in the whole training. SOURCE is a model_path, a\n"
        "folder of many, a CSV file or mlflow:RUN_ID as for accmt replay, or a log of another trainer: a\n"
        "trainer_state.json of transformers (or the folder of its checkpoints), a metrics.csv of Lightning, or a\n"
        "folder with event files of TensorBoard. Without --rule, the rules of the trainings are swept."
    )
    parser.epilog = """examples:
  accmt sweep runs/model
  accmt sweep runs --rule best_accuracy@dev --patience 1..10 --by 0,0.001,1% --output sweep.png
  accmt sweep outputs/checkpoint-500/trainer_state.json --rule accuracy --metric accuracy:max --patience 2,3,5
"""
    parser.add_argument("sources", type=path, nargs="+", metavar="SOURCE", help="trainings, or folders of trainings")
    parser.add_argument(
        "--rule", dest="rules", action="append", default=[], metavar="RULE", help="a saving rule; may be repeated"
    )
    parser.add_argument(
        "--patience", type=_patiences, default="1..10", metavar="N..M", help="such as 2,3,5; 1..10 by default"
    )
    parser.add_argument(
        "--by", type=_amounts, default=(), metavar="A,B", help="least improvements, such as 0,0.001,1%%,2se"
    )
    parser.add_argument("--output", "-o", type=path, metavar="FILE", help="write a picture, such as sweep.png")
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--json", action="store_true", help="write one setting per line, as JSON")
    forms.add_argument("--csv", action="store_true", help="write the table as CSV")
    add_metric_options(
        parser,
        about_metrics="a metric, and whether higher (max) or lower (min) is better where SOURCE does not say so",
        about_datasets="a dataset that the names of metrics end with, such as dev in accuracy_dev; may be repeated",
    )
    parser.add_argument("--tracking-uri", type=path, metavar="URI", help="only for mlflow: as for accmt replay")


def run(options: argparse.Namespace) -> int:
    """Try all settings and print what they would have saved.

    Raises:
        CommandError: If no training can be read, or the rules do not fit them.
    """
    _check_picture(options.output)
    mistakes = Mistakes()
    rules = parsed(SavingRule.parse, options.rules, mistakes)
    mistakes.tell()
    sources = dict(_opened(options))
    settings: list[Setting] = []
    for rule in rules or _recorded(list(sources.values())):
        settings += _swept(rule, options, sources)
    if options.output is not None:
        _draw(options.output, settings)
    if options.json:
        for setting in settings:
            print_json(dict(zip(_COLUMNS, setting.row, strict=True)))
    elif options.csv:
        rows = [[" ".join(map(str, cell)) if isinstance(cell, tuple) else cell for cell in o.row] for o in settings]
        print_csv([_COLUMNS, *rows])
    else:
        _show(settings)
    return 0


def _opened(options: argparse.Namespace) -> Iterator[tuple[str, Source]]:
    """Yield the trainings by name."""

    def read(name: str) -> Source:
        source = open_source(name, options.metrics, options.datasets, options.tracking_uri)
        source = held_apart(source, ())  # a dataset that is held out since a resume has values from before
        if not any(not observation.initial for observation in source.history.observations):
            raise CommandError(f"{name} has no evaluations yet")
        return source

    return read_all(options.sources, read)


def _recorded(sources: Sequence[Source]) -> list[SavingRule]:
    """Return the rules of the trainings, each once.

    Raises:
        CommandError: They have none.
    """
    described = [source.description for source in sources if source.description is not None]
    savings = [rule for description in described for rule in description.rules.savings]
    rules = {(str(rule.saving), rule.saving_below, rule.saving_above): rule for rule in savings}
    if not rules:
        raise CommandError("the trainings do not have rules of their own: give --rule")
    return list(rules.values())


def _swept(rule: SavingRule, options: argparse.Namespace, sources: Mapping[str, Source]) -> list[Setting]:
    """Try a rule with every `by` and every patience, and without patience, on all trainings that it fits.

    Raises:
        CommandError: It fits none of them.
    """
    variants = [_by(rule, by) for by in options.by or (rule.saving.by,)]
    fitting, misfits = list[Source](), list[CommandError]()
    for name, source in sources.items():
        try:
            for variant in variants:
                check_against(Rules((variant,)), source, f"in {name}:" if len(sources) > 1 else None)
            fitting.append(source)
        except CommandError as error:
            misfits.append(error)
    if not fitting:
        raise misfits[0]
    for misfit in misfits:
        complain(f"left out for {rule.name}: {misfit}")
    trainings = [(s.facts, s.history, [best_of_all(rule, s.facts, s.history)]) for s in fitting]
    settings = []
    for bare in variants:
        for patience in (*options.patience, None):
            patient = replace(bare, patience=patience)
            settings.append(_summary(patient, [tried(Rules((patient,)), *seen)[0] for seen in trainings]))
    fronts = pareto([(setting.steps, setting.lost[0] if setting.lost else math.nan) for setting in settings])
    return [replace(setting, front=front) for setting, front in zip(settings, fronts, strict=True)]


def _by(rule: SavingRule, by: Amount | None) -> SavingRule:
    """Return the rule with another `by`, parsed again so that a mistake in it has a place in its text."""
    text, below, above = str(replace(rule.saving, by=by)), rule.saving_below, rule.saving_above
    return SavingRule.parse(text, name=rule.given_name, saving_below=below, saving_above=above)


def _summary(rule: SavingRule, trials: Sequence[Trial]) -> Setting:
    losses = list(zip(*(trial.lost for trial in trials if trial.lost), strict=True))
    steps, time = fmean(trial.saved for trial in trials), fmean(trial.saved_time for trial in trials)
    return Setting(rule, tuple(trials), steps, time, tuple(map(fmean, losses)), tuple(map(max, losses)))


def _show(settings: Sequence[Setting]) -> None:
    """Print a table, and for each rule the setting that saves most without a loss."""
    shown = table("rule", "by", "patience", "stopped", "steps saved", "time saved", "lost", "most lost", "")
    for setting in settings:
        name, by, patience, stopped, *_ = setting.row
        count = len(setting.trials)
        shares = ["" if math.isnan(share) else f"{share:.0%}" for share in (setting.steps, setting.time)]
        losses = [
            ", ".join(f"{value:.4g}" for value in values) or "no model" for values in (setting.lost, setting.most)
        ]
        cells = (name, by, patience or "none", f"{stopped}/{count}", *shares, *losses, "front" if setting.front else "")
        shown.add_row(*map(escaped, cells))
    rules = dict.fromkeys(_ranking(setting.rule) for setting in settings)
    write_rich(shown, "", *(_advice(name, [o for o in settings if _ranking(o.rule) == name]) for name in rules))


def _advice(rule: str, settings: Sequence[Setting]) -> str:
    whole = [setting for setting in settings if setting.steps and all(trial.lost for trial in setting.trials)]
    free = [setting for setting in whole if max(setting.most) <= 0]
    if not any(setting.steps for setting in settings):
        return f"{rule}: no setting saves steps"
    if not free:
        return f"{rule}: every setting that saves steps loses quality in some training"
    best = max(free, key=lambda setting: setting.steps)
    by = "" if best.rule.saving.by is None else f" by {best.rule.saving.by}"
    return f"{rule}: patience {best.rule.patience}{by} saves {best.steps:.0%} of the steps and loses nothing"


def _ranking(rule: SavingRule) -> str:
    """Return the text of a rule without its `by`, which has a column of its own."""
    return str(replace(rule.saving, by=None))


def _draw(file: str, settings: Sequence[Setting]) -> None:
    from accmt.tracking.plot import Point, draw_trade_off  # imports matplotlib

    lines: dict[str, list[Point]] = {}
    for setting in settings:
        by = "" if setting.rule.saving.by is None else f" by {setting.rule.saving.by}"
        if setting.lost:
            label = "" if setting.rule.patience is None else str(setting.rule.patience)
            point = Point(100 * setting.steps, setting.lost[0], label, setting.front)
            lines.setdefault(_ranking(setting.rule), []).append(replace(point, series=f"{_ranking(setting.rule)}{by}"))
    try:
        draw_trade_off(lines).savefig(file)
    except (OSError, ValueError) as error:
        raise CommandError(f"{file} cannot be written: {error}") from None
    complain(f"the picture is in {file}")


def _check_picture(file: str | None) -> None:
    if file is None:
        return
    if find_spec("matplotlib") is None:
        raise CommandError("a picture needs matplotlib, which is not installed: pip install matplotlib")
    if not os.access(Path(file).absolute().parent, os.W_OK):
        raise CommandError(f"{file} cannot be written: its folder does not exist or is read-only")


def _patiences(text: str) -> tuple[int, ...]:
    """Parse numbers and ranges, such as `1..20` or `2,3,5`."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dots, last = part.partition("..")
        ends = positive(first), positive(last if dots else first)
        if ends[0] > ends[1] or ends[1] > _MOST:
            raise argparse.ArgumentTypeError(f"{part!r} is not a range upwards to at most {_MOST}")
        numbers += range(ends[0], ends[1] + 1)
    return tuple(dict.fromkeys(numbers))


def _amounts(text: str) -> tuple[Amount | None, ...]:
    """Parse least improvements, such as `0,0.001,1%,2se`; 0 is none."""
    try:
        amounts = [parse_saving(f"valid_loss by {part}").by if part.strip("0.") else None for part in text.split(",")]
    except RuleError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of amounts, such as 0,0.001,1%,2se") from None
    return tuple(dict.fromkeys(amounts))
