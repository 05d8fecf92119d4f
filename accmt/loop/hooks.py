"""Calls of the user's callbacks and steps, made so that an exception says where it was raised."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from accmt.callbacks import HOOKS, Callback
from accmt.data.description import describe_batch
from accmt.distributed.weight_names import unwrapped
from accmt.loop.out_of_memory import is_out_of_memory
from accmt.states import TrainingState
from accmt.tracebacks import is_mistake

_Batch = TypeVar("_Batch")
TRAINING_DATA = "the training data"


class Hooks(Callback):
    """All callbacks as one: `hooks.on_epoch_end()` calls every callback that overrides it, in order."""

    def __init__(self, callbacks: Sequence[Callback], state: TrainingState) -> None:
        for name in HOOKS:
            own = getattr(Callback, name)
            overriding = [c for c in callbacks if getattr(getattr(c, name), "__func__", None) is not own]
            if overriding:
                setattr(self, name, _calling(name, overriding, state))

    def calls(self, name: str) -> bool:
        """Return whether a callback overrides a hook."""
        return name in vars(self)


def _calling(name: str, callbacks: list[Callback], state: TrainingState) -> Callable[..., None]:
    calls = [(getattr(callback, name), f"{type(callback).__name__}.{name}") for callback in callbacks]

    def call(*arguments: Any) -> None:
        for function, described in calls:
            try:
                function(*arguments)
            except Exception as error:
                add_note(error, described, state)
                raise

    return call


def name_of_step(module: Any, step: str) -> str:
    """Name a step of a user's module, or of a user's model in a module of accmt."""
    if type(module).__module__.startswith("accmt."):
        return f"{step} of {type(unwrapped(module.model)).__name__}"
    return f"{type(module).__name__}.{step}"


class noted:  # a context manager, as a class because entering one of contextlib takes longer
    """Add a note to an exception from the block, saying where it was raised; see `add_note`."""

    def __init__(self, where: str, state: TrainingState | None, batch: Any = None) -> None:
        self._place = where, state, batch

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, Exception):
            add_note(error, *self._place)


def loading(batches: Iterable[_Batch], data: str, state: TrainingState) -> Iterator[_Batch]:
    """Yield batches; an error in loading one gets a note, and a hint if its samples could not be stacked."""
    try:
        yield from batches
    except Exception as error:
        add_note(error, f"loading a batch of {data}", state)
        if _is_of_default_collate(error):
            error.add_note("samples that cannot be stacked need a collate_fn: give one to the trainer or the module")
        raise


def _is_of_default_collate(error: Exception) -> bool:
    """Return whether torch's default_collate raised an error, here or in a worker, whose traceback is in the text."""
    names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    return "default_collate" in names or "in default_collate\n" in str(error)


def add_note(error: BaseException, where: str, state: TrainingState | None, batch: Any = None) -> None:
    """Add a note to an exception, saying where it was raised, unless it has one already, and at which step, if any.

    Another one describes the batch of the step that raised it, if one is given: they may not fit each other.
    """
    if not any(note.startswith("raised in ") for note in getattr(error, "__notes__", ())):
        when = "" if state is None else f", epoch {state.epoch + 1}, step {state.global_step}"
        error.add_note(f"raised in {where}{when}")
        if batch is not None and not is_mistake(error):
            with suppress(Exception):  # a description must not hide the error
                described = describe_batch(batch)
                error.add_note(f"its batch: {described}")
                if isinstance(error, AttributeError | TypeError) and re.search(r"\bstr\b", described):
                    error.add_note("texts are not tensors: make tensors of them in the dataset or in a collate_fn")


def tell(hooks: Hooks, error: BaseException) -> None:
    """Call the one hook for this kind of exception."""
    if isinstance(error, Exception) and is_out_of_memory(error):
        hooks.on_cuda_out_of_memory(error)
    elif isinstance(error, RuntimeError):
        hooks.on_runtime_error(error)
    else:
        hooks.on_exception(error)  # type: ignore[arg-type]  # or a SystemExit
