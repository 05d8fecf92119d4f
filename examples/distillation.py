"""Distillation: a small network learns from a large one, on images without labels.

    python examples/distillation.py [--model-path runs/distillation] [--epochs 15]

The teacher, trained here first, sees 200 labelled digits of scikit-learn. The student, with a fortieth of its
parameters, sees 800 others and what the teacher says of them. Its rules ask how often it agrees with the teacher, then
how far the two are apart, and, for comparison, how often it is right. Interrupt it and run it again: it continues.
"""

import argparse
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from torch.utils.data import TensorDataset

from accmt import AcceleratorModule, FunctionMetric, Trainer, load_best, set_seed

ACCURACY = FunctionMetric("accuracy", torch.eq, greater_is_better=True, per_sample=True)
AGREEMENT = FunctionMetric("agreement", torch.eq, greater_is_better=True, per_sample=True)


def network(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, 10))


class Student(AcceleratorModule):
    def __init__(self, teacher: nn.Module) -> None:
        self.model = network(12)
        self.teacher = teacher  # the trainer moves it to the device and freezes it; no checkpoint contains it

    def distance(self, logits: Tensor, taught: Tensor) -> Tensor:
        """Return the Kullback-Leibler divergence of the answers, softened by a temperature of 3."""
        one, other = (log_softmax(each / 3, dim=1) for each in (logits, taught))
        return 9 * kl_div(one, other, log_target=True, reduction="batchmean")

    def training_step(self, batch: list[Tensor]) -> Tensor:
        (images,) = batch
        return self.distance(self.model(images), self.teacher(images))

    def validation_step(self, key: str, batch: list[Tensor]) -> dict[str, Any]:
        images, labels = batch
        logits, taught = self.model(images), self.teacher(images)
        answers = logits.argmax(1)
        loss = self.distance(logits, taught)
        return {"loss": loss, "accuracy": (answers, labels), "agreement": (answers, taught.argmax(1))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", default="runs/distillation", help="folder for the models (%(default)s)")
    parser.add_argument("--epochs", type=int, default=15)
    arguments = parser.parse_args()

    set_seed(0)
    images, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
    sizes = [200, 800, 400, 397]
    parts = zip((images.float() / 16).split(sizes), labels.split(sizes), strict=True)
    labelled, (unlabelled, _), dev, test = parts
    validation = {"dev": TensorDataset(*dev), "test": TensorDataset(*test)}
    settings: dict[str, Any] = {"held_out": "test", "patience": 5, "dataloader_num_workers": 0}
    hps = {"epochs": arguments.epochs, "batch_size": 32, "optimizer": {"type": "AdamW", "lr": 5e-3}}

    teacher = network(512)
    training = Trainer(hps, f"{arguments.model_path}/teacher", destroy_after_training=False, **settings)
    training.register_model_saving("best_accuracy")
    training.fit(teacher, TensorDataset(*labelled), validation, loss_fn=cross_entropy)
    load_best(training.model_path, teacher)

    trainer = Trainer(hps, f"{arguments.model_path}/student", metrics=[ACCURACY, AGREEMENT], **settings)
    trainer.register_model_saving("best_agreement then valid_loss")
    trainer.register_model_saving("best_accuracy")
    trainer.fit(Student(teacher), TensorDataset(unlabelled), validation)
    print(f"The report: {trainer.report().path}")


if __name__ == "__main__":
    main()
