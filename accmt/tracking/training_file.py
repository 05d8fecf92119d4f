"""Description of a training: its metrics, length and rules, in `training.json` next to its history.

It is written before the first step and whenever the training is resumed. With it and the history, the decisions can be
replayed, also with other rules. Does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from accmt.files.durable import flush_directory, replace_file
from accmt.files.json_io import DamagedFile, as_json, read_json
from accmt.rules import CadenceRule, Facts, Length, Reported, Rules, SavingRule, StopCondition
from accmt.rules import reserved_names as names
from accmt.rules.codec import SPARSE, Jsonable

TRAINING = names.TRAINING


@dataclass(frozen=True, slots=True)
class _Saving:
    rule: str
    name: str | None
    patience: int | None
    saving_below: float | None
    saving_above: float | None

    @classmethod
    def of(cls, rule: SavingRule) -> _Saving:
        return cls(rule.text, rule.given_name, rule.patience, rule.saving_below, rule.saving_above)

    def parsed(self) -> SavingRule:
        limits = {"saving_below": self.saving_below, "saving_above": self.saving_above}
        return SavingRule.parse(self.rule, name=self.name, patience=self.patience, **limits)


@dataclass(frozen=True, slots=True)
class _Rules:
    writes: bool
    save: tuple[_Saving, ...]
    checkpoint_every: str | None
    evaluate_every: str | None
    stop_when: tuple[str, ...]

    @classmethod
    def of(cls, rules: Rules) -> _Rules:
        checkpoint, evaluate = (None if rule is None else rule.text for rule in (rules.checkpoint, rules.evaluate))
        stops = tuple(stop.text for stop in rules.stop_when)
        return cls(rules.writes, tuple(map(_Saving.of, rules.savings)), checkpoint, evaluate, stops)

    def parsed(self) -> Rules:
        evaluate, checkpoint = (
            None if text is None else CadenceRule.parse(text) for text in (self.evaluate_every, self.checkpoint_every)
        )
        stops = tuple(map(StopCondition.parse, self.stop_when))
        return Rules(tuple(saving.parsed() for saving in self.save), stops, evaluate, checkpoint, self.writes)


@dataclass(frozen=True, slots=True)
class _Content(Jsonable):
    """Content of the file."""

    schema: Literal[1]
    datasets: tuple[str, ...]
    metrics: Mapping[str, Reported]
    training_metrics: Mapping[str, bool | None]
    length: Length
    log_every: int | str | None
    changes: tuple[str, ...]
    rules: _Rules
    held_out: tuple[str, ...] = field(default=(), metadata=SPARSE)


@dataclass(frozen=True, slots=True)
class Description:
    """Facts of a training known before its first step.

    Attributes:
        rules: Its rules, each with its patience.
        facts: The metrics that it reports, and its length.
        log_every: How often the training logs, as it was given to the trainer.
        changes: What was changed each time it was resumed, in words.
    """

    rules: Rules
    facts: Facts
    log_every: int | str | None
    changes: tuple[str, ...] = ()


def write_description(folder: Path, description: Description) -> None:
    """Write the file of a training atomically: it is on the disk when this returns, else the former one still is.

    Raises:
        OSError: It could not be written.
    """
    facts = description.facts
    rest = (facts.length, description.log_every, description.changes, _Rules.of(description.rules))
    content = _Content(1, facts.datasets, facts.metrics, facts.training, *rest, facts.held_out)
    replace_file(folder / TRAINING, as_json(content.to_json(), indent=2) + "\n")
    flush_directory(folder)


def update_description(folder: Path, description: Description) -> list[str]:
    """Write the file of a resumed training: its changes follow those of earlier resumes.

    Returns:
        What is lost, one line each: the former file may be damaged.
    """
    lost: list[str] = []
    try:
        former = read_description(folder)
    except DamagedFile as error:
        former, lost = None, [f"earlier changes of the settings are not known: {error}"]
    changes = (*(former.changes if former is not None else ()), *description.changes)
    write_description(folder, replace(description, changes=changes))
    return lost


def read_description(folder: Path) -> Description | None:
    """Read the description of the training in a folder; None if there is no such file.

    Raises:
        DamagedFile: The file cannot be read.
    """
    path = folder / TRAINING
    if not path.is_file():
        return None
    content: _Content = read_json(path, _Content)
    facts = Facts(content.metrics, content.datasets, content.length, content.training_metrics, content.held_out)
    try:
        return Description(content.rules.parsed(), facts, content.log_every, content.changes)
    except ValueError as error:
        raise DamagedFile(path, f"a rule in it is not valid:\n{error}") from None
