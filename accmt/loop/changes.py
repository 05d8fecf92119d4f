"""Comparison of the settings and data of a resumed training with those of its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from accmt.checkpoint.format import Mismatch
from accmt.config.errors import ConfigError, Problem
from accmt.data.identity import difference, identify_dataset
from accmt.data.loaders import TrainingData
from accmt.distributed.collective import from_main
from accmt.loop.learning_rate import Count
from accmt.loop.run import Run
from accmt.loop.settings_record import changes


def know_data(record: dict[str, Any], data: TrainingData, device: torch.device) -> None:
    """Add the identity of the training data to a record. Call it on all processes."""
    record["data"] = from_main(lambda: identify_dataset(data.loader.dataset, device))


def compare(run: Run, trainer: Mapping[str, Any]) -> list[str]:
    """Compare settings and data with those of a checkpoint, and advance the schedule to the current position.

    Position and engine are restored already; the model is not changed.

    Returns:
        The changes, one line each.

    Raises:
        Mismatch, ConfigError: The training cannot be continued with the current settings or data.
    """
    then, position = trainer.get("configuration") or {}, run.position
    lines = changes(then["settings"], run.record["settings"]) if then else []
    said = {line.split(" was ")[0] for line in lines}
    other = other_data(run.record, trainer)
    if other and not run.insists and run.engine.standing_stop(position.progress(trainer["elapsed"])) is not None:
        raise finished_on(other)
    if then and position.is_within_epoch and not other and then["order"] != run.record["order"]:
        raise Mismatch(_OTHER_ORDER)
    count = Count(position.step, position.epoch, position.passed_end, position.is_finished)
    former = {"groups": then["groups"], "schedule": then["schedule"]} if then else None
    state = trainer["parts"].get("scheduler") or {}
    for line in run.schedule.prepare(former, state, trainer["kinds"].get("scheduler", ""), count):
        if line.split(" was ")[0].split(" of parameter group ")[0] not in said:
            lines.append(line)
    return lines + ([f"the training data are not those of the checkpoint: {other}"] if other else [])


_OTHER_ORDER = (
    "the checkpoint was made in the middle of an epoch, and the samplers of the training data are others now "
    "(shuffle_train, sampler, or those of get_train_dataloader): samples would be trained on twice, or never. "
    "Nothing was loaded.\n"
    "Put them back for the rest of the epoch, continue from a checkpoint at the end of an epoch, "
    "or start from scratch with resume=False."
)


def other_data(record: Mapping[str, Any], trainer: Mapping[str, Any]) -> str:
    """Describe how the data differ from those of a checkpoint; empty if no difference is known."""
    then = trainer.get("configuration")
    return difference(then["data"], record["data"]) if then else ""


def finished_on(other: str) -> ConfigError:
    """Return the error for a training that would do nothing, and return a model trained on other data."""
    text = (
        f"holds a training that is finished, on other data ({other}): nothing would be trained. "
        f"Give another model_path to train on these, resume=False to start from scratch here, "
        f"or resume=True (or more epochs) to continue that training all the same"
    )
    return ConfigError([Problem("model_path", text)], "fit(...)")
