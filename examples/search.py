"""Hyperparameter search: eight trials by Optuna, whose objective is a rule, then a training with the best of them.

    python examples/search.py [--model-path runs/search] [--epochs 10] [--trials 8]

It classifies tumours by 30 measurements (569 patients, from scikit-learn). The study is stored: run again, it continues
where it was, and starts no more trials than asked for, which keep their epochs. No trial sees the patients by which
the last training is judged. If more trials find something better, delete its folder, best, to train it again.
"""

import argparse
from pathlib import Path
from typing import Any

import optuna
import torch
from sklearn.datasets import load_breast_cancer
from sqlalchemy import URL
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from accmt import AcceleratorModule, FunctionMetric, HyperParameterSearch, Trainer, set_seed

ACCURACY = FunctionMetric("accuracy", torch.eq, greater_is_better=True, per_sample=True)


class Tumours(AcceleratorModule):
    def __init__(self) -> None:
        self.model = nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 2))

    def training_step(self, batch: list[Tensor]) -> Tensor:
        values, benign = batch
        return nn.functional.cross_entropy(self.model(values), benign)

    def validation_step(self, key: str, batch: list[Tensor]) -> dict[str, Any]:
        values, benign = batch
        logits = self.model(values)
        return {"loss": nn.functional.cross_entropy(logits, benign), "accuracy": (logits.argmax(1), benign)}


def datasets() -> list[TensorDataset]:
    """Return the data to train on, to choose by, and to report."""
    values, benign = (torch.tensor(array) for array in load_breast_cancer(return_X_y=True))
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(0))
    train, dev, test = order.split([269, 150, 150])
    scaled = ((values - values[train].mean(0)) / values[train].std(0)).float()
    return [TensorDataset(scaled[part], benign[part]) for part in (train, dev, test)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", type=Path, default=Path("runs/search"), help="folder of all (%(default)s)")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--trials", type=int, default=8)
    arguments = parser.parse_args()

    set_seed(0)
    train, dev, test = datasets()
    folder = arguments.model_path
    folder.mkdir(parents=True, exist_ok=True)
    search = HyperParameterSearch(
        Tumours,
        train,
        {"dev": dev},
        ACCURACY,
        model_path=folder / "trials",
        patience=4,
        dataloader_num_workers=0,
        destroy_after_training=False,  # another training follows
    )
    storage = URL.create("sqlite", database=str(folder / "study.db")).render_as_string()
    stored = sum(study.n_trials for study in optuna.get_all_study_summaries(storage))
    search.set_parameters(
        learning_rate=[1e-4, 1e-1], train_batch_size=[16, 64], weight_decay=(0.0, 0.1), epochs=arguments.epochs
    )
    study = search.optimize(
        objective="best_valid_loss@dev",
        n_trials=arguments.trials,
        total_trials=arguments.trials,
        storage=storage,
        study_name="tumours",
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=stored),  # the same seed would repeat the first trials at each start
    )

    set_seed(0)
    best = study.best_trial.user_attrs["hyperparameters"]
    trainer = Trainer(best, folder / "best", metrics=ACCURACY, held_out="test", patience=4, dataloader_num_workers=0)
    trainer.register_model_saving("best_valid_loss@dev")
    trainer.register_model_saving("best_accuracy@dev then valid_loss@dev")
    trainer.fit(Tumours(), train, {"dev": dev, "test": test})
    print(f"The report: {trainer.report().path}")


if __name__ == "__main__":
    main()
