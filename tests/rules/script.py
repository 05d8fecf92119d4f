"""Reader of the scripts in tests/cases: load values, state rules, expect decisions.

metric accuracy max on dev test      # a metric, its direction, where it is reported
accuracy@dev: .5 .6 .7               # one value per evaluation ("nan", "inf", "-" for not reported)
spread accuracy: .02 .02 .01         # replicates of these values: independent, with these standard deviations
replicates accuracy 2: .5 .6 nan     # or given, for an evaluation
epoch_steps 10                       # optional: steps of an epoch (default 10, one evaluation an epoch)
rule patience 2 best_accuracy        # also: below X, above X
    stop_when accuracy > 0.9             # optional
saves 1 3
stops 5                              # or: stops never
outcome 2 not better                 # optional
reason 2 0.6 beats 0.5, saved        # optional
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from accmt.rules import (
    Facts,
    Length,
    Observation,
    Progress,
    Reported,
    RuleEngine,
    Rules,
    SavingRule,
    StopCondition,
    check,
)

REPLICATES = 16  # more than evaluations of a case, so that the signs of each two are uncorrelated


@dataclass
class Case:
    """One rule over one history, and what is expected of it."""

    where: str
    text: str
    options: dict[str, float]
    stop_when: list[str]
    metrics: dict[str, tuple[bool, tuple[str, ...]]]
    series: dict[str, list[str]]
    epoch_steps: int
    saves: list[int] | None = None
    stops: int | None = None
    outcomes: dict[int, str] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)

    @property
    def evaluations(self) -> int:
        return max(len(column) for name, column in self.series.items() if not name.startswith("replicates "))

    def facts(self) -> Facts:
        datasets = tuple(dict.fromkeys(d for _, on in self.metrics.values() for d in on))
        metrics = {name: Reported(on, greater) for name, (greater, on) in self.metrics.items() if on}
        return Facts(metrics, datasets, Length(self.evaluations * self.epoch_steps, self.epoch_steps))

    def decisions(self):
        facts = self.facts()
        options = {key: int(value) if key == "patience" else value for key, value in self.options.items()}
        rule = SavingRule.parse(self.text, **options)
        rules = Rules((rule,), tuple(StopCondition.parse(text) for text in self.stop_when))
        check(rules, facts)
        engine = RuleEngine(rules, facts)
        for number in range(1, self.evaluations + 1):
            progress = Progress(step=number * self.epoch_steps, epoch=number, evaluation=number, elapsed=60.0 * number)
            values, replicates, train_loss = {}, {}, float("nan")
            for measure, column in self.series.items():
                if measure.startswith(("spread ", "replicates ")):
                    continue
                metric, _, dataset = measure.partition("@")
                if number > len(column) or column[number - 1] == "-":
                    continue
                if metric == "train_loss":
                    train_loss = float(column[number - 1])
                    continue
                for key in [dataset] if dataset else self.metrics[metric][1]:
                    values.setdefault(key, {})[metric] = float(column[number - 1])
                    if (found := self.replicates(measure, number)) is not None:
                        replicates.setdefault(key, {})[metric] = found
            yield engine.after_evaluation(Observation(progress, values, train_loss, replicates=replicates))

    def replicates(self, measure, number):
        """The replicates of a measure in an evaluation: given, or independent of those of every other evaluation."""
        if (given := self.series.get(f"replicates {measure} {number}")) is not None:
            return tuple(map(float, given))
        spread = self.series.get(f"spread {measure}", [])
        if number > len(spread) or spread[number - 1] == "-":
            return None
        signs = [(-1) ** (number & r).bit_count() for r in range(REPLICATES)]
        return tuple(float(self.series[measure][number - 1]) + sign * float(spread[number - 1]) for sign in signs)


def read(path: Path) -> list[Case]:  # noqa: C901  (one branch a word of the script)
    """All cases of a script. Values and metrics hold until they are stated again."""
    cases: list[Case] = []
    metrics: dict[str, tuple[bool, tuple[str, ...]]] = {}
    series: dict[str, list[str]] = {}
    epoch_steps = 10
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        words = line.split("#")[0].split()
        if not words:
            continue
        if match := re.fullmatch(r"(\S+|spread \S+|replicates \S+ \d+):(.*)", " ".join(words)):
            if cases and cases[-1].series is series:
                series = dict(series)
            series[match[1]] = match[2].split()
            continue
        match words:
            case ["metric", name, direction, "on", *datasets]:
                if cases and cases[-1].series is series:
                    metrics, series = {}, {}
                metrics[name] = (direction == "max", tuple(datasets))
            case ["epoch_steps", count]:
                epoch_steps = int(count)
            case ["rule", *rest]:
                options = {}
                while rest and rest[0] in ("patience", "below", "above"):
                    key = rest[0] if rest[0] == "patience" else f"saving_{rest[0]}"
                    options[key] = float(rest[1])
                    rest = rest[2:]
                where = f"{path.stem}:{number}"
                cases.append(Case(where, " ".join(rest), options, [], dict(metrics), series, epoch_steps))
            case ["stop_when", *rest]:
                cases[-1].stop_when.append(" ".join(rest))
            case ["saves", *evaluations]:
                cases[-1].saves = [int(e) for e in evaluations]
            case ["stops", when]:
                cases[-1].stops = 0 if when == "never" else int(when)
            case ["outcome", evaluation, *rest]:
                cases[-1].outcomes[int(evaluation)] = " ".join(rest)
            case ["reason", evaluation, *rest]:
                cases[-1].reasons[int(evaluation)] = " ".join(rest)
            case _:
                raise ValueError(f"{path}:{number}: cannot read {line!r}")
    return cases
