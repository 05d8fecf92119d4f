"""Imbalanced classes: accuracy hardly notices a rare class, so rules look at macro F1 and at the worst class.

    python examples/imbalance.py [--model-path runs/imbalance] [--epochs 20]

Of 997 digits of scikit-learn, 80 zeros are left to train on, a quarter fewer ones, and so on, down to 6 nines. A metric
returns three values with a direction each, and the rules prefer different ones. After the training, the saved models
are evaluated on 400 other digits.
"""

import argparse
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from accmt import AcceleratorModule, FunctionMetric, HyperParameters, Trainer, set_seed


def scores(predictions: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return the accuracy, the mean of the F1 of all classes, and the recall of the worst class."""
    table = torch.zeros(10, 10).index_put((labels, predictions), torch.tensor(1.0), accumulate=True)
    right, true, predicted = table.diagonal(), table.sum(1), table.sum(0)
    f1 = 2 * right / (true + predicted).clamp(min=1)
    return {"accuracy": right.sum() / table.sum(), "f1": f1.mean(), "worst_class": (right / true).min()}


class Digits(AcceleratorModule):
    def __init__(self, weights: Tensor) -> None:
        self.model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 10))
        self.weights = weights  # of the classes, in the loss

    def training_step(self, batch: list[Tensor]) -> Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self.model(images), labels, self.weights.to(self.device))

    def validation_step(self, key: str, batch: list[Tensor]) -> dict[str, Any]:
        images, labels = batch
        logits = self.model(images)
        return {"loss": nn.functional.cross_entropy(logits, labels), "accuracy": (logits.argmax(1), labels)}


def thinned(labels: Tensor, first: int) -> Tensor:
    """Return the places of so many zeros, of a quarter fewer ones, and so on."""
    return torch.cat([(labels == label).nonzero()[: round(first * 0.75**label), 0] for label in range(10)])


def datasets() -> list[TensorDataset]:
    """Return the data to train on, to choose by, and to report."""
    images, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
    parts = zip((images.float() / 16).split([997, 400, 400]), labels.split([997, 400, 400]), strict=True)
    train, dev, test = (TensorDataset(*part) for part in parts)
    return [TensorDataset(*train[thinned(train.tensors[1], 80)]), dev, test]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", default="runs/imbalance", help="folder for the models (%(default)s)")
    parser.add_argument("--epochs", type=int, default=20)
    arguments = parser.parse_args()

    set_seed(0)
    train, dev, test = datasets()
    counts = train.tensors[1].bincount()
    directions = {"accuracy": True, "f1": True, "worst_class": True}
    metric = FunctionMetric("accuracy", scores, greater_is_better=directions)
    hps = HyperParameters(arguments.epochs, batch_size=(16, 400), optimizer="AdamW", optim_kwargs={"lr": 3e-3})
    trainer = Trainer(hps, arguments.model_path, metrics=metric, held_out="test", patience=8, dataloader_num_workers=0)
    trainer.register_model_saving("best_accuracy")
    trainer.register_model_saving("best_f1 if worst_class > 0.4")
    trainer.register_model_saving("best_worst_class then f1")
    trainer.fit(Digits(counts.sum() / (10 * counts)), train, {"dev": dev, "test": test})
    print(f"The report: {trainer.report().path}")


if __name__ == "__main__":
    main()
