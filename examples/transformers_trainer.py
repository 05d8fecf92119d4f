"""Train a small ConvNeXt with the Trainer of transformers, and let rules choose what it saves and when it stops.

    python examples/transformers_trainer.py [--model-path runs/transformers-digits] [--epochs 12]

It uses the digits of scikit-learn (1,797 images of 8 x 8 pixels) and evaluates on clean, noisy and shifted images. Each
rule keeps its own model, and the training stops when no rule has saved a better one for three evaluations. If it is
interrupted, run it again: it resumes from its newest checkpoint, and the rules continue where they were.
"""

import argparse
from pathlib import Path

import numpy
import torch
from sklearn.datasets import load_digits
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    EvalPrediction,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from accmt.integrations.transformers import Rules

Samples = list[dict[str, torch.Tensor]]


def samples(images: torch.Tensor, labels: torch.Tensor) -> Samples:
    return [{"pixel_values": image.unsqueeze(0), "labels": label} for image, label in zip(images, labels, strict=True)]


def datasets() -> tuple[Samples, dict[str, Samples]]:
    """Return the training data and the three validation sets."""
    digits = load_digits()
    images, labels = torch.tensor(digits.images, dtype=torch.float32) / 16, torch.tensor(digits.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, dev = order[:1200], order[1200:]
    clean = images[dev]
    noisy = clean + 0.3 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    validation = {"clean": clean, "noisy": noisy, "shifted": clean.roll(1, dims=2)}
    return samples(images[train], labels[train]), {name: samples(x, labels[dev]) for name, x in validation.items()}


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float(numpy.mean(prediction.predictions.argmax(-1) == prediction.label_ids))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", default="runs/transformers-digits", help="folder for all files (%(default)s)")
    parser.add_argument("--epochs", type=int, default=12)
    arguments = parser.parse_args()

    rules = Rules(
        arguments.model_path,
        save=["best_accuracy@clean", "best_accuracy@noisy/accuracy@shifted", "best_worst(accuracy)"],
        patience=3,
        metrics={"accuracy": "max"},
        datasets=["clean", "noisy", "shifted"],
    )
    set_seed(0)
    config = ConvNextConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        num_labels=10,
        num_stages=2,
        hidden_sizes=[32, 64],
        depths=[1, 1],
    )
    checkpoints = Path(arguments.model_path) / "host"
    train, validation = datasets()
    trainer = Trainer(
        ConvNextForImageClassification(config),
        TrainingArguments(
            str(checkpoints),
            num_train_epochs=arguments.epochs,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=256,
            learning_rate=3e-3,
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=1,
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
        ),
        train_dataset=train,
        eval_dataset=validation,
        compute_metrics=accuracy,
        callbacks=[rules],
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(checkpoints) if checkpoints.is_dir() else None)
    for rule in ("best_accuracy@clean", "best_accuracy@noisy/accuracy@shifted", "best_worst(accuracy)"):
        saved = rules.best(rule)
        if saved is not None:
            print(f"{rule} chose step {saved.step}: {saved.folder}")


if __name__ == "__main__":
    main()
