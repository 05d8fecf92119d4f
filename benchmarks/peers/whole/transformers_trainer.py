"""The Trainer of Transformers, with a callback for the best model of each validation set, as it keeps one itself."""

from collections.abc import Sequence
from typing import Any

from transformers import Trainer, TrainerCallback, TrainingArguments

from ..transformers_trainer import ModelWithLoss
from . import BATCH, CLIP_NORM, EPOCHS, EVAL_BATCH, RATE, Whole


class BestOfEachSet(TrainerCallback):
    trainer: Trainer

    def __init__(self, task: Whole) -> None:
        self.task = task
        self.best: dict[str, float] = {}

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        for key in self.task.validation:
            loss = metrics.get(f"eval_{key}_loss")
            if loss is not None and loss < self.best.get(key, float("inf")):
                self.best[key] = loss
                self.trainer.save_model(str(self.task.folder / f"best_{key}"))


def train(task: Whole) -> None:
    def collate(samples: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(("inputs", "labels"), task.collate(samples), strict=True))

    arguments = TrainingArguments(
        output_dir=str(task.folder),
        use_cpu=True,
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=EVAL_BATCH,
        optim="adamw_torch",
        learning_rate=RATE,
        weight_decay=0.01,
        max_grad_norm=CLIP_NORM,
        logging_strategy="epoch",
        report_to="none",
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        dataloader_pin_memory=False,
    )
    best = BestOfEachSet(task)
    best.trainer = Trainer(
        ModelWithLoss(task.model),
        arguments,
        data_collator=collate,
        train_dataset=task.train,
        eval_dataset=task.validation,
        compute_metrics=lambda made: {"accuracy": float((made.predictions.argmax(1) == made.label_ids).mean())},
        callbacks=[best],
    )
    best.trainer.train()
