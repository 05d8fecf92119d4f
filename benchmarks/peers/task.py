"""The training that every contestant does: its settings, its data and its model.

A multilayer perceptron 64-128-128-10 learns which of ten directions a random point is nearest to. The steps are
small on purpose: what a library adds to each of them is then seen, not drowned in arithmetic.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from . import CLIP_NORM, EPOCHS

FEATURES, HIDDEN, CLASSES = 64, 128, 10
INPUT_SCALE = 4.0  # large enough that the first gradient's norm exceeds the clipping threshold


@dataclass(frozen=True, slots=True)
class Task:
    """What is trained, and how; the same for everybody."""

    steps: int  # optimizer steps in all, over all epochs
    folder: Path  # for whatever a library writes; thrown away
    bar: bool = True  # whether the progress display is on
    epochs: int = EPOCHS
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2  # torch's default for AdamW, named because others' differ
    clip_norm: float = CLIP_NORM
    log_every: int = 50  # steps between two losses on the progress display
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < self.epochs or self.steps % self.epochs:
            raise ValueError(
                f"steps is {self.steps}: it must be a positive multiple of the number of epochs, {self.epochs}."
            )


def make_dataset(task: Task) -> TensorDataset:
    """As many samples as make `task.steps` full batches in `task.epochs` epochs: inputs (N, 64), labels (N,)."""
    generator = torch.Generator().manual_seed(task.seed)
    inputs = torch.randn(task.steps // task.epochs * task.batch_size, FEATURES, generator=generator)
    directions = torch.randn(FEATURES, CLASSES, generator=generator)
    return TensorDataset(INPUT_SCALE * inputs, (inputs @ directions).argmax(dim=1))


def make_loader(task: Task, dataset: TensorDataset) -> DataLoader[tuple[Tensor, ...]]:
    """The loader of those who bring their own; the other libraries build the same from `dataset`."""
    return DataLoader(dataset, batch_size=task.batch_size, shuffle=True, num_workers=0)


def make_optimizer(task: Task, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of those who bring their own."""
    return torch.optim.AdamW(model.parameters(), lr=task.learning_rate, weight_decay=task.weight_decay)


def make_model(task: Task) -> nn.Sequential:
    """The model, with the same initial weights at every call."""
    torch.manual_seed(task.seed)
    return nn.Sequential(
        nn.Linear(FEATURES, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, CLASSES),
    )


def dataset_loss(model: nn.Module, dataset: TensorDataset) -> float:
    """Mean cross entropy of `model` over all of `dataset`."""
    inputs, labels = dataset.tensors
    model.eval()
    with torch.no_grad():
        return F.cross_entropy(model(inputs), labels).item()
