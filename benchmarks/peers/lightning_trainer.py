"""Lightning's Trainer with its default progress bar; no logger, no checkpoints."""

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import Run
from .measure import Measurement
from .task import Task, make_dataset, make_loader, make_model, make_optimizer


class Module(lightning.LightningModule):
    def __init__(self, task: Task, model: nn.Module) -> None:
        super().__init__()
        self.task = task
        self.model = model

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        inputs, labels = batch
        loss = F.cross_entropy(self.model(inputs), labels)
        if batch_idx % self.task.log_every == 0:  # `log` in every step would be the dearer, and common, way
            self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return make_optimizer(self.task, self)


def train(task: Task) -> Run:
    dataset = make_dataset(task)
    model = make_model(task)
    loader = make_loader(task, dataset)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=task.epochs,
        gradient_clip_val=task.clip_norm,
        log_every_n_steps=task.log_every,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=task.bar,
        default_root_dir=task.folder,
    )

    with Measurement(model) as measurement:
        trainer.fit(Module(task, model), loader)
    return measurement.run(dataset)
