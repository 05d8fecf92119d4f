"""Evaluating a saved model leaves the module as it was."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from accmt import AcceleratorModule, Callback, HyperParameters, Trainer, load_saving
from accmt.loop import exclusive
from accmt.loop.evaluate import evaluate
from accmt.loop.saved_evaluation import weights_put_back


class Module(AcceleratorModule):
    def __init__(self) -> None:
        self.model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
        self.model.register_buffer("seen", torch.zeros(()), persistent=False)
        self.head = nn.Linear(1, 1)

    def training_step(self, batch):
        self.model.seen += 1
        inputs, targets = batch
        return nn.functional.mse_loss(self.head(self.model(inputs)), targets)

    def validation_step(self, key, batch):
        inputs, targets = batch
        return {"loss": nn.functional.mse_loss(self.head(self.model(inputs)), targets)}

    def get_optimizer(self):
        return torch.optim.SGD([*self.model.parameters(), *self.head.parameters()], lr=0.05)


class Evaluating(Callback):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_fit_end(self):
        evaluation = exclusive._running[-1].evaluation
        model = self.module.model
        before = [tensor.clone() for tensor in (*model.parameters(), *model.buffers(), *self.module.head.parameters())]
        model[0].eval()
        with weights_put_back(evaluation):
            load_saving(self.folder, self.module)
            self.values = evaluate(evaluation).values
        self.modes = [part.training for part in model]
        after = (*model.parameters(), *model.buffers(), *self.module.head.parameters())
        self.is_same = all(map(torch.equal, before, after))


@pytest.fixture
def data():
    inputs = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
    return TensorDataset(inputs, inputs.sum(1, keepdim=True))


def test_a_saved_model_has_its_values_again_and_the_trained_weights_are_back(tmp_path, data):
    torch.manual_seed(0)
    calls = Evaluating(tmp_path / "first")
    trainer = Trainer(
        HyperParameters(epochs=3, batch_size=4), tmp_path, callback=calls, dataloader_num_workers=0, quiet=True
    )
    trainer.register_model_saving("max(step) if evaluation == 1", name="first")
    history = trainer.fit(Module(), data, data)
    first, *_, last = [one.values for one in history.observations]
    assert calls.values == first
    assert calls.values != last
    assert calls.is_same
    assert calls.modes == [False, True, True]
