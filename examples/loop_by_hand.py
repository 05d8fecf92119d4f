"""Train a classifier of handwritten digits with a loop by hand, whose savings, checkpoints and stop are rules.

    python examples/loop_by_hand.py [--model-path runs/by_hand] [--epochs 12]

The loop is plain PyTorch. accmt decides when to evaluate, which models to save, when a checkpoint is due and when to
stop; the loop does all of it. Interrupt it and run it again: it continues from its checkpoint.
"""

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from accmt.integrations.loop import Rules, state_dict_of


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return the share of predictions that are right."""
    with torch.no_grad():
        return (model(images).argmax(1) == labels).float().mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", type=Path, default=Path("runs/by_hand"))
    parser.add_argument("--epochs", type=int, default=12)
    options = parser.parse_args()

    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, dev = order[:1200], order[1200:]
    noisy = images[dev] + 0.5 * torch.randn(len(dev), 64, generator=torch.Generator().manual_seed(1))
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    batches = len(train) // 40

    rules = Rules(
        options.model_path,
        save=["best_accuracy@clean", "best_worst(accuracy) keep 2"],
        metrics={"accuracy": "max"},
        datasets=["clean", "noisy"],
        evaluate_every="epoch",
        checkpoint_every="2 epochs",
        patience=3,
    )
    rules.start(total_steps=options.epochs * batches, steps_per_epoch=batches)
    checkpoint, first = options.model_path / "last.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        rules.load_state_dict(state["rules"])
        first = rules.counters.epoch
        print(f"continuing after epoch {first}")

    with rules:
        for epoch in range(first, options.epochs):
            if rules.stop:
                break
            shuffled = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(epoch))]
            for batch in shuffled.chunk(batches):
                loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                due = rules.step(train_loss=loss)
                if due.evaluate:
                    values = {"clean": images[dev], "noisy": noisy}
                    decision = rules.evaluated(
                        {key: {"accuracy": accuracy(model, data, labels[dev])} for key, data in values.items()}
                    )
                    decision = rules.save(decision, state_dict_of(model))
                    print(f"epoch {epoch + 1}:", *decision.verdicts, sep="\n  ")
                if due.checkpoint:
                    parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                    torch.save({**parts, "rules": rules.state_dict()}, checkpoint)
    print("trained to the end" if rules.stop is None else f"stopped: {rules.stop.reason}")
    print(f"accmt explain {options.model_path}")


if __name__ == "__main__":
    main()
