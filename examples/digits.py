"""Train a classifier of handwritten digits and keep the models that the rules choose.

    python examples/digits.py [--model-path runs/digits] [--epochs 12]

It uses the digits of scikit-learn (1,797 images of 8 x 8 pixels) and evaluates on three sets: clean images, noisy
images, and images shifted by one pixel. Run it twice: the second run finds the checkpoint of the first and has nothing
left to do.
"""

import argparse
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from accmt import AcceleratorModule, HyperParameters, Metric, Trainer, set_seed


class Digits(AcceleratorModule):
    """A small network with its loss and the arguments of each metric."""

    def __init__(self) -> None:
        self.model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 10))

    def training_step(self, batch: list[Tensor]) -> Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self.model(images), labels)

    def validation_step(self, key: str, batch: list[Tensor]) -> dict[str, Any]:
        images, labels = batch
        logits = self.model(images)
        return {"loss": nn.functional.cross_entropy(logits, labels), "accuracy": (logits.argmax(1), labels)}


class Accuracy(Metric):
    """The share of predictions that are right."""

    def compute(self, predictions: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"accuracy": (predictions == labels).float().mean()}


def datasets() -> tuple[TensorDataset, dict[str, TensorDataset]]:
    """Return the training data and the three validation sets."""
    images, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, dev = order[:1200], order[1200:]
    clean = images[dev]
    noisy = clean + 0.5 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    shifted = clean.reshape(-1, 8, 8).roll(1, dims=2).flatten(1)
    validation = {"clean": clean, "noisy": noisy, "shifted": shifted}
    return (
        TensorDataset(images[train], labels[train]),
        {name: TensorDataset(data, labels[dev]) for name, data in validation.items()},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", default="runs/digits", help="folder for models and checkpoints (%(default)s)")
    parser.add_argument("--epochs", type=int, default=12)
    arguments = parser.parse_args()

    set_seed(0)
    hps = HyperParameters(epochs=arguments.epochs, batch_size=(32, 512), optimizer="AdamW", optim_kwargs={"lr": 3e-3})
    trainer = Trainer(hps, arguments.model_path, metrics=Accuracy("accuracy"), patience=4, dataloader_num_workers=0)
    trainer.register_model_saving("best_accuracy@clean")
    trainer.register_model_saving("best_accuracy@noisy/accuracy@shifted")
    trainer.register_model_saving("best_worst(accuracy)")
    train, validation = datasets()
    trainer.fit(Digits(), train, validation)


if __name__ == "__main__":
    main()
