"""Train a classifier of handwritten digits with Keras on torch, and let rules choose what is saved and when to stop.

    python examples/keras_rules.py [--model-path runs/keras] [--epochs 12]

Interrupt it and run it again: it continues from the backup of Keras.
"""

import argparse
import os
from pathlib import Path

os.environ["KERAS_BACKEND"] = "torch"

import keras
import numpy as np
from sklearn.datasets import load_digits

from accmt.integrations.keras import Rules


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", type=Path, default=Path("runs/keras"))
    parser.add_argument("--epochs", type=int, default=12)
    options = parser.parse_args()

    keras.utils.set_random_seed(0)
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype("float32")
    noisy = images[1200:] + np.random.default_rng(0).normal(0, 0.5, (597, 64)).astype("float32")
    layers = [keras.Input((64,)), keras.layers.Dense(64, activation="relu"), keras.layers.Dense(10)]
    model = keras.Sequential(layers)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(2e-3), loss, metrics=["accuracy"])

    rules = Rules(
        options.model_path,
        save=["best_accuracy@clean", "best_worst(accuracy) keep 2"],
        metrics={"accuracy": "max"},
        datasets=["clean", "noisy"],
        validation={"noisy": (noisy, labels[1200:])},
        patience=3,
    )
    backup = keras.callbacks.BackupAndRestore(options.model_path / "backup")
    model.fit(
        images[:1200],
        labels[:1200],
        batch_size=40,
        epochs=options.epochs,
        validation_data=(images[1200:], labels[1200:]),
        callbacks=[rules, backup],
        verbose=0,
    )
    print("trained to the end" if rules.stop is None else f"stopped: {rules.stop.reason}")
    best = rules.best("best_accuracy@clean")
    print(f"best on clean images: {best.values['accuracy@clean']:.3f}, {best.folder}")


if __name__ == "__main__":
    main()
