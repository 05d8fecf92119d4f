"""The Trainer of Transformers with a model that returns its loss; no reports, no saving, a constant learning rate."""

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import default_collate
from transformers import Trainer, TrainingArguments

from . import Run
from .measure import Measurement
from .task import Task, make_dataset, make_model


class ModelWithLoss(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.model(inputs)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def collate(samples: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Torch's default collation, under the names that the model takes."""
    inputs, labels = default_collate(samples)
    return {"inputs": inputs, "labels": labels}


def train(task: Task) -> Run:
    dataset = make_dataset(task)
    model = make_model(task)
    arguments = TrainingArguments(
        output_dir=str(task.folder),
        use_cpu=True,
        num_train_epochs=task.epochs,
        per_device_train_batch_size=task.batch_size,
        optim="adamw_torch",
        learning_rate=task.learning_rate,
        weight_decay=task.weight_decay,
        lr_scheduler_type="constant",
        max_grad_norm=task.clip_norm,
        logging_steps=task.log_every,
        disable_tqdm=not task.bar,
        report_to="none",
        eval_strategy="no",
        save_strategy="no",
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(ModelWithLoss(model), arguments, data_collator=collate, train_dataset=dataset)

    with Measurement(model) as measurement:
        trainer.train()
    return measurement.run(dataset)
