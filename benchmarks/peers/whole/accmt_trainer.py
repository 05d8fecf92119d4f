"""Our own Trainer, with a rule for each validation set."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from accmt import AcceleratorModule, FunctionMetric, HyperParameters, Optimizer, Scheduler, Trainer

from . import Whole


class Module(AcceleratorModule):
    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def training_step(self, batch: Any) -> Tensor:
        inputs, labels = batch
        return F.cross_entropy(self.model(inputs), labels)

    def validation_step(self, key: str, batch: Any) -> dict[str, Any]:
        inputs, labels = batch
        logits = self.model(inputs)
        return {"loss": F.cross_entropy(logits, labels), "accuracy": (logits.argmax(1), labels)}


def accuracy(guesses: Tensor, labels: Tensor) -> Tensor:
    return (guesses == labels).float().mean()


def train(task: Whole) -> None:
    hps = HyperParameters(
        epochs=task.epochs,
        batch_size=(task.batch_size, task.eval_batch_size),
        optimizer=Optimizer.AdamW,
        optim_kwargs={"lr": task.learning_rate},
        scheduler=Scheduler.LinearWithWarmup,
        scheduler_kwargs={"num_warmup_steps": 0},
    )
    trainer = Trainer(
        hps,
        model_path=task.folder / "model",
        metrics=FunctionMetric("accuracy", accuracy, greater_is_better=True),
        clip_grad=task.clip_norm,
        collate_fn=None if task.name == "digits" else task.collate,
        dataloader_num_workers=0,
    )
    for key in task.validation:
        trainer.register_model_saving(f"best_valid_loss@{key}")
    trainer.fit(Module(task.model), task.train, task.validation)
