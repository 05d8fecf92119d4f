"""Settings of a script as a checkpoint records them, so that a resume can report what has changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

from accmt.hyperparameters.arguments import signature_arguments
from accmt.hyperparameters.optimizers import OPTIMIZERS
from accmt.hyperparameters.recorded import recorded
from accmt.hyperparameters.schedulers import SCHEDULERS
from accmt.module import AcceleratorModule
from accmt.setup.options import Options

NOT_COMPARED = ("hps_config", "model_path", "resume", "kwargs")
"""Arguments not compared as settings: the folder of the training, and those whose contents are compared one by one."""


def configuration(options: Options, module: AcceleratorModule) -> dict[str, Any]:
    """Return a flat JSON mapping of settings: hyperparameters, arguments, and the rules in force."""
    arguments = {name: value for name, value in options.given.items() if name not in NOT_COMPARED}
    arguments |= _in_force(options)
    return {
        **dict(_hyperparameters(options, module)),
        **dict(_flat(arguments)),
        **dict(_flat({"kwargs": options.given.get("kwargs", {})})),
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
    """Return the rules in force, including rules that the arguments leave to the configuration file."""
    rules, every = options.rules, options.checkpoint.every
    force: dict[str, Any] = {"stop_when": [stop.text for stop in rules.stop_when]}
    if options.given.get("evaluate_every_n_steps") is None:
        force["evaluate_every"] = rules.evaluate.text
    if every is not None:
        force["checkpoint_every"] = every.text
    return force


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Flatten nested mappings into dotted names."""
    for name, value in values.items():
        plain = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
        if isinstance(plain, Mapping):
            yield from _flat(recorded(plain), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", recorded(plain)
