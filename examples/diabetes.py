"""Tabular regression: predict how diabetes progresses in a year, and choose the model in three ways.

    python examples/diabetes.py [--model-path runs/diabetes] [--epochs 40]

The data are the 442 patients of scikit-learn, with ten values each. A hundred of them choose the models. A hundred
others, which no rule sees, tell after the training how good the choices were, beside a linear regression.
"""

import argparse

import torch
from sklearn.datasets import load_diabetes
from sklearn.linear_model import RidgeCV
from torch import nn
from torch.utils.data import TensorDataset

from accmt import HyperParameters, Trainer, set_seed

RULES = {
    "lowest": "best_mae",
    "clearly-lower": "best_mae by 1%",  # saves seldom, and its patience takes small steps for none
    "average": "best_mae keep 5 average",  # also tries the average of the weights of the five best models
}


def datasets() -> list[TensorDataset]:
    """Return the data to train on, to choose by, and to report."""
    values, progress = (torch.tensor(array).float() for array in load_diabetes(return_X_y=True))
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(0))
    return [TensorDataset(20 * values[part], progress[part, None]) for part in order.split([242, 100, 100])]


def error_of_linear_regression(train: TensorDataset, test: TensorDataset) -> float:
    """Return its mean absolute error."""
    (inputs, targets), (new, true) = ([tensor.squeeze().numpy() for tensor in part.tensors] for part in (train, test))
    return float(abs(RidgeCV().fit(inputs, targets).predict(new) - true).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", default="runs/diabetes", help="folder for models and checkpoints (%(default)s)")
    parser.add_argument("--epochs", type=int, default=40)
    arguments = parser.parse_args()

    set_seed(0)
    train, dev, test = datasets()
    network = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 1))
    nn.init.constant_(network[-1].bias, train.tensors[1].mean().item())
    hps = HyperParameters(arguments.epochs, batch_size=(16, 100), optimizer="AdamW", optim_kwargs={"lr": 1e-2})
    trainer = Trainer(hps, arguments.model_path, held_out="test", patience=8, dataloader_num_workers=0)
    for name, rule in RULES.items():
        trainer.register_model_saving(rule, name=name)
    trainer.fit(network, train, {"dev": dev, "test": test}, loss_fn=nn.SmoothL1Loss(beta=50))

    print(f"\nLinear regression has a mae of {error_of_linear_regression(train, test):.1f} on the held-out patients.")
    print(f"The report: {trainer.report().path}")


if __name__ == "__main__":
    main()
