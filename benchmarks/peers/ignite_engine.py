"""Ignite's Engine around a step written by hand, with its ProgressBar."""

import torch.nn.functional as F
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from . import Run
from .measure import Measurement
from .task import Task, make_dataset, make_loader, make_model, make_optimizer


def train(task: Task) -> Run:
    dataset = make_dataset(task)
    model = make_model(task)
    loader = make_loader(task, dataset)
    optimizer = make_optimizer(task, model)

    def step(engine: Engine, batch: list[Tensor]) -> Tensor:
        inputs, labels = batch
        model.train()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        clip_grad_norm_(model.parameters(), task.clip_norm)
        optimizer.step()
        return loss.detach()

    engine = Engine(step)
    if task.bar:
        ProgressBar().attach(
            engine,
            output_transform=lambda loss: {"loss": loss.item()},
            event_name=Events.ITERATION_COMPLETED(every=task.log_every),
        )

    with Measurement(model) as measurement:
        engine.run(loader, max_epochs=task.epochs)
    return measurement.run(dataset)
