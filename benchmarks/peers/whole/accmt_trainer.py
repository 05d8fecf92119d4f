"""Our own Trainer, with a rule for each validation set; accuracy is its default metric for classes."""

from torch import nn

from accmt import HyperParameters, Scheduler, Trainer

from . import BATCH, CLIP_NORM, EPOCHS, EVAL_BATCH, RATE, Whole


def train(task: Whole) -> None:
    hps = HyperParameters(
        epochs=EPOCHS,
        batch_size=(BATCH, EVAL_BATCH),
        optimizer="AdamW",
        optim_kwargs={"lr": RATE},
        scheduler=Scheduler.LinearWithWarmup,
        scheduler_kwargs={"num_warmup_steps": 0},
    )
    collate = task.collate if isinstance(task.train, list) else None
    trainer = Trainer(hps, task.folder / "model", clip_grad=CLIP_NORM, collate_fn=collate, dataloader_num_workers=0)
    for key in task.validation:
        trainer.register_model_saving(f"best_valid_loss@{key}")
    trainer.fit(task.model, task.train, task.validation, loss_fn=nn.CrossEntropyLoss())
