"""Ignite's engines with its Checkpoint handlers, which replace files at once, but do not flush them."""

from typing import Any

import torch.nn.functional as F
from ignite.engine import Engine, Events, create_supervised_evaluator
from ignite.handlers import Checkpoint, DiskSaver, ProgressBar
from ignite.metrics import Accuracy, Average, Loss
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from . import Whole


def train(task: Whole) -> None:
    model, optimizer = task.model, task.optimizer()
    scheduler = task.scheduler(optimizer)

    def step(engine: Engine, batch: Any) -> Tensor:
        inputs, labels = batch
        model.train()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        clip_grad_norm_(model.parameters(), task.clip_norm)
        optimizer.step()
        scheduler.step()
        return loss.detach()

    trainer = Engine(step)
    Average().attach(trainer, "train_loss")
    bar = ProgressBar()
    bar.attach(trainer)
    saver = DiskSaver(str(task.folder), require_empty=False)
    for key, loader in task.validation_loaders().items():
        metrics = {"loss": Loss(F.cross_entropy), "accuracy": Accuracy()}
        evaluator = create_supervised_evaluator(model, metrics)

        def evaluate(engine: Engine, evaluator: Engine = evaluator, loader: Any = loader, key: str = key) -> None:
            evaluator.run(loader)
            bar.log_message(f"{key}: {evaluator.state.metrics}")

        best = Checkpoint(
            {"model": model},
            saver,
            filename_prefix=f"best_{key}",
            score_function=lambda engine: -engine.state.metrics["loss"],
            global_step_transform=lambda *_: trainer.state.iteration,
            n_saved=1,
        )
        evaluator.add_event_handler(Events.COMPLETED, best)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, evaluate)
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "trainer": trainer}
    checkpoint = Checkpoint(parts, saver, filename_prefix="checkpoint", n_saved=1, save_on_rank=0)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, checkpoint)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: bar.log_message(f"{engine.state.metrics}"))
    trainer.run(task.training_loader(), max_epochs=task.epochs)
