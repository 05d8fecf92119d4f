"""Making a model ready for the device and the processes of a training, and giving it back as it was."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from accmt.loop.step import REPLICATED
from accmt.module import AcceleratorModule
from accmt.options import ModelOptions


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
    """The model of a module for the time of a training: afterwards model and teacher are what they were."""
    model, teacher = module.model, module.teacher
    try:
        yield model
    finally:
        module.model, module.teacher = model, teacher


def prepare(module: AcceleratorModule, optimizer: Any, options: ModelOptions) -> Prepared:
    """Prepare model, teacher and optimizer, and let the module use the wrapped model, or the bare one if it shall."""
    own, accelerator = module.model, module.accelerator
    if options.gradient_checkpointing:
        enable: Any = own.gradient_checkpointing_enable
        enable(gradient_checkpointing_kwargs=options.gradient_checkpointing_kwargs)
    with _quietly(not options.logs_preparation):
        model, optimizer = accelerator.prepare(own, optimizer)
    bare = own if accelerator.distributed_type in REPLICATED else model
    if module.teacher is not None:
        module.teacher = _compiled(module.teacher.to(accelerator.device).eval().requires_grad_(False), options)
    trained = _compiled(model, options)
    evaluated = trained if bare is model else _compiled(bare, options)
    module.model = trained if options.through_wrapper else evaluated
    return Prepared(model, evaluated, optimizer)


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
