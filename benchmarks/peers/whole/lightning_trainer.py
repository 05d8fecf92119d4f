"""Lightning's Trainer with a ModelCheckpoint for each validation set, one for the checkpoint, and its CSV logger."""

from typing import Any

import lightning
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from . import Whole


class Module(lightning.LightningModule):
    def __init__(self, task: Whole) -> None:
        super().__init__()
        self.task, self.keys = task, list(task.validation)
        self.model = task.model

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, labels = batch
        loss = F.cross_entropy(self.model(inputs), labels)
        self.log("train_loss", loss, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        inputs, labels = batch
        logits, key = self.model(inputs), self.keys[dataloader_idx]
        values = {
            f"loss_{key}": F.cross_entropy(logits, labels),
            f"accuracy_{key}": (logits.argmax(1) == labels).float().mean(),
        }
        self.log_dict(values, add_dataloader_idx=False, batch_size=len(labels))

    def configure_optimizers(self) -> Any:
        optimizer = self.task.optimizer()
        return [optimizer], [{"scheduler": self.task.scheduler(optimizer), "interval": "step"}]


def train(task: Whole) -> None:
    folder = task.folder
    savers = [
        ModelCheckpoint(folder, f"best_{key}", monitor=f"loss_{key}", save_weights_only=True) for key in task.validation
    ]
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=task.epochs,
        gradient_clip_val=task.clip_norm,
        logger=CSVLogger(folder),
        callbacks=[*savers, ModelCheckpoint(folder, "checkpoint", enable_version_counter=False)],
        default_root_dir=folder,
    )
    trainer.fit(Module(task), task.training_loader(), list(task.validation_loaders().values()))
