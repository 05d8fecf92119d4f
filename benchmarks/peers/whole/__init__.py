"""The contestants of `benchmarks/whole.py`: a whole training with all its files, written once for each library.

Each contestant has a file of its own, named as in `peers`, with one function, `train(task: Whole) -> None`. The mean
training loss of each epoch is logged; then every validation set is evaluated, and its best model by the loss is saved;
then a checkpoint of model, optimizer, scheduler and random state replaces the one before.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

BUCKETS, CLASSES = 2**15, {"digits": 10, "domains": 3}
LEARNING_RATES = {"digits": 3e-3, "domains": 5e-3}


@dataclass(frozen=True, slots=True)
class Whole:
    """What is trained, and how; the same for everybody."""

    name: str
    folder: Path
    train: Dataset[Any]
    validation: dict[str, Dataset[Any]]
    model: nn.Sequential
    collate: Callable[[Sequence[Any]], Any]
    epochs: int = 10
    batch_size: int = 32
    eval_batch_size: int = 512
    clip_norm: float = 1.0

    @property
    def learning_rate(self) -> float:
        return LEARNING_RATES[self.name]

    @property
    def steps(self) -> int:
        return self.epochs * -(-len(self.train) // self.batch_size)  # type: ignore[arg-type]

    def training_loader(self) -> DataLoader[Any]:
        return DataLoader(self.train, self.batch_size, shuffle=True, collate_fn=self.collate)

    def validation_loaders(self) -> dict[str, DataLoader[Any]]:
        loader = DataLoader
        return {
            key: loader(data, self.eval_batch_size, collate_fn=self.collate) for key, data in self.validation.items()
        }

    def optimizer(self) -> torch.optim.AdamW:
        return torch.optim.AdamW(self.model.parameters(), lr=self.learning_rate)

    def scheduler(self, optimizer: torch.optim.Optimizer) -> LambdaLR:
        """Linear decay, stepped after each optimizer step."""
        return LambdaLR(optimizer, lambda step: 1 - step / self.steps)


def make_model(name: str) -> nn.Sequential:
    """The model of the example, with the same initial weights at every call."""
    torch.manual_seed(0)
    if name == "digits":
        return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, CLASSES[name]))
    return nn.Sequential(nn.EmbeddingBag(BUCKETS, 16, padding_idx=0), nn.Dropout(0.3), nn.Linear(16, CLASSES[name]))


def make_datasets(stored: dict[str, Any]) -> dict[str, Dataset[Any]]:
    """The datasets that `whole.py` stored: tensors of images, or texts in one tensor."""
    if "lengths" not in next(iter(stored.values())):
        return {key: TensorDataset(part["images"], part["labels"]) for key, part in stored.items()}
    texts = {key: part["flat"].split(part["lengths"]) for key, part in stored.items()}
    return {key: list(zip(texts[key], part["labels"], strict=True)) for key, part in stored.items()}  # type: ignore[misc]


def collate_texts(samples: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    texts, labels = zip(*samples, strict=True)
    return pad_sequence(list(texts), batch_first=True), torch.tensor(labels)


def run(train: Callable[[Whole], None], data: Path, folder: Path, imported: float) -> dict[str, float]:
    """Trains, and returns what was counted by hooks of torch, the same for all."""
    content = torch.load(data)
    datasets, name = make_datasets(content["parts"]), content["name"]
    collate = default_collate if name == "digits" else collate_texts
    model, counts = make_model(name), {"imported": imported, "steps": 0, "evaluated": 0}

    def forward(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not module.training:
            counts["evaluated"] += len(inputs[0])

    def stepped(*_: object) -> None:
        counts["steps"] += 1

    model.register_forward_pre_hook(forward)
    register_optimizer_step_post_hook(stepped)
    train(Whole(name, folder, datasets.pop("train"), datasets, model, collate))
    return counts
