"""What `predict` calls for each batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from accmt.distributed.weight_names import unwrapped
from accmt.module import AcceleratorModule
from accmt.setup.method_check import PREDICTS, overrides
from accmt.setup.options import Options
from accmt.setup.plain_module import PlainModule
from accmt.setup.pretrained import resolve

_WRITE = "write predict_step(self, batch), such as: return {}({})"


def as_predicting(given: Any, options: Options) -> Any:
    """Return the module for what `predict` was given, anything that `fit` takes.

    Raises:
        ConfigError: It cannot be loaded.
    """
    # In a callback, the training needs its own PlainModule.
    module = given.model if isinstance(given, PlainModule) else resolve(given, {}, options)
    is_plain = isinstance(module, nn.Module) and not isinstance(module, AcceleratorModule)
    return PlainModule(module, None, ()) if is_plain else module


def prediction_step(module: AcceleratorModule) -> Callable[[Any], Any]:
    """Return what predicts a batch: `predict_step` of the module, or else its `forward`."""
    if overrides(module, AcceleratorModule, PREDICTS):
        return module.predict_step
    # The batches of a plain module may hold a target, as those of `fit` do.
    return partial(_called_with, module, drops_target=isinstance(module, PlainModule))


def _called_with(module: AcceleratorModule, batch: Any, *, drops_target: bool) -> Any:
    """Call the forward pass of a module with a batch: a dictionary by name, else the only item.

    `drops_target` leaves out the last of several items, and an entry of a dictionary that forward does not take.

    Raises:
        TypeError: The batch may hold a target.
    """
    is_own = overrides(module, AcceleratorModule, "forward")
    forward, called = (module.forward, "self") if is_own else (unwrapped(module.model).forward, "self.model")
    items = list(batch) if isinstance(batch, tuple | list) else [batch]
    items = items[:-1] if drops_target and len(items) > 1 else items
    if len(items) == 1 and isinstance(items[0], Mapping):
        parameters = inspect.signature(forward).parameters
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        taken = {name: value for name, value in items[0].items() if takes_all or name in parameters}
        if left := [str(name) for name in items[0] if name not in taken][drops_target:]:
            inputs = ", ".join(f"{name}=batch[{name!r}]" for name in taken) or f"batch[{left[0]!r}]"
            text = f"forward takes {', '.join(parameters)}, and the batch also has {', '.join(left)}"
            raise TypeError(f"{text}: {_WRITE.format(called, inputs)}")
        return module(**taken)
    if len(items) > 1 and not drops_target:
        text = f"a batch has {len(items)} parts, and {type(module).__name__} does not say which of them are inputs"
        raise TypeError(f"{text}: {_WRITE.format(called, 'batch[0]')}")
    return module(*items)
