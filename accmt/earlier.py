"""Names of earlier versions, each with what to write now."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Concatenate, NoReturn, ParamSpec, TypeVar

from accmt.tracebacks import concise

_Parameters = ParamSpec("_Parameters")
_Self = TypeVar("_Self")

_RULES = 'declare when to save with trainer.register_model_saving("best_valid_loss"{})'
_ALWAYS = "leave it out: {}"

ARGUMENTS: Mapping[str, str] = {
    "model_saving": _RULES.format(""),
    "model_saving_below": _RULES.format(", saving_below=..."),
    "model_saving_above": _RULES.format(", saving_above=..."),
    "saving_below": _RULES.format(", saving_below=..."),
    "saving_above": _RULES.format(", saving_above=..."),
    "checkpoint": _ALWAYS.format("checkpoints are always below model_path"),
    "checkpoint_path": _ALWAYS.format("checkpoints are always below model_path"),
    "hps_file_dir": "give hps_config",
    "hps_file": "give hps_config",
    "track_with": 'give log_with, such as log_with="mlflow"',
    "tracker": 'give log_with, such as log_with="mlflow"',
    "inference_mode": _ALWAYS.format("evaluations compute no gradients"),
    "callbacks": "give callback, one or a list",
    "handlers": "give callback: on_keyboard_interrupt, on_cuda_out_of_memory and on_exception of a Callback",
    "additional_metrics": "give metrics",
    "samplers": "give sampler, one or a list",
    "shuffle_validation": _ALWAYS.format("validation data are read in their own order"),
    "shuffle_test": _ALWAYS.format("validation data are read in their own order"),
    "report_loss_after_eval": _ALWAYS.format("log_every says when the training loss is logged"),
    "report_train_loss_per_epoch": "give log_every=-1",
    "report_every": "give log_every",
    "verbose": "give quiet=True for warnings only",
    "scale_learning_rate": _ALWAYS.format("give the learning rate itself in the hyperparameters"),
    "accelerator": _ALWAYS.format("the trainer makes it; a module has it as self.accelerator while it is trained"),
    "comparator": "give greater_is_better to the metric",
}
"""Arguments of the trainer."""

NAMES: Mapping[str, str] = {
    "accelerator": "a module has its Accelerator as self.accelerator while it is trained; "
    "elsewhere use accelerate.PartialState",
    "AsyncDiskTracker": 'give the trainer log_with="mlflow"',
    "Evaluator": "call Trainer.evaluate(module, datasets)",
    "Handler": "write a Callback: on_keyboard_interrupt, on_cuda_out_of_memory and on_exception",
    "MLFlow": 'give the trainer log_with="mlflow"',
    "tracker": 'give the trainer log_with="mlflow"; in a module self.tracker is its tracker',
    "utility": "use accelerate.PartialState for ranks and processes, and accmt.decorators to run on one of them",
}
"""Names that could be imported from `accmt`."""


def former(name: str) -> str | None:
    """Return what to write instead of an argument of earlier versions, to continue its name; None for other names."""
    return f"is no longer an argument: {ARGUMENTS[name]}" if name in ARGUMENTS else None


def refuse(name: str) -> NoReturn:
    """Reject the import of a name of an earlier version.

    Raises:
        ImportError: Always; it says what to write now.
    """
    raise ImportError(f"accmt no longer has '{name}': {NAMES[name]}", name=f"accmt.{name}")


def answering(
    **names: str,
) -> Callable[
    [Callable[Concatenate[_Self, _Parameters], None]],
    Callable[Concatenate[_Self, _Parameters], None],
]:
    """Make a constructor reject arguments of earlier versions; `names` maps each to what to write now."""

    def decorate(
        function: Callable[Concatenate[_Self, _Parameters], None],
    ) -> Callable[Concatenate[_Self, _Parameters], None]:
        @concise
        @wraps(function)
        def construct(self: _Self, *args: _Parameters.args, **kwargs: _Parameters.kwargs) -> None:
            for name in kwargs:
                if name in names:
                    raise TypeError(f"{type(self).__name__} no longer has '{name}': {names[name]}")
            function(self, *args, **kwargs)

        return construct  # type: ignore[return-value]  # `self` is passed by position: it has no name here

    return decorate


class Gone:
    """Placeholder for a removed method; accessing it says what to write now.

    Raises:
        AttributeError: On every access.
    """

    def __init__(self, text: str) -> None:
        self._text = text

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = f"{owner.__name__}.{name}"

    def __get__(self, thing: object, kind: type) -> NoReturn:
        raise AttributeError(f"{self._name} no longer exists: {self._text}")
