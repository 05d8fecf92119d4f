"""Settings and data of a training, as a checkpoint records them: a part whose state is compared at a resume, not
restored, because settings are the script's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

import torch

from accmt.checkpoint.checkpointer import Saved
from accmt.checkpoint.stateful import Mismatch
from accmt.config.errors import ConfigError, Problem
from accmt.data.accumulation import Accumulation
from accmt.data.identity import difference, identify_dataset, order_of
from accmt.data.loaders import TrainingData
from accmt.distributed.collective import from_main
from accmt.hyperparameters.arguments import signature_arguments
from accmt.hyperparameters.optimizers import OPTIMIZERS
from accmt.hyperparameters.recorded import changes, recorded
from accmt.hyperparameters.schedulers import SCHEDULERS
from accmt.loop.learning_rate import ResumedAt, Schedule
from accmt.loop.progress import TrainingPosition
from accmt.module import AcceleratorModule
from accmt.monitor import Monitor
from accmt.rules import RuleEngine
from accmt.rules.codec import Count, from_plain_at
from accmt.setup.options import Options
from accmt.tracking.tracker import flat

NOT_COMPARED = ("hps_config", "model_path", "resume", "kwargs", "patience", "profile", "quiet", "report")
"""Arguments not compared as settings: the folder of the training, those whose contents are compared one by one, the
patience, whose changes the rules report, and the profile, quiet and the report, which change no result."""


@dataclass(frozen=True, slots=True)
class _Group:
    parameters: str
    settings: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Schedule:
    per_epoch: bool
    length: list[Count | None] | None
    kind: str
    state: dict[str, Any]
    functions: list[Any]
    parts: list[Any]


@dataclass(frozen=True, slots=True)
class _Data:
    type: str
    length: Count | None
    samples: str | None


@dataclass(frozen=True, slots=True)
class _State:
    settings: dict[str, Any]
    data: _Data | None
    order: list[Any]
    groups: list[_Group]
    schedule: _Schedule | None


class Settings:
    """Settings, data and schedule of a training.

    Args:
        settings: Setting -> value, flat.
        data: The training data.
        schedule: The schedule of the learning rate.
        insists: The user asks to resume with any data.
    """

    def __init__(self, settings: Mapping[str, Any], data: TrainingData, schedule: Schedule, *, insists: bool) -> None:
        self._settings = settings
        self._data = data
        self._identity: dict[str, Any] | None = None
        self._order = order_of(data.samplers)
        self._schedule = schedule
        self._insists = insists

    def know_data(self, device: torch.device) -> None:
        """Find what identifies the training data. Call it on all processes."""
        self._identity = from_main(lambda: identify_dataset(self._data.loader.dataset, device))

    def state_dict(self) -> dict[str, Any]:
        """Return the record."""
        record = {"settings": self._settings, "data": self._identity, "order": self._order}
        return {**record, **self._schedule.record()}

    def check(self, state: Any) -> None:
        """Check that it is a record."""
        from_plain_at("configuration", _State, state)

    def load_state_dict(self, state: Any) -> list[str]:
        """Restore only the seed, which stays in effect: a resume does not seed again."""
        self._settings = {**self._settings, "seed": state["settings"].get("seed")}
        return []

    def compare(self, saved: Saved, position: TrainingPosition, engine: RuleEngine) -> list[str]:
        """Compare settings and data with those of a checkpoint, and step a changed schedule to its position.

        Args:
            saved: The checkpoint.
            position, engine: The position, and the rules as they will be restored.

        Returns:
            The changes, one line each.

        Raises:
            Mismatch, ConfigError: The training cannot be continued with the current settings or data.
        """
        then = saved.shared["configuration"]
        # Earlier checkpoints have only the fields of the monitor that were given.
        seeded = then["settings"].get("seed")
        seed = seeded if self._settings.get("seed") is None else self._settings["seed"]
        current = {**self._settings, "seed": seed}
        lines = changes({**_recorded({"monitor": Monitor()}), **then["settings"]}, current)
        said = {line.split(" was ")[0] for line in lines}
        if seed != seeded:
            lines.append("the seed takes effect with resume=False: a resume keeps the random states and data order")
        other = difference(then["data"], self._identity)
        progress = position.progress(saved.shared["position"]["elapsed"])
        if other and not self._insists and (position.is_finished or engine.standing_stop(progress) is not None):
            raise _finished_on(other)
        if position.is_within_epoch and not other and then["order"] != self._order:
            raise Mismatch(_OTHER_ORDER)
        count = ResumedAt(position.step, position.epoch, position.passed_end, position.is_finished)
        state = saved.model.states.get("scheduler") or {}
        for line in self._schedule.prepare(then, state, count):
            if line.split(" was ")[0].split(" of parameter group ")[0] not in said:
                lines.append(line)
        return lines + ([f"the training data are not those of the checkpoint: {other}"] if other else [])


_OTHER_ORDER = (
    "the checkpoint was made in the middle of an epoch, and the samplers of the training data are different now "
    "(shuffle_train, sampler, or those of get_train_dataloader): samples would be trained on twice, or never. "
    "Nothing was loaded.\n"
    "Restore them for the rest of the epoch, continue from a checkpoint at the end of an epoch, "
    "or start from scratch with resume=False."
)


def _finished_on(other: str) -> ConfigError:
    """Return the error for a training that would do nothing, and return a model trained on other data."""
    text = (
        f"contains a finished training on other data ({other}): nothing would be trained. "
        f"Give another model_path to train on these, resume=False to start from scratch here, "
        f"or resume=True (or more epochs) to continue that training anyway"
    )
    return ConfigError([Problem("model_path", text)], "fit(...)")


def configuration(options: Options, module: AcceleratorModule) -> dict[str, Any]:
    """Return a flat JSON mapping of settings: hyperparameters, arguments, and the rules in force."""
    arguments = {name: value for name, value in options.given.items() if name not in NOT_COMPARED}
    arguments |= _in_force(options)
    return {
        **dict(_hyperparameters(options, module)),
        **_recorded({**arguments, "kwargs": options.given.get("kwargs", {})}),
    }


def _hyperparameters(options: Options, module: AcceleratorModule) -> Iterator[tuple[str, Any]]:
    hps = options.hps
    yield from {"epochs": hps.epochs, "max_steps": hps.max_steps, "batch_size": recorded(hps.batch_size)}.items()
    if type(module).get_optimizer is AcceleratorModule.get_optimizer:
        yield "optimizer", OPTIMIZERS.name_of(hps.optimizer)
        yield from _arguments("optim_kwargs", OPTIMIZERS.resolve(hps.optimizer), hps.optim_kwargs)
    if type(module).get_scheduler is AcceleratorModule.get_scheduler:
        yield "scheduler", None if hps.scheduler is None else SCHEDULERS.name_of(hps.scheduler)
        if hps.scheduler is not None:
            yield from _arguments("scheduler_kwargs", SCHEDULERS.resolve(hps.scheduler), hps.scheduler_kwargs)
    yield "step_scheduler_per_epoch", hps.step_scheduler_per_epoch


def _arguments(group: str, factory: Callable[..., Any], given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the arguments of a factory, including defaults but not what the trainer fills in."""
    known = signature_arguments(factory)
    defaults = {name: value for name, value in known.defaults.items() if not known.awaits(name)}
    for name, value in {**defaults, **given}.items():
        yield f"{group}.{name}", recorded(value)


def _in_force(options: Options) -> dict[str, Any]:
    """Return the monitor and the rules in force, including what the arguments leave to a default or to the file."""
    rules, every = options.rules, options.checkpoint.every
    force: dict[str, Any] = {"monitor": options.loop.monitor, "stop_when": [stop.text for stop in rules.stop_when]}
    force["held_out"] = list(options.held_out)
    force["replicates"] = rules.replicates
    if options.given.get("evaluate_every_n_steps") is None:
        force["evaluate_every"] = rules.evaluate.text
    if isinstance(options.accumulation, Mapping):
        force["grad_accumulation_steps"] = str(Accumulation.of(options.accumulation))
    if every is not None:
        force["checkpoint_every"] = every.text
    return force


def _recorded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Record values, nested ones by dotted names."""
    fields = {name: asdict(one) for name, one in values.items() if is_dataclass(one) and not isinstance(one, type)}
    return flat(recorded({**values, **fields}))
