"""Checks of user-written methods: whether the trainer can call them, and whether it ever does."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from accmt.callbacks import HOOKS, Callback
from accmt.config.errors import Problem, must_be
from accmt.module import AcceleratorModule, ExtendedAcceleratorModule

_NEAR = 0.85
_CALLED_BY_USERS = frozenset({"forward", "freeze", "unfreeze", "log", "pad", "status_dict", "summary"})
_COLLATE = ("collate_fn_train", "collate_fn_val")
PREDICTS = "predict_step"
_STATE = ("state_dict", "load_state_dict")

# Names that other trainers, and earlier versions of this one, use.
_OF_MODULES = {
    "collate_fn": "write collate_fn_train and collate_fn_val, or give it to the trainer: Trainer(collate_fn=...)",
    "step": "write training_step(self, batch) and validation_step(self, key, batch)",
    "test_step": "write validation_step(self, key, batch), and call Trainer.evaluate",
    "val_step": "write validation_step(self, key, batch)",
    "configure_optimizers": "write get_optimizer(self) and get_scheduler(self, optimizer, steps_per_epoch, epochs)",
    "train_dataloader": "write get_train_dataloader(self, dataset)",
    "val_dataloader": "write get_validation_dataloader(self, dataset)",
    "get_val_dataloader": "write get_validation_dataloader(self, dataset)",
    "training_epoch_end": "write on_epoch_end(self) of a Callback",
    "validation_epoch_end": "write a Metric, or on_evaluation_end(self) of a Callback",
}
_OF_CALLBACKS = {
    "on_train_start": "on_fit_start",
    "on_train_begin": "on_fit_start",
    "on_train_end": "on_fit_end",
    "on_epoch_begin": "on_epoch_start",
    "on_train_epoch_start": "on_epoch_start",
    "on_train_epoch_end": "on_epoch_end",
    "on_step_begin": "on_before_training_step",
    "on_step_end": "on_after_optimizer_step",
    "on_train_batch_start": "on_before_training_step",
    "on_train_batch_end": "on_after_training_step",
    "on_validation_batch_start": "on_before_validation_step",
    "on_validation_batch_end": "on_after_validation_step",
    "on_validation_start": "on_evaluation_start",
    "on_validation_end": "on_evaluation_end",
    "on_validation_epoch_start": "on_evaluation_start",
    "on_validation_epoch_end": "on_evaluation_end",
    "on_evaluate": "on_evaluation_end",
    "on_save": "on_save_checkpoint",
}


def method_problems(
    module: AcceleratorModule, callbacks: Sequence[Callback], *, predicts: bool = False
) -> list[Problem]:
    """Report methods of a module and of callbacks whose signatures do not match the trainer's calls.

    That of `predict_step` matters only if the module `predicts`: other trainers call it differently.
    """
    problems: list[Problem] = []
    for name in _called(AcceleratorModule) if predicts else (n for n in _called(AcceleratorModule) if n != PREDICTS):
        problems += _method_problems(module, AcceleratorModule, name)
    for name in _COLLATE:
        problems += function_problems(f"{type(module).__name__}.{name}", getattr(module, name, None), ("samples",))
    for callback in callbacks:
        for name in HOOKS:
            problems += _method_problems(callback, Callback, name)
    return list(dict.fromkeys(problems))


def function_problems(place: str, function: Any, arguments: Sequence[str]) -> list[Problem]:
    """Report why a function cannot be called with these positional arguments; nothing for None."""
    if function is None:
        return []
    if not callable(function):
        return [Problem(place, must_be(f"a function of ({', '.join(arguments)})", function))]
    if isinstance(function, type) and any("__call__" in vars(kind) for kind in function.__mro__):
        return [Problem(place, f"is the class {function.__name__}: give an instance")]
    problem = _of_signature(function, arguments)
    return [] if problem is None else [Problem(place, problem)]


def uncalled(module: AcceleratorModule, callbacks: Sequence[Callback], collates: Sequence[Any] = ()) -> list[str]:
    """Warn about methods that look like hooks but are never called, and suggest the right names.

    Args:
        module: The module.
        callbacks: The callbacks.
        collates: The functions that make batches; one of them may be a method of the module.
    """
    warnings: list[str] = []
    given = [id(getattr(function, "__func__", function)) for function in collates]
    for kind, name, method in _methods(module, AcceleratorModule):
        if id(getattr(method, "__func__", method)) not in given and (hint := _hint_for_module(module, name)):
            warnings.append(f"{kind}.{name} is never called by the trainer: {hint}")
    for name, value in vars(module).items():
        if name.startswith("collate") and callable(value) and id(value) not in given and name not in _COLLATE:
            hint = _hint_for_module(module, name) or _OF_MODULES["collate_fn"]
            warnings.append(f"{type(module).__name__}.{name} is never called by the trainer: {hint}")
    for callback in callbacks:
        for kind, name, _ in _methods(callback, Callback):
            if name in _STATE:
                continue
            near = _OF_CALLBACKS.get(name) or _near(name, (*HOOKS, *_STATE))
            if near or name.startswith("on_"):
                hint = f"write {near}" if near else "there is no such hook (see accmt.callbacks.Callback)"
                warnings.append(f"{kind}.{name} is never called by the trainer: {hint}")
    return list(dict.fromkeys(warnings))


def overrides(thing: Any, base: type, name: str) -> bool:
    """Return whether an object overrides a method of a base class."""
    return getattr(getattr(thing, name, None), "__func__", None) is not getattr(base, name)


def _method_problems(thing: Any, base: type, name: str) -> list[Problem]:
    if not overrides(thing, base, name):
        return []
    own = inspect.signature(getattr(base, name))
    arguments = [parameter for parameter in own.parameters if parameter != "self"]
    place, method = f"{type(thing).__name__}.{name}", getattr(thing, name, None)
    if not callable(method):
        return [Problem(place, f"is not a method: define {_defined(name, arguments)}")]
    problem = _of_signature(method, arguments)
    return [] if problem is None else [Problem(place, f"{problem}: define {_defined(name, arguments)}")]


def _of_signature(function: Callable[..., Any], arguments: Sequence[str]) -> str | None:
    """Return why a function cannot be called with these positional arguments, or None if it can."""
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        return "is asynchronous, and the trainer would not await it"
    if inspect.isgeneratorfunction(function):
        return "contains a yield, and the trainer would not iterate over it"
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None  # some functions written in C have no signature
    called = f"it is called with ({', '.join(arguments)})"
    try:
        signature.bind(*arguments)
    except TypeError:
        return f"takes {_written(signature)}, and {called}"
    places = {name: place for place, name in enumerate(arguments)}
    for place, name in enumerate(list(signature.parameters)[: len(arguments)]):
        if places.get(name, place) != place:
            return f"takes {_written(signature)}, and {called}: the order differs"
    return None


def _written(signature: inspect.Signature) -> str:
    return f"({', '.join(str(p.replace(annotation=p.empty)) for p in signature.parameters.values())})"


def _defined(name: str, arguments: Sequence[str]) -> str:
    return f"{name}({', '.join(('self', *arguments))})"


def _called(base: type) -> tuple[str, ...]:
    """Return the methods of the module's base class that the trainer calls."""
    public = (name for name, value in vars(base).items() if inspect.isfunction(value) and not name.startswith("_"))
    return tuple(name for name in public if name not in _CALLED_BY_USERS)


def _methods(thing: Any, base: type) -> Iterator[tuple[str, str, Any]]:
    """Yield the public methods that the user's classes add to a base class."""
    for kind in type(thing).__mro__:
        if kind.__module__.split(".")[0] in ("accmt", "builtins", "torch", "typing", "abc"):
            continue
        for name, value in vars(kind).items():
            if not name.startswith("_") and not hasattr(base, name) and (callable(value) or hasattr(value, "__func__")):
                yield kind.__name__, name, value


def _hint_for_module(module: AcceleratorModule, name: str) -> str | None:
    if hasattr(ExtendedAcceleratorModule, name) and isinstance(module, ExtendedAcceleratorModule):
        return None
    if name in _OF_MODULES:
        return _OF_MODULES[name]
    hook = name if name in HOOKS else _OF_CALLBACKS.get(name)
    if hook is not None or (name.lower().startswith("on") and (hook := _near(name, HOOKS))):
        return None if isinstance(module, Callback) else f"write {hook} of a Callback, and give it to the trainer"
    near = _near(name, (*_called(AcceleratorModule), *_COLLATE))
    return None if near is None else f"did you mean {near}?"


def _near(name: str, known: Sequence[str]) -> str | None:
    """Return the known name that this one probably misspells, or None."""
    same = (other for other in known if _squashed(other) == _squashed(name))
    return next(same, None) or next(iter(difflib.get_close_matches(name, known, n=1, cutoff=_NEAR)), None)


def _squashed(name: str) -> str:
    """Normalize a name, so that `onEpochEnd` and `on_epoch_end` are equal."""
    return name.replace("_", "").lower()
