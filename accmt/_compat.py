"""Private names of other libraries, each with a reason. If none is given, no public name does the same.

No other file uses one, and `tests/test_compat.py` checks for each that it is still there and does what is relied on.
Libraries are imported only by the functions that need them, so that the command line can use this file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial, wraps
from importlib import import_module
from types import MethodType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from torch import Tensor, nn
    from torch.distributed.distributed_c10d import Store
    from torch.optim import Optimizer
    from torch.utils.data import DataLoader


class MessageParser(argparse.ArgumentParser):
    """Parser whose messages go through `write`: argparse prints all messages by one method, which is not public."""

    def write(self, message: str, stream: Any) -> None:
        """Write a message; override it to change messages."""
        super()._print_message(message, stream)

    def option_names(self) -> list[str]:
        """Return the names of all options; argparse has no public list of them."""
        return list(self._option_string_actions)

    def _print_message(self, message: str, file: Any = None) -> None:
        self.write(message, file or sys.stderr)


# torch: `torch.compile` keeps the original module under this name, which is part of the names of its weights.
COMPILED = "_orig_mod"
# torch: rates of schedulers for each parameter group, which `add_param_group` does not extend.
LAST_RATES = "_last_lr"
# torch: mark of an optimizer to which a loss scaler leaves the skipping of steps.
SCALES_ITSELF = "_step_supports_amp_scaling"
# Accelerate: attributes that it sets on a model, to call it in mixed precision and to prepare it only once.
SET_ON_MODELS = ("forward", "_original_forward", "_is_accelerate_prepared")
# torch and DeepSpeed: names of the attributes that they set on the layers that they shard begin like this.
SET_ON_SHARDED_LAYERS = ("_fsdp", "ds_")
# torch and torchdata: attributes of a loader that has started, with their initial values. Neither has a public reset.
BEGUN_LOADER = {"_iterator": None, "next_iter_state": None, "_initial_iter_for_state_dict": False}


# abc: the beginning of the name of the attribute in which it keeps the caches of a class.
ABC_STATE = "_abc_"


def is_compiled(module: nn.Module) -> bool:
    """Return whether a module was made by `torch.compile`; importing its class only for that would be slow."""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    return dynamo is not None and isinstance(module, dynamo.OptimizedModule)


_DISABLED = "__dynamo_disable"  # torch: where a method of optimizers keeps what `torch._dynamo` makes of it


def put_off_dynamo() -> None:
    """Keep the methods of optimizers from importing `torch._dynamo`, which takes longer than a small training and only
    matters to `torch.compile`. Once anything else has imported it, they work as torch has made them."""
    from torch.optim import Optimizer

    for name in ("add_param_group", "load_state_dict", "state_dict", "zero_grad"):
        function = getattr(getattr(Optimizer, name), "__wrapped__", None)
        if function is not None and not hasattr(function, _DISABLED):
            setattr(function, _DISABLED, partial(_undisabled, function))


def step_without_dynamo(optimizer: Optimizer) -> None:
    """Keep the steps of an optimizer of torch from importing `torch._dynamo`, as `put_off_dynamo` does for the rest."""
    from torch.optim import Optimizer

    wrapped = getattr(type(optimizer).step, "__wrapped__", None)  # by the one for profilers and hooks
    step = getattr(wrapped, "__wrapped__", None)  # by `_use_grad_for_differentiable`
    if step is not None and type(optimizer).__module__.startswith("torch.optim."):
        vars(optimizer)["step"] = MethodType(Optimizer.profile_hook_step(_eager(step)), optimizer)


def clip_together(gradients: list[Tensor], most: float) -> Tensor:
    """Clip gradients of one device and dtype to a norm, and return the norm before: the operations of torch's
    `clip_grad_norm_`, which groups and checks the gradients twice, in twice the time of a small model's."""
    import torch

    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients, 2.0)), 2.0)
    torch._foreach_mul_(gradients, torch.clamp(most / (norm + 1e-6), max=1.0))
    return norm


def _undisabled(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a method as long as nothing can be compiled; from then on, as torch does."""
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is None:
        return function(*args, **kwargs)
    from torch.optim import Optimizer

    vars(function).pop(_DISABLED, None)  # another thread may have done it
    return getattr(Optimizer, function.__name__)(*args, **kwargs)


def _eager(step: Callable[..., Any]) -> Callable[..., Any]:
    import torch

    @wraps(step)
    def stepped(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        if "torch._dynamo" in sys.modules:
            return type(optimizer).step.__wrapped__(optimizer, *args, **kwargs)
        with torch.set_grad_enabled(optimizer.defaults["differentiable"]):
            return step(optimizer, *args, **kwargs)

    return stepped


@contextmanager
def dtensors_looked_for_if_imported() -> Iterator[None]:
    """Keep Accelerate from importing the classes of distributed tensors, which takes long, only to find none: whoever
    made one has imported them."""
    from accelerate import accelerator

    asked = accelerator.model_has_dtensor
    accelerator.model_has_dtensor = lambda model: "torch.distributed.tensor" in sys.modules and asked(model)
    try:
        yield
    finally:
        accelerator.model_has_dtensor = asked


def bytes_of(size: str | int) -> int:
    """Parse a size such as "10GB", as huggingface_hub does where it splits weights; a number is one of bytes."""
    from huggingface_hub.serialization._base import parse_size_to_int

    return parse_size_to_int(size) if isinstance(size, str) else size


def own_buffers(module: nn.Module) -> dict[str, Tensor | None]:
    """Return the dictionary of a module's own buffers, to restore it; the public iterators leave out those of None."""
    return module._buffers


def unsaved_buffers(module: nn.Module) -> set[str]:
    """Return the names of a module's own non-persistent buffers."""
    return module._non_persistent_buffers_set


def version_of(tensor: Tensor) -> int:
    """Return how often a tensor was changed in place."""
    return tensor._version


def is_watched(parameter: Tensor) -> bool:
    """Return whether hooks watch the gradient of a parameter."""
    return bool(parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None))


def offset_of(tensor: Any) -> list[int]:
    """Return the offset of this process's shard in the full tensor."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return list(offset)


def schedulers_in(scheduler: Any) -> list[Any]:
    """Return the schedulers that a scheduler of torch combines."""
    return list(getattr(scheduler, "_schedulers", ()))


def has_fused_kernel(optimizer: str, device: str) -> bool:
    """Return whether torch can make fused steps of an optimizer on a kind of device, which depends on its version."""
    import torch

    key = {"cpu": "CPU", "cuda": "CUDA", "mps": "MPS", "xpu": "XPU"}.get(device)
    operation = f"_fused_{optimizer.lower()}_"
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return key is not None and hasattr(torch.ops.aten, operation) and has_kernel(f"aten::{operation}", key)


def end_loader_workers(loader: DataLoader[Any], batches: Any) -> None:
    """Shut down the workers that load batches, even if something still holds them, such as a kept traceback.

    Persistent workers belong to their loader, the others to its iterator. Torch shuts them down only when nothing
    references these any more, and has no public method for it.
    """
    for part in (batches, getattr(loader, "_iterator", None)):
        end = getattr(part, "_shutdown_workers", None) or getattr(part, "close", None)
        if end is not None:
            end()


def collates_by_default() -> bool:
    """Return whether `default_collate` treats tensors, arrays and containers as torch does; a script may extend it."""
    import torch
    from torch.utils.data._utils.collate import collate_tensor_fn, default_collate_fn_map

    stacks = default_collate_fn_map.get(torch.Tensor) is collate_tensor_fn
    return stacks and not {tuple, list, dict} & set(default_collate_fn_map)


def default_store() -> Store:
    """Return the store of the default process group; torch has no public access to it.

    Raises:
        ValueError: The process group is not initialized.
    """
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()


def group_timeout(device: torch.device) -> timedelta:
    """Return the timeout of the process group for a device."""
    from torch import distributed as dist

    assert dist.group.WORLD is not None
    return dist.group.WORLD._get_backend(device).options._timeout


def known_processes() -> int:
    """Return the number of joined processes, 0 before they join; calling `PartialState()` would join them."""
    from accelerate import PartialState

    return int(PartialState._shared_state.get("num_processes", 0))


def reset_accelerator_state() -> None:
    """Make Accelerate accept another precision: it keeps the first Accelerator's for the whole process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()


def accelerator_marks() -> dict[str, Any]:
    """Return the state that all Accelerators share, to mark it: `reset_accelerator_state` removes a mark."""
    from accelerate.state import AcceleratorState

    return AcceleratorState._shared_state  # type: ignore[no-any-return]


@contextmanager
def unbuilt_deepspeed_operation(name: str) -> Iterator[None]:
    """Make DeepSpeed treat an operation as not compilable on this machine, within the block.

    It determines on first access which operations can be, and has no setting for one that must not be.
    """
    known = vars(import_module("deepspeed.ops"))
    former = known.pop("__compatible_ops__", None)
    known["__compatible_ops__"] = {**(former or {}), name: False}
    try:
        yield
    finally:
        del known["__compatible_ops__"]
        if former is not None:
            known["__compatible_ops__"] = former


@contextmanager
def unlisted_models(accelerator: Accelerator) -> Iterator[None]:
    """Let an Accelerator forget the models that it prepares in the block: it has no other way to forget only some."""
    known = list(accelerator._models)
    yield
    accelerator._models[:] = known


def is_auto_class(found: type) -> bool:
    """Return whether a class is one of transformers' `AutoModel...`, whose base has no public name."""
    from transformers.models.auto.auto_factory import _BaseAutoModelClass

    return issubclass(found, _BaseAutoModelClass)


def model_of_config(kind: Any, config: Any) -> Any:
    """Return a new model in the dtype of its configuration, for which only `AutoModel...` have a public method."""
    return kind.from_config(config) if is_auto_class(kind) else kind._from_config(config)


def validated_launch_arguments(arguments: argparse.Namespace) -> Any:
    """Fill in the arguments of `accelerate launch`, as its command does."""
    from accelerate.commands.launch import _validate_launch_command

    return _validate_launch_command(arguments)


def examples_of(dataset: Any) -> Any:
    """Return how an iterable dataset of Hugging Face makes samples, else None."""
    return getattr(dataset, "__dict__", {}).get("_ex_iterable")


def shares_of(dataset: Any) -> int:
    """Return the number of shards of an iterable dataset of Hugging Face."""
    return getattr(getattr(dataset, "_distributed", None), "world_size", 1)


def handlers_of(engine: Any, event: Any) -> int:
    """Return the number of handlers that an engine of Ignite calls for an event, which nothing public says."""
    return len(engine._event_handlers[event])
