"""Images: a small convolutional network whose training images are shifted and noisy, so that it can cope with both.

    python examples/augmentation.py [--model-path runs/augmentation] [--epochs 10]

It reads the digits of scikit-learn (1,797 images of 8 x 8 pixels). The images are changed in `training_step`, by
torch's generator, whose state is in every checkpoint: an interrupted training repeats nothing and draws the same.
Evaluations and saved models use a moving average of the weights. `held_out` keeps 400 images from the rules.
"""

import argparse
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from accmt import AcceleratorModule, FunctionMetric, HyperParameters, Trainer, set_seed


def shifted(images: Tensor) -> Tensor:
    """Shift each image by up to one pixel in both directions."""
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    windows = padded.unfold(2, 8, 1).unfold(3, 8, 1).flatten(2, 3)  # the nine places of an image
    return windows[torch.arange(len(images)), :, torch.randint(9, (len(images),))]


def noisy(images: Tensor) -> Tensor:
    return images + 0.2 * torch.randn_like(images)


class Digits(AcceleratorModule):
    def __init__(self) -> None:
        self.model = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)),
        )

    def training_step(self, batch: list[Tensor]) -> Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self.model(noisy(shifted(images))), labels)

    def validation_step(self, key: str, batch: list[Tensor]) -> dict[str, Any]:
        images, labels = batch
        logits = self.model(images)
        return {"loss": nn.functional.cross_entropy(logits, labels), "accuracy": (logits.argmax(1), labels)}


def datasets() -> tuple[TensorDataset, dict[str, TensorDataset]]:
    """Return the training data, three sets to choose by, and one to report."""
    images, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    parts = [(images[part].view(-1, 1, 8, 8).float() / 16, labels[part]) for part in order.split([997, 400, 400])]
    train, (clean, classes), test = parts
    sets = {"clean": clean, "shifted": shifted(clean), "noisy": noisy(clean)}
    validation = {name: TensorDataset(changed, classes) for name, changed in sets.items()}
    return TensorDataset(*train), {**validation, "test": TensorDataset(*test)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", default="runs/augmentation", help="folder for the models (%(default)s)")
    parser.add_argument("--epochs", type=int, default=10)
    arguments = parser.parse_args()

    set_seed(0)
    train, validation = datasets()
    accuracy = FunctionMetric("accuracy", torch.eq, greater_is_better=True, per_sample=True)
    hps = HyperParameters(arguments.epochs, batch_size=(64, 400), optimizer="AdamW", optim_kwargs={"lr": 1e-2})
    settings: dict[str, Any] = {"held_out": "test", "ema_decay": 0.9, "patience": 4, "dataloader_num_workers": 0}
    trainer = Trainer(hps, arguments.model_path, metrics=accuracy, **settings)
    trainer.register_model_saving("best_accuracy@clean then valid_loss@clean")  # many epochs have the same accuracy
    trainer.register_model_saving("best_worst(accuracy)")
    trainer.register_model_saving("best_accuracy@shifted/accuracy@noisy if accuracy@clean > 0.95", name="robust")
    trainer.fit(Digits(), train, validation)
    print(f"The report: {trainer.report().path}")


if __name__ == "__main__":
    main()
