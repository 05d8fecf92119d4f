"""Description of a training: its metrics, length and rules, in `training.json` next to its history.

It is written before the first step and whenever the training is resumed. With it and the history, the decisions can be
replayed, also with other rules. Does not import torch.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accmt.files.durable import flush, flush_directory
from accmt.files.foreign import MIB, NotAFile, read_bytes
from accmt.rules import CadenceRule, Facts, Length, Reported, RuleError, Rules, SavingRule, StopCondition
from accmt.rules import reserved_names as names
from accmt.rules.codec import from_text, to_text
from accmt.rules.printable import escaped

TRAINING = names.TRAINING
SCHEMA = 1
_LARGEST = 64 * MIB


class DamagedDescription(ValueError):
    """A `training.json` cannot be read; the message names the file and the reason."""


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

    def to_json(self) -> dict[str, Any]:
        facts, rules = self.facts, self.rules
        return {
            "schema": SCHEMA,
            "datasets": list(facts.datasets),
            "metrics": {name: _reported(metric) for name, metric in facts.metrics.items()},
            "training_metrics": dict(facts.training),
            "length": asdict(facts.length),
            "log_every": self.log_every,
            "changes": list(self.changes),
            "rules": {
                "writes": rules.writes,
                "save": [_saving(rule) for rule in rules.savings],
                "checkpoint_every": None if rules.checkpoint is None else rules.checkpoint.text,
                "evaluate_every": None if rules.evaluate is None else rules.evaluate.text,
                "stop_when": [stop.text for stop in rules.stop_when],
            },
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Description:
        """Parse the content of a `training.json`.

        Raises:
            ValueError: It has another format, or a rule in it cannot be parsed.
            KeyError, TypeError, AttributeError: A field is missing, or has another type.
        """
        if data.get("schema") != SCHEMA:
            raise ValueError(f"it has the format {data.get('schema')!r}, not {SCHEMA}")
        rules = data["rules"]
        metrics = {
            name: Reported(tuple(metric["datasets"]), metric["greater_is_better"])
            for name, metric in data["metrics"].items()
        }
        return cls(
            Rules(
                tuple(_read_saving(entry) for entry in rules["save"]),
                tuple(StopCondition.parse(text) for text in rules["stop_when"]),
                _cadence(rules["evaluate_every"]),
                _cadence(rules["checkpoint_every"]),
                rules["writes"],
            ),
            Facts(metrics, tuple(data["datasets"]), Length(**data["length"]), dict(data.get("training_metrics", {}))),
            data["log_every"],
            tuple(data["changes"]),
        )


def write_description(folder: Path, description: Description) -> None:
    """Write the file of a training atomically: it is on the disk when this returns, else the former one still is.

    Raises:
        OSError: It could not be written.
    """
    text = json.dumps(description.to_json(), indent=2, allow_nan=False) + "\n"
    path = folder / TRAINING
    temporary = path.with_name(f"{names.TEMPORARY}{TRAINING}-{uuid.uuid4().hex[:12]}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            flush(file.fileno(), path)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    flush_directory(folder)


def read_description(folder: Path) -> Description | None:
    """Read the description of the training in a folder; None if there is no such file.

    Raises:
        DamagedDescription: The file cannot be read.
    """
    path = folder / TRAINING
    if not path.is_file():
        return None
    try:
        return Description.from_json(json.loads(read_bytes(path, _LARGEST).decode("utf-8")))
    except NotAFile as error:
        raise DamagedDescription(f"{path} cannot be read: {error.strerror}") from None
    except RuleError as error:
        raise DamagedDescription(f"{path} cannot be read, because a rule in it is not valid:\n{error}") from None
    except (ValueError, RecursionError) as error:
        raise DamagedDescription(f"{path} cannot be read: {escaped(error)}") from None
    except (KeyError, TypeError, AttributeError) as error:
        text = f"{path} does not describe a training: {type(error).__name__}: {escaped(error)}"
        raise DamagedDescription(text) from None


def _reported(metric: Reported) -> dict[str, Any]:
    return {"datasets": list(metric.datasets), "greater_is_better": metric.greater_is_better}


def _saving(rule: SavingRule) -> dict[str, Any]:
    limits = {"saving_below": rule.saving_below, "saving_above": rule.saving_above}
    return {
        "rule": rule.text,
        "name": rule.given_name,
        "patience": rule.patience,
        **{key: None if value is None else to_text(value) for key, value in limits.items()},
    }


def _read_saving(entry: Mapping[str, Any]) -> SavingRule:
    below, above = (None if entry[key] is None else from_text(entry[key]) for key in ("saving_below", "saving_above"))
    return SavingRule.parse(
        entry["rule"], name=entry["name"], patience=entry["patience"], saving_below=below, saving_above=above
    )


def _cadence(text: str | None) -> CadenceRule | None:
    return None if text is None else CadenceRule.parse(text)
