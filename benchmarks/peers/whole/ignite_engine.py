"""Ignite's engines with its Checkpoint handlers, which replace files at once, but do not flush them."""

from functools import partial
from typing import Any

import torch.nn.functional as F
from ignite.engine import Engine, Events, create_supervised_evaluator
from ignite.handlers import Checkpoint, DiskSaver, ProgressBar
from ignite.metrics import Accuracy, Average, Loss
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from . import CLIP_NORM, EPOCHS, Whole


def train(task: Whole) -> None:
    model, (optimizer, scheduler) = task.model, task.optimizer()

    def step(engine: Engine, batch: Any) -> Tensor:
        inputs, labels = batch
        model.train()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        scheduler.step()
        return loss.detach()

    trainer, bar = Engine(step), ProgressBar()
    saver = partial(Checkpoint, save_handler=DiskSaver(str(task.folder), require_empty=False), n_saved=1)
    Average().attach(trainer, "train_loss")
    bar.attach(trainer)
    for key, loader in task.validation_loaders().items():
        evaluator = create_supervised_evaluator(model, {"loss": Loss(F.cross_entropy), "accuracy": Accuracy()})
        best = saver({"model": model}, filename_prefix=f"best_{key}", score_function=lambda e: -e.state.metrics["loss"])
        evaluator.add_event_handler(Events.COMPLETED, best)
        evaluator.add_event_handler(Events.COMPLETED, lambda e, key=key: bar.log_message(f"{key}: {e.state.metrics}"))
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda _, e=evaluator, loader=loader: e.run(loader) and None)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: bar.log_message(f"{engine.state.metrics}"))
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "trainer": trainer}
    trainer.add_event_handler(Events.EPOCH_COMPLETED, saver(parts, filename_prefix="checkpoint"))
    trainer.run(task.loader(), max_epochs=EPOCHS)
