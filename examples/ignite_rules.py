"""Train a classifier of handwritten digits with Ignite, and let rules choose what is saved and when to stop.

    python examples/ignite_rules.py [--model-path runs/ignite] [--epochs 12]

Interrupt it and run it again: it continues from its newest checkpoint.
"""

import argparse
from pathlib import Path

import torch
from ignite.engine import create_supervised_evaluator, create_supervised_trainer
from ignite.handlers import Checkpoint, DiskSaver
from ignite.metrics import Accuracy, Loss
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from accmt.integrations.ignite import Rules


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", type=Path, default=Path("runs/ignite"))
    parser.add_argument("--epochs", type=int, default=12)
    options = parser.parse_args()

    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    train = DataLoader(TensorDataset(images[:1200], labels[:1200]), batch_size=40, shuffle=True)
    noisy = images[1200:] + 0.5 * torch.randn(597, 64)
    loaders = {
        "clean": DataLoader(TensorDataset(images[1200:], labels[1200:]), batch_size=200),
        "noisy": DataLoader(TensorDataset(noisy, labels[1200:]), batch_size=200),
    }
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
    loss = nn.CrossEntropyLoss()
    trainer = create_supervised_trainer(net, optimizer, loss)
    evaluators = {
        name: create_supervised_evaluator(net, {"accuracy": Accuracy(), "loss": Loss(loss)}) for name in loaders
    }

    rules = Rules(
        options.model_path,
        save=["best_accuracy@clean", "best_worst(accuracy) keep 2"],
        metrics={"accuracy": "max"},
        checkpoint_every="2 epochs",
        patience=3,
    )
    parts = {"trainer": trainer, "net": net, "optimizer": optimizer, "rules": rules}
    saver = DiskSaver(options.model_path / "checkpoints", require_empty=False)
    checkpoint = Checkpoint(parts, saver, n_saved=1, include_self=True)
    rules.attach(trainer, evaluators, model=net, loaders=loaders, checkpoint=checkpoint)
    found = [path for path in options.model_path.glob("checkpoints/*.pt")]
    if found:
        newest = max(found, key=lambda path: path.stat().st_mtime)
        Checkpoint.load_objects({**parts, "checkpointer": checkpoint}, torch.load(newest))
        print(f"continuing after iteration {trainer.state.iteration}")
    if trainer.state.epoch < options.epochs and rules.stop is None:  # Ignite would begin again
        trainer.run(train, max_epochs=options.epochs)
    print("trained to the end" if rules.stop is None else f"stopped: {rules.stop.reason}")
    best = rules.best("best_accuracy@clean")
    print(f"best on clean images: {best.values['accuracy@clean']:.3f}, {best.folder}")


if __name__ == "__main__":
    main()
