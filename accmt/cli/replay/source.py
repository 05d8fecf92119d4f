"""Input of a replay, from any kind of source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from accmt.cli.arguments import CommandError, MetricArgument
from accmt.config.errors import did_you_mean
from accmt.rules import Decision, Facts, Observation, Reported
from accmt.rules.printable import escaped
from accmt.rules.replay import History, Need
from accmt.rules.store import VALID_LOSS
from accmt.tracking.training_file import Description


@dataclass(frozen=True, slots=True)
class Source:
    """A recorded training.

    Attributes:
        history: The observations.
        facts: What was reported, with the known directions.
        lacking: Information that the source does not have, and why.
        description: The description that the training wrote, if known.
        decisions: The decisions of the training, if known.
    """

    history: History
    facts: Facts
    lacking: Mapping[Need, str] = field(default_factory=dict)
    description: Description | None = None
    decisions: tuple[Decision, ...] = ()


def facts_seen(
    observations: Sequence[Observation], directions: Sequence[MetricArgument], known: Facts | None = None
) -> Facts:
    """Return what was reported: known facts, completed from the observations and the given directions.

    Raises:
        CommandError: If a direction was given for a metric that never occurs.
    """
    known = known or Facts()
    seen: dict[str, dict[str, None]] = {}
    for observation in observations:
        for dataset, metrics in observation.values.items():
            for metric in metrics:
                seen.setdefault(metric, {})[dataset] = None
    trained = dict.fromkeys(name for observation in observations for name in observation.training)
    given = {metric.name: metric.greater_is_better for metric in directions}
    names = [*(name for name in seen if name != VALID_LOSS), *trained]
    for name in given:
        if name not in names:
            shown = ", ".join(names) or "none"
            raise CommandError(
                escaped(f"--metric {name} was never reported{did_you_mean(name, names)} The metrics are: {shown}")
            )
    reported = dict(known.metrics)
    for name, datasets in seen.items():
        direction = known.metrics[name].greater_is_better if name in known.metrics else None
        direction = False if name == VALID_LOSS else given.get(name, direction)
        before = known.metrics.get(name, Reported((), None))
        on = tuple(dict.fromkeys([*before.datasets, *datasets]))
        reported[name] = Reported(on, direction, before.no_replicates)
    keys = dict.fromkeys([*known.datasets, *(key for datasets in seen.values() for key in datasets)])
    training = {name: given.get(name, known.training.get(name)) for name in dict.fromkeys([*known.training, *trained])}
    return Facts(reported, tuple(keys), known.length, training)
