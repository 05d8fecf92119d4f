"""The optimizer and the scheduler of a training, and checks of what a module's own methods return for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from accelerate import Accelerator
from torch import nn

from accmt.config.errors import must_be, raise_problems
from accmt.data.loaders import TrainingData
from accmt.hyperparameters import ConfigError, Problem
from accmt.hyperparameters.schedulers import NEEDS_METRIC, follows_metric, required_in_step
from accmt.loop.closure import closure_problem
from accmt.loop.learning_rate import Schedule
from accmt.loop.progress import TrainingPosition
from accmt.module import AcceleratorModule
from accmt.rules import Facts, FollowedScore
from accmt.setup.options import Options


def optimizer_of(
    options: Options,
    module: AcceleratorModule,
    data: TrainingData,
    position: TrainingPosition,
    accelerator: Accelerator,
) -> tuple[Any, Schedule, bool]:
    """Return the optimizer, its schedule, and whether the optimizer comes from the hyperparameters."""
    given = module.get_optimizer()
    optimizer = given
    if optimizer is None:
        optimizer = options.hps.build_optimizer(module.model.named_parameters())
    _require_kind("get_optimizer", optimizer, "a torch.optim.Optimizer, or None", ("param_groups", "step", "zero_grad"))
    _check_optimizer(optimizer, options, module, accelerator)

    def length() -> list[int | None]:
        return [position.total_steps, data.steps_per_epoch, position.total_epochs or options.hps.epochs]

    def make() -> Any | None:
        epochs = position.total_epochs or options.hps.epochs
        scheduler = module.get_scheduler(optimizer, data.steps_per_epoch, epochs)
        if scheduler is not None:
            _require_kind("get_scheduler", scheduler, "one scheduler, or None", ("step", "state_dict"))
            return scheduler
        return options.hps.build_scheduler(
            optimizer, steps_per_epoch=data.steps_per_epoch, total_steps=position.total_steps, epochs=epochs
        )

    names = {id(parameter): name for name, parameter in module.model.named_parameters()}
    is_own = type(module).get_scheduler is not AcceleratorModule.get_scheduler
    per_epoch = options.step.scheduler_per_epoch
    schedule = Schedule(optimizer, names, make, length, per_epoch=per_epoch, is_own=is_own)
    return optimizer, schedule, given is None


def _require_kind(method: str, given: Any, wanted: str, names: Sequence[str]) -> None:
    """Check that the return value of a module's method can be used.

    Raises:
        ConfigError: If it cannot.
    """
    if isinstance(given, type) or not all(hasattr(given, name) for name in names):
        raise ConfigError([Problem(method, f"its return value {must_be(wanted, given)}")], "fit(...)")


def _check_optimizer(optimizer: Any, options: Options, module: AcceleratorModule, accelerator: Accelerator) -> None:
    kind = type(optimizer).__name__
    problem = closure_problem(optimizer, module, accelerator)
    if problem is not None:
        raise ConfigError([Problem("optimizer", problem)], "fit(...)")
    if accelerator.device.type in ("cpu", "mps") and any(map(_is_captured, optimizer.param_groups)):
        text = f"of {kind} is for CUDA graphs, and not possible on the device '{accelerator.device.type}': leave it out"
        raise ConfigError([Problem("capturable", text)], "fit(...)")
    sparse = next((layer for layer in module.model.modules() if _has_sparse_gradients(layer)), None)
    if sparse is not None and options.step.norm_limit is not None:
        text = f"the gradients of {type(sparse).__name__} are sparse and have no norm to clip: give clip_grad=None"
        watched = ", and no grad_norm in monitor" if options.step.clip_grad is None else ""
        raise ConfigError([Problem("clip_grad", f"{text}{watched}")], "fit(...)")
    if sparse is not None and options.step.clip_value is not None:
        text = f"the gradients of {type(sparse).__name__} are sparse and cannot be clipped: leave it out"
        raise ConfigError([Problem("clip_grad_value", text)], "fit(...)")
    own = {id(parameter) for parameter in module.model.parameters()}
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not any(id(parameter) in own for parameter in held):
        text = f"{kind} holds no parameter of {type(module).__name__}.model: nothing would be trained"
        raise ConfigError([Problem("get_optimizer", text)], "fit(...)")


def _is_captured(group: Mapping[str, Any]) -> bool:
    """Return whether torch refuses to step a group on devices without graphs; a fused step does not mind."""
    return bool(group.get("capturable")) and not group.get("fused")


def _has_sparse_gradients(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Embedding | nn.EmbeddingBag) and layer.sparse and layer.weight.requires_grad


def check_scheduler(scheduler: Any | None, options: Options, facts: Facts) -> None:
    """Check the metric that the scheduler follows.

    Raises:
        ConfigError, RuleError: With all problems.
    """
    followed, name = options.loop.followed, type(scheduler).__name__
    follows = scheduler is not None and follows_metric(scheduler)
    problems: list[Problem] = []
    if follows and followed is None:
        problems.append(Problem("scheduler_metric", NEEDS_METRIC.format(name)))
    elif not follows and followed is not None:
        text = "there is no scheduler" if scheduler is None else f"{name} does not follow a metric"
        problems.append(Problem("scheduler_metric", f"is given, and {text}: leave it out"))
    elif not follows and scheduler is not None and (required := required_in_step(scheduler)):
        text = f"{name}.step needs {', '.join(required)}, and is called without: use another scheduler"
        problems.append(Problem("scheduler", text))
    elif followed is not None:
        followed.check(facts)
        problems += _followed_problems(followed, scheduler, options, facts)
    raise_problems(problems, "Trainer(...)")


def _followed_problems(followed: FollowedScore, scheduler: Any, options: Options, facts: Facts) -> Iterator[Problem]:
    greater, name = followed.greater_is_better(facts), type(scheduler).__name__
    mode, wanted = getattr(scheduler, "mode", None), "max" if greater else "min"
    if mode in ("min", "max") and mode != wanted:
        text = f"{'higher' if greater else 'lower'} is better for {followed}, and the mode of {name} is '{mode}'"
        yield Problem("scheduler_metric", f"{text}: give it mode='{wanted}'")
    evaluates = str(options.rules.evaluate.cadence)
    if facts.datasets and options.step.scheduler_per_epoch and evaluates != "1 epoch":
        text = f"{name} steps after each evaluation, which comes every {evaluates}: leave it out"
        yield Problem("step_scheduler_per_epoch", text)
