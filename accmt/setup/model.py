"""Preparing a model for the device and the processes of a training, and restoring it afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import distributed as dist
from torch import nn

from accmt._compat import SET_ON_MODELS, dtensors_looked_for_if_imported
from accmt.callbacks import Callback
from accmt.checkpoint.object_state import Attributes, attributes_of
from accmt.checkpoint.optimizer_state import held_by
from accmt.distributed.ddp_buckets import settle_buckets
from accmt.distributed.strategy import holds_replicas, is_deepspeed
from accmt.module import AcceleratorModule
from accmt.notices import without_information
from accmt.setup.options import ModelOptions

# Attributes that a training or an evaluation sets on a module and on callbacks while it uses them.
_SET_ON_MODULES = {"state", "device", "accelerator", "tracker"}
_SET_ON_CALLBACKS = {"module", "trainer", "state"}


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model in the forms used while it is trained.

    Attributes:
        model: The model as Accelerate prepared it, in the engine's wrapper if there is one.
        evaluated: The model to call in an evaluation. With replicated processes it is the bare model, because they see
            different numbers of batches.
        optimizer: The prepared optimizer.
    """

    model: nn.Module
    evaluated: nn.Module
    optimizer: Any


@contextmanager
def lent(module: AcceleratorModule) -> Iterator[nn.Module]:
    """Yield the module's model for a training; afterwards restore it to its unwrapped state."""
    model, teacher = module.model, module.teacher
    own = {name: model.__dict__[name] for name in SET_ON_MODELS if name in model.__dict__}
    try:
        yield model
    finally:
        for name in SET_ON_MODELS:
            model.__dict__.pop(name, None)
        model.__dict__.update(own)
        module.model, module.teacher = model, teacher


@contextmanager
def left_in_place(module: AcceleratorModule) -> Iterator[None]:
    """Move all networks of a module back after the block to where they were."""
    found = attributes_of(module, module.model)
    networks = (module.model, *([] if module.teacher is None else [module.teacher]))
    own = [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]
    places = [(tensor, tensor.device) for tensor in (*own, *found.tensors())]
    try:
        yield
    finally:
        for tensor, device in places:
            if tensor.device != device:
                tensor.data = tensor.data.to(device)


@contextmanager
def returned(module: AcceleratorModule, callbacks: Sequence[Callback], *, is_due: bool) -> Iterator[None]:
    """Restore a module and callbacks to the surrounding training, if there is one, after an evaluation."""
    borrowed = [(module, _SET_ON_MODULES), *((callback, _SET_ON_CALLBACKS) for callback in callbacks)]
    own = [{name: vars(one)[name] for name in names if name in vars(one)} for one, names in borrowed]
    try:
        yield
    finally:
        for (one, names), attributes in zip(borrowed, own, strict=True) if is_due else ():
            for name in names & vars(one).keys():
                delattr(one, name)
            vars(one).update(attributes)


def prepare(module: AcceleratorModule, optimizer: Any, options: ModelOptions, *, through_wrapper: bool) -> Prepared:
    """Prepare model, teacher and optimizer, and give the module the wrapped model, or the bare one.

    A model in evaluation mode is set to training mode; if only submodules are in evaluation mode, they stay in it.
    """
    own, accelerator = module.model, module.accelerator
    if not own.training:
        own.train()  # `from_pretrained` of transformers returns models in evaluation mode
    if options.gradient_checkpointing:
        _enable_checkpointing(own, options.gradient_checkpointing_kwargs)
    with nullcontext() if options.logs_preparation else without_information(), dtensors_looked_for_if_imported():
        model, optimizer = accelerator.prepare(own, optimizer)
    settle_buckets(model)
    _prepare_beside(module, own, optimizer)
    bare = own if holds_replicas(accelerator) else model
    prepare_teacher(module, options)
    trained = _compiled(model, options)
    evaluated = trained if bare is model else _compiled(bare, options)
    module.model = trained if through_wrapper else evaluated
    return Prepared(model, evaluated, optimizer)


def configure(accelerator: Accelerator, batch_size: int, norm_limit: float | None, *, is_managed: bool) -> None:
    """Configure an engine that makes whole optimizer steps itself. Call it before `prepare`.

    Args:
        accelerator: The accelerator.
        batch_size: Samples in a batch of one process.
        norm_limit: The maximum norm of all gradients; None for no clipping.
        is_managed: Whether the loop says at each batch if more follow before the step; False for a module that makes
            its own steps.
    """
    if not is_deepspeed(accelerator):
        return
    config = accelerator.deepspeed_plugin.deepspeed_config
    config["train_micro_batch_size_per_gpu"] = batch_size
    config["train_batch_size"] = batch_size * accelerator.num_processes
    config["gradient_accumulation_steps"] = 1  # the loop divides the loss
    config["gradient_clipping"] = 0.0 if norm_limit is None else norm_limit
    config["managed_gradient_accumulation"] = is_managed
    # Otherwise Accelerate replaces an offloaded optimizer by an Adam of DeepSpeed, without most of its arguments.
    config["zero_force_ds_cpu_optimizer"] = False
    if not is_managed:
        config["zero_optimization"]["overlap_comm"] = False  # cannot be combined


def _enable_checkpointing(model: Any, kwargs: dict[str, Any] | None) -> None:
    """Enable gradient checkpointing, by its new name if it exists: transformers warns about the old one."""
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=kwargs)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)


def _prepare_beside(module: AcceleratorModule, model: nn.Module, optimizer: Any) -> None:
    """Move networks and parameters besides the model to the device, set the trained networks to training mode, and
    broadcast the main process's values to all."""
    found = place_beside(module, model)
    held = set(map(id, held_by(optimizer)))
    for network in found.networks.values():
        if not network.training and any(id(parameter) in held for parameter in network.parameters()):
            network.train()
    if holds_replicas(module.accelerator):
        for tensor in found.tensors():
            dist.broadcast(tensor.detach(), src=0)


def place_beside(module: AcceleratorModule, model: nn.Module) -> Attributes:
    """Move networks and parameters that a module has besides its model to its device."""
    found = attributes_of(module, model)
    for network in found.networks.values():
        network.to(module.accelerator.device)
    for parameter in found.loose.values():
        parameter.data = parameter.data.to(module.accelerator.device)
    return found


def prepare_teacher(module: AcceleratorModule, options: ModelOptions) -> None:
    """Move the teacher, if there is one, to the device, in evaluation mode and without gradients."""
    if module.teacher is not None:
        teacher = module.teacher.to(module.accelerator.device).eval().requires_grad_(False)
        module.teacher = _compiled(teacher, options)


def _compiled(model: nn.Module, options: ModelOptions) -> nn.Module:
    if options.compile_kwargs is None:
        return model
    compiled: Any = torch.compile(model, **options.compile_kwargs)
    return compiled  # type: ignore[no-any-return]  # a compiled module is a module
