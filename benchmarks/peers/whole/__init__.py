"""The contestants of `benchmarks/whole.py`: a whole training with all its files, written once for each library.

Each has a file named as in `peers`, with one function, `train(task: Whole) -> None`. After each epoch its mean loss is
logged, every validation set is evaluated, its best model by the loss is saved, and a checkpoint replaces the former.
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

EPOCHS, BATCH, EVAL_BATCH, CLIP_NORM, RATE = 10, 32, 512, 1.0, 3e-3
BUCKETS = 2**15  # of the words of a text


@dataclass(frozen=True, slots=True)
class Whole:
    """What is trained; the same for everybody."""

    folder: Path
    train: Dataset[Any]
    validation: dict[str, Dataset[Any]]
    model: nn.Sequential
    collate: Callable[[Sequence[Any]], Any]

    @property
    def steps(self) -> int:
        return EPOCHS * -(-len(self.train) // BATCH)  # type: ignore[arg-type]

    def loader(self) -> DataLoader[Any]:
        return DataLoader(self.train, BATCH, shuffle=True, collate_fn=self.collate)

    def validation_loaders(self) -> dict[str, DataLoader[Any]]:
        return {key: DataLoader(data, EVAL_BATCH, collate_fn=self.collate) for key, data in self.validation.items()}

    def optimizer(self) -> tuple[torch.optim.AdamW, LambdaLR]:
        """AdamW, and a linear decay that steps with it."""
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=RATE)
        return optimizer, LambdaLR(optimizer, lambda step: 1 - step / self.steps)


def make_task(data: Path, folder: Path) -> Whole:
    """The model of an example, with the same initial weights at every call, and the data that `whole.py` has stored."""
    stored = torch.load(data)
    torch.manual_seed(0)
    if "flat" not in stored["train"]:
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 10))
        sets: dict[str, Any] = {key: TensorDataset(part["images"], part["labels"]) for key, part in stored.items()}
        return Whole(folder, sets.pop("train"), sets, model, default_collate)
    model = nn.Sequential(nn.EmbeddingBag(BUCKETS, 16, padding_idx=0), nn.Dropout(0.3), nn.Linear(16, 3))
    sets = {key: list(zip(part["flat"].split(part["lengths"]), part["labels"])) for key, part in stored.items()}  # noqa: B905
    return Whole(folder, sets.pop("train"), sets, model, collate_texts)


def collate_texts(samples: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    texts, labels = zip(*samples, strict=True)
    return pad_sequence(list(texts), batch_first=True), torch.tensor(labels)


def run(train: Callable[[Whole], None], data: Path, folder: Path, imported: float) -> dict[str, float]:
    """Trains, and returns what hooks of torch have counted."""
    task, counts = make_task(data, folder), {"imported": imported, "steps": 0, "evaluated": 0}

    def forward(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        counts["evaluated"] += 0 if module.training else len(inputs[0])

    def stepped(*_: object) -> None:
        counts["steps"] += 1

    task.model.register_forward_pre_hook(forward)
    register_optimizer_step_post_hook(stepped)
    train(task)
    return counts
