"""Making a model ready for the device and the processes of a training, and giving it back as it was."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import distributed as dist
from torch import nn

from accmt.callbacks import Callback
from accmt.checkpoint.attributes import Attributes, attributes_of
from accmt.loop.engines import holds_replicas, is_deepspeed
from accmt.loop.replicas import settle_buckets
from accmt.module import AcceleratorModule
from accmt.options import ModelOptions

# What Accelerate sets on a model itself, to call it in mixed precision, and to prepare it only once.
_REPLACED = ("forward", "_original_forward", "_is_accelerate_prepared")
# What a training or an evaluation sets on a module and on callbacks, for as long as they belong to it.
_SET_ON_MODULES = {"state", "device", "accelerator", "tracker"}
_SET_ON_CALLBACKS = {"module", "trainer", "state"}


@dataclass(frozen=True, slots=True)
class Prepared:
    """The forms of a model while it is trained.

    Attributes:
        model: What Accelerate made of it, in the wrapper of the engine where there is one.
        evaluated: What is called in an evaluation. Where processes hold replicas it is the bare model, because they see
            different numbers of batches.
        optimizer: The prepared optimizer.
    """

    model: nn.Module
    evaluated: nn.Module
    optimizer: Any


@contextmanager
def lent(module: AcceleratorModule) -> Iterator[nn.Module]:
    """The model of a module for the time of a training: afterwards it is called as before, in no wrapper."""
    model, teacher = module.model, module.teacher
    own = {name: model.__dict__[name] for name in _REPLACED if name in model.__dict__}
    try:
        yield model
    finally:
        for name in _REPLACED:
            model.__dict__.pop(name, None)
        model.__dict__.update(own)
        module.model, module.teacher = model, teacher


@contextmanager
def returned(module: AcceleratorModule, callbacks: Sequence[Callback], *, is_due: bool) -> Iterator[None]:
    """Give a module and callbacks back to the training around an evaluation, if there is one, when that is over."""
    borrowed = [(module, _SET_ON_MODULES), *((callback, _SET_ON_CALLBACKS) for callback in callbacks)]
    own = [{name: vars(one)[name] for name in names if name in vars(one)} for one, names in borrowed]
    try:
        yield
    finally:
        for (one, names), attributes in zip(borrowed, own, strict=True) if is_due else ():
            for name in names & vars(one).keys():
                delattr(one, name)
            vars(one).update(attributes)


def prepare(module: AcceleratorModule, optimizer: Any, options: ModelOptions) -> Prepared:
    """Prepare model, teacher and optimizer, and let the module use the wrapped model, or the bare one if it shall.

    A model in evaluation mode goes into training mode; parts of it that alone are in evaluation mode stay there.
    """
    own, accelerator = module.model, module.accelerator
    if not own.training:
        own.train()  # `from_pretrained` of transformers makes models in evaluation mode
    if options.gradient_checkpointing:
        _enable_checkpointing(own, options.gradient_checkpointing_kwargs)
    with _quietly(not options.logs_preparation):
        model, optimizer = accelerator.prepare(own, optimizer)
    settle_buckets(model)
    _prepare_beside(module, own, optimizer)
    bare = own if holds_replicas(accelerator) else model
    prepare_teacher(module, options)
    trained = _compiled(model, options)
    evaluated = trained if bare is model else _compiled(bare, options)
    module.model = trained if options.through_wrapper else evaluated
    return Prepared(model, evaluated, optimizer)


def configure(accelerator: Accelerator, batch_size: int, clip_grad: float | None, *, is_managed: bool) -> None:
    """Tell an engine that makes whole optimizer steps by itself what such a step is. Call it before `prepare`.

    Args:
        accelerator: The accelerator.
        batch_size: Samples in a batch of one process.
        clip_grad: The largest norm of all gradients; None for no clipping.
        is_managed: Whether the loop says at each batch if more follow before the step; a module that makes its steps
            by itself does not.
    """
    if not is_deepspeed(accelerator):
        return
    config = accelerator.deepspeed_plugin.deepspeed_config
    config["train_micro_batch_size_per_gpu"] = batch_size
    config["train_batch_size"] = batch_size * accelerator.num_processes
    config["gradient_accumulation_steps"] = 1  # the loop divides the loss
    config["gradient_clipping"] = 0.0 if clip_grad is None else clip_grad
    config["managed_gradient_accumulation"] = is_managed
    if not is_managed:
        config["zero_optimization"]["overlap_comm"] = False  # not to be had together


def _enable_checkpointing(model: Any, kwargs: dict[str, Any] | None) -> None:
    """By its new name where there is one: transformers warns of the other."""
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=kwargs)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)


def _prepare_beside(module: AcceleratorModule, model: nn.Module, optimizer: Any) -> None:
    """Put networks and parameters beside the model on the device, those that are trained in training mode, and let all
    processes begin with those of the main one."""
    found = place_beside(module, model)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for network in found.networks.values():
        if not network.training and any(id(parameter) in held for parameter in network.parameters()):
            network.train()
    if holds_replicas(module.accelerator):
        for tensor in found.tensors():
            dist.broadcast(tensor.detach(), src=0)


def place_beside(module: AcceleratorModule, model: nn.Module) -> Attributes:
    """Put networks and parameters that a module has beside its model on its device."""
    found = attributes_of(module, model)
    for network in found.networks.values():
        network.to(module.accelerator.device)
    for parameter in found.loose.values():
        parameter.data = parameter.data.to(module.accelerator.device)
    return found


def prepare_teacher(module: AcceleratorModule, options: ModelOptions) -> None:
    """Put the teacher, if there is one, on the device, in evaluation mode and without gradients."""
    if module.teacher is not None:
        teacher = module.teacher.to(module.accelerator.device).eval().requires_grad_(False)
        module.teacher = _compiled(teacher, options)


def _compiled(model: nn.Module, options: ModelOptions) -> nn.Module:
    if options.compile_kwargs is None:
        return model
    compiled: Any = torch.compile(model, **options.compile_kwargs)
    return compiled  # type: ignore[no-any-return]  # a module is compiled to a module


@contextmanager
def _quietly(quiet: bool) -> Iterator[None]:
    """Keep what is less than a warning from being logged."""
    former = logging.root.manager.disable
    if quiet:
        logging.disable(max(former, logging.INFO))
    try:
        yield
    finally:
        logging.disable(former)
