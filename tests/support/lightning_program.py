"""A training in Lightning: FOLDER, and the settings `stop=STEP` (kill -9), `devices=N`, `epochs=N`, `metric=NAME`."""

import json
import os
import signal
import sys
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from accmt.integrations.lightning import Rules

warnings.filterwarnings("ignore")


class Line(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 1)

    def training_step(self, batch, index):
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def validation_step(self, batch, index, dataloader_idx=0):
        outputs = self.net(batch[0])
        self.log("val_loss", nn.functional.mse_loss(outputs, batch[1]), sync_dist=True)
        self.log("val_error", (outputs - batch[1]).abs().mean(), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.3)


class Kill(pl.Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def samples(count, seed):
    inputs = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    noise = torch.randn(count, 1, generator=torch.Generator().manual_seed(seed + 1))
    return DataLoader(TensorDataset(inputs, inputs.sum(1, keepdim=True) + noise), batch_size=4)


def rules_in(folder, **given):
    arguments = {"metrics": {"error": "min"}, "datasets": ["dev", "ood"], "patience": 3, "checkpoint_every": "epoch"}
    return Rules(folder, ["error@dev", "valid_loss keep 2", "valid_loss/error@ood"], **{**arguments, **given})


def main(folder, stop=None, devices=1, epochs=6):
    pl.seed_everything(0)
    rules = rules_in(Path(folder) / "model")
    trainer = pl.Trainer(
        max_epochs=int(epochs), callbacks=[rules, *([Kill(int(stop))] if stop else [])], accelerator="cpu",
        devices=int(devices), logger=False, enable_progress_bar=False, enable_model_summary=False, val_check_interval=4,
    )  # fmt: skip
    module = Line()
    trainer.fit(module, samples(32, 0), [samples(16, 5), samples(16, 7)], ckpt_path=rules.last_model_path)
    if trainer.is_global_zero:
        found = {"path": rules.best_model_path, "score": rules.best_model_score, "step": trainer.global_step}
        [dev, _] = trainer.validate(module, [samples(16, 5), samples(16, 7)], ckpt_path="best", verbose=False) \
            if int(devices) == 1 else [{}, {}]  # fmt: skip
        (Path(folder) / "found.json").write_text(json.dumps({**found, **dev}))


if __name__ == "__main__":
    main(sys.argv[1], **dict(argument.split("=") for argument in sys.argv[2:]))
