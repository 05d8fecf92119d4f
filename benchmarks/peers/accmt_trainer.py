"""Our own Trainer; no tracker, no checkpoints, no model saved."""

import torch.nn.functional as F
from torch import Tensor, nn

from accmt import AcceleratorModule, HyperParameters, Optimizer, Trainer

from . import Run
from .measure import Measurement
from .task import Task, make_dataset, make_model


class Module(AcceleratorModule):
    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def training_step(self, batch: list[Tensor]) -> Tensor:
        inputs, labels = batch
        return F.cross_entropy(self.model(inputs), labels)


def train(task: Task) -> Run:
    dataset = make_dataset(task)
    model = make_model(task)
    trainer = Trainer(
        HyperParameters(
            epochs=task.epochs,
            batch_size=task.batch_size,
            optimizer=Optimizer.AdamW,
            optim_kwargs={"lr": task.learning_rate, "weight_decay": task.weight_decay},
        ),
        model_path=str(task.folder / "model"),
        enable_checkpointing=False,
        disable_model_saving=True,
        log_every=task.log_every,
        clip_grad=task.clip_norm,
        dataloader_num_workers=0,
        quiet=not task.bar,
    )

    with Measurement(model) as measurement:
        trainer.fit(Module(model), dataset)
    return measurement.run(dataset)
