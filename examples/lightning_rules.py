"""Train a classifier of handwritten digits with Lightning, and let rules choose what is saved and when to stop.

    python examples/lightning_rules.py [--model-path runs/lightning] [--epochs 12]

Interrupt it and run it again: it continues from the checkpoint that the rules asked for.
"""

import argparse
from pathlib import Path

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from accmt.integrations.lightning import Rules


class Digits(pl.LightningModule):
    """A perceptron that logs its loss and accuracy on each validation set."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], index: int, dataloader_idx: int = 0) -> None:
        outputs = self.net(batch[0])
        self.log("val_loss", nn.functional.cross_entropy(outputs, batch[1]), sync_dist=True)
        self.log("val_accuracy", (outputs.argmax(1) == batch[1]).float().mean(), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 2e-3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", type=Path, default=Path("runs/lightning"))
    parser.add_argument("--epochs", type=int, default=12)
    options = parser.parse_args()

    pl.seed_everything(0)
    images, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    train = DataLoader(TensorDataset(images[:1200], labels[:1200]), batch_size=40, shuffle=True)
    clean = DataLoader(TensorDataset(images[1200:], labels[1200:]), batch_size=200)
    noisy = DataLoader(TensorDataset(images[1200:] + 0.5 * torch.randn(597, 64), labels[1200:]), batch_size=200)

    rules = Rules(
        options.model_path,
        save=["best_accuracy@clean", "best_worst(accuracy) keep 2"],
        metrics={"accuracy": "max"},
        datasets=["clean", "noisy"],
        checkpoint_every="2 epochs",
        patience=3,
    )
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(max_epochs=options.epochs, callbacks=[rules], accelerator="cpu", **quiet)
    trainer.fit(Digits(), train, [clean, noisy], ckpt_path=rules.last_model_path)
    print("trained to the end" if rules.stop is None else f"stopped: {rules.stop.reason}")
    print(f"best on clean images: {rules.best_model_score:.3f}, {rules.best_model_path}")


if __name__ == "__main__":
    main()
