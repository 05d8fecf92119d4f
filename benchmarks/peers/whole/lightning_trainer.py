"""Lightning's Trainer with a ModelCheckpoint for each validation set, one for the checkpoint, and its CSV logger."""

from typing import Any

import lightning
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from . import CLIP_NORM, EPOCHS, Whole


class Module(lightning.LightningModule):
    def __init__(self, task: Whole) -> None:
        super().__init__()
        self.task, self.keys, self.model = task, list(task.validation), task.model

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self.model(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        inputs, labels = batch
        logits, key = self.model(inputs), self.keys[dataloader_idx]
        right = (logits.argmax(1) == labels).float().mean()
        values = {f"loss_{key}": F.cross_entropy(logits, labels), f"accuracy_{key}": right}
        self.log_dict(values, add_dataloader_idx=False, batch_size=len(labels))

    def configure_optimizers(self) -> Any:
        optimizer, scheduler = self.task.optimizer()
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def train(task: Whole) -> None:
    savers = [ModelCheckpoint(task.folder, "checkpoint", enable_version_counter=False)]
    for key in task.validation:
        savers.append(ModelCheckpoint(task.folder, f"best_{key}", monitor=f"loss_{key}", save_weights_only=True))
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=EPOCHS,
        gradient_clip_val=CLIP_NORM,
        logger=CSVLogger(task.folder),
        callbacks=savers,  # type: ignore[arg-type]
        default_root_dir=task.folder,
    )
    trainer.fit(Module(task), task.loader(), list(task.validation_loaders().values()))
