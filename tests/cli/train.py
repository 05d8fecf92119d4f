"""A training that tests/cli/test_launching.py launches: `train.py FOLDER PAUSE`.

With a pause it says so before each step from the twelfth on, and waits for so many seconds.
"""

import os
import sys
import time

import torch
from torch import nn
from torch.utils.data import TensorDataset

from accmt import AcceleratorModule, Callback, HyperParameters, Trainer, set_seed

torch.set_num_threads(1)
folder, pause = sys.argv[1], float(sys.argv[2])


class Module(AcceleratorModule):
    def __init__(self):
        self.model = nn.Linear(4, 1)

    def training_step(self, batch):
        if pause and self.state.global_step >= 12:
            sys.stdout.write("waits\n")
            time.sleep(pause)
        return nn.functional.mse_loss(self.model(batch[0]), batch[1])

    def validation_step(self, key, batch):
        return {"loss": nn.functional.mse_loss(self.model(batch[0]), batch[1])}


class Tells(Callback):
    def on_keyboard_interrupt(self, exception):
        sys.stdout.write(f"rank {os.environ['RANK']} was interrupted\n")


set_seed(0)
inputs = torch.randn(4000 if pause else 40, 4)
data = TensorDataset(inputs, inputs.sum(1, keepdim=True))
trainer = Trainer(
    HyperParameters(2, batch_size=4, optimizer="SGD", optim_kwargs={"lr": 0.1}),
    folder,
    checkpoint_every="5 steps" if pause else "epoch",
    callback=Tells(),
    dataloader_num_workers=2 if pause else 0,
)
trainer.fit(Module(), data, TensorDataset(*data[:9]))
