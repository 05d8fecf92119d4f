"""Trial run, before anything is touched, of everything that a training will write: finds what cannot be written or
would not be trained before the first step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from io import BytesIO
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from accmt.checkpoint.format import ModelParts
from accmt.checkpoint.optimizer_state import held_by
from accmt.checkpoint.serialization import pack
from accmt.checkpoint.tensor_files import tensor_problem
from accmt.config.errors import Problem, raise_problems
from accmt.distributed.strategy import PLAIN
from accmt.distributed.weight_names import by_plain_name
from accmt.loop.trainable_parameters import unheld
from accmt.module import AcceleratorModule
from accmt.rules.errors import listed
from accmt.setup.options import Options

_LISTED = 4


def check_beside(
    options: Options,
    module: AcceleratorModule,
    optimizer: Any,
    parts: ModelParts,
    accelerator: Accelerator,
    *,
    is_ours: bool,
) -> None:
    """Check that the networks and parameters besides a module's model are trained as they should be.

    Args:
        options: The options.
        module: The module.
        optimizer: The unwrapped optimizer.
        parts: The parts of a checkpoint.
        accelerator: The accelerator.
        is_ours: Whether the optimizer comes from the hyperparameters. One from `get_optimizer` may leave parameters
            out on purpose, which is checked once the first gradients exist.

    Raises:
        ConfigError: If they are not.
    """
    owner, kept = type(module).__name__, parts.kept
    everything = kept.parameters()
    beside = kept.found().parameters()
    held = set(map(id, held_by(optimizer)))
    further = {id(value) for one in kept.further_optimizers() for value in held_by(one)}
    lost = [name for name, value in beside.items() if value.requires_grad and id(value) not in held | further]
    problems = [unheld(owner, lost)] if is_ours and lost else []
    trained = listed([name for name, value in beside.items() if id(value) in held], _LISTED)
    if trained and accelerator.distributed_type not in PLAIN:
        engine = accelerator.distributed_type.value
        text = f"{trained} are not part of self.model, and {engine} shards only self.model: move them into self.model"
        problems.append(Problem(owner, text))
    of_others = {name: value for name, value in beside.items() if id(value) in further - held}
    alone = listed([name for name, value in of_others.items() if value.requires_grad], _LISTED)
    if alone and accelerator.num_processes > 1:
        text = (
            f"{alone} are not part of self.model, and an optimizer in an attribute trains them, so that their "
            f"gradients are not averaged over the processes: move them into self.model, or into the optimizer that "
            f"get_optimizer returns"
        )
        problems.append(Problem(owner, text))
    known = {id(value) for value in everything.values()}
    if held - known and (options.checkpoint.enabled or not options.saving.disabled):
        text = (
            f"{type(optimizer).__name__} holds {len(held - known)} parameters that are neither in self.model nor in "
            f"an attribute of {owner}: they would be missing from checkpoints and saved models. Make them an attribute"
        )
        problems.append(Problem("get_optimizer", text))
    raise_problems(problems, "fit(...)")


def check_parts(options: Options, parts: ModelParts) -> None:
    """Check that everything can be serialized as it will be written.

    Raises:
        ConfigError: If something cannot be written or read back; with its name.
    """
    writes, saves = options.checkpoint.enabled, not options.saving.disabled
    if not writes and not saves:
        return
    safe = writes or options.saving.safe_serialization
    state = by_plain_name(parts.model, parts.model.state_dict(keep_vars=True))
    problems = list(_of_weights("model", state, safe))
    if saves:
        problems += _of_saved_extra(state, safe=options.saving.safe_serialization)
    if writes:
        problems += _of_states(parts)
    raise_problems(problems, "fit(...)")


def _of_weights(root: str, state: Mapping[str, Any], safe: bool) -> Iterator[Problem]:
    for name, value in state.items():
        if isinstance(value, Tensor):
            text = tensor_problem(value, safe=safe) or _unloadable(value)
            if text is not None:
                yield Problem(root, f"'{name}' is {text}")


def _of_saved_extra(state: Mapping[str, Any], *, safe: bool) -> Iterator[Problem]:
    extra = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
    for name, value in extra.items():
        if safe:
            text = f"'{name}' is a {type(value).__name__}, which safetensors cannot hold: give safe_serialization=False"
            yield Problem("model", text)
            continue
        try:
            file = BytesIO()
            torch.save(value, file)
            file.seek(0)
            torch.load(file, weights_only=True)
        except Exception as error:
            text = f"'{name}' could not be read back from a saved model: {str(error).strip().splitlines()[0]:.200}"
            yield Problem("model", text)


def _of_states(parts: ModelParts) -> Iterator[Problem]:
    """Report problems of a checkpoint's parts other than the weights of the model."""
    kept = parts.kept
    for part, has, lacks in kept.half():
        yield Problem(type(part).__name__, f"has {has} and no {lacks}: a checkpoint needs both")
    yield from _of_weights("module", kept.networks(), safe=True)
    states: dict[str, Any] = {name: part.state_dict() for name, part in parts.stateful.items()}
    extra = {name: value for name, value in parts.model.state_dict().items() if not isinstance(value, Tensor)}
    shared = kept.shared()
    states |= {"model": extra, "module": shared["extra"]}
    states |= {f"module.{way}": state for way, state in shared["attributes"].items()}
    states |= kept.own()
    for name, state in states.items():
        try:
            _, tensors = pack(state)
        except TypeError as error:
            yield Problem(name, f"its state {error}")
            continue
        for way, tensor in tensors.items():
            text = tensor_problem(tensor)
            if text is not None:
                yield Problem(name, f"'{way}' of its state is {text}")


def _unloadable(tensor: Tensor) -> str | None:
    """Return why values could not be copied into a tensor, or None if they can."""
    repeats = any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    if repeats and not hasattr(tensor, "device_mesh"):
        return "expanded: its elements share memory, so that no value can be loaded into it. Register tensor.clone()"
    return None
