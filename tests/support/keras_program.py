"""A training in Keras: FOLDER, and the settings `stop=BATCH` (kill -9), `late=1` (before the backup of epoch 2)."""

import os
import signal
import sys
import warnings
from pathlib import Path

os.environ["KERAS_BACKEND"] = "torch"

import keras
import numpy as np

from accmt.integrations.keras import Rules

warnings.filterwarnings("ignore")
SAVE = ("mae@dev", "valid_loss keep 2", "valid_loss/mae@ood")


class Kill(keras.callbacks.Callback):
    def __init__(self, batch, late):
        super().__init__()
        self.batch, self.late, self.count = batch, late, 0

    def on_train_batch_begin(self, batch, logs=None):
        self.count += 1
        if self.count == self.batch:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.late:
            os.kill(os.getpid(), signal.SIGKILL)


def samples(count, seed):
    drawn = np.random.default_rng(seed)
    inputs = drawn.normal(size=(count, 4)).astype("float32")
    return inputs, inputs.sum(1, keepdims=True) + drawn.normal(size=(count, 1)).astype("float32")


def network():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.2), "mse", metrics=["mae"])
    return model


def rules_in(folder, save=SAVE, **given):
    defaults = {"metrics": {"mae": "min"}, "datasets": ["dev", "ood"], "validation": {"ood": samples(16, 7)}}
    return Rules(folder, list(save), **{**defaults, "patience": 3, **given})


def fit(model, callbacks, epochs=6, **given):
    inputs, targets = samples(32, 0)
    defaults = {"batch_size": 4, "shuffle": False, "verbose": 0, "validation_data": samples(16, 5)}
    return model.fit(inputs, targets, epochs=epochs, callbacks=callbacks, **{**defaults, **given})


def main(folder, stop=0, late=-1):
    rules = rules_in(Path(folder) / "model")
    backup = keras.callbacks.BackupAndRestore(Path(folder) / "backup")
    fit(network(), [rules, Kill(int(stop), int(late)), backup])


if __name__ == "__main__":
    main(sys.argv[1], **dict(argument.split("=") for argument in sys.argv[2:]))
