"""A careful loop by hand: each file is flushed to the disk and replaces the former one at once."""

import json
import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader
from tqdm import tqdm

from . import CLIP_NORM, EPOCHS, Whole


def train(task: Whole) -> None:
    model, loader, validation = task.model, task.loader(), task.validation_loaders()
    optimizer, scheduler = task.optimizer()
    best: dict[str, float] = {}
    with (task.folder / "history.jsonl").open("w") as history, tqdm(total=task.steps) as bar:
        for epoch in range(EPOCHS):
            model.train()
            total = torch.zeros(())
            for inputs, labels in loader:
                loss = F.cross_entropy(model(inputs), labels)
                loss.backward()
                clip_grad_norm_(model.parameters(), CLIP_NORM)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
                total += loss.detach()
                bar.update()
            values = {key: evaluate(model, each) for key, each in validation.items()}
            line = json.dumps({"epoch": epoch, "train_loss": total.item() / len(loader), "validation": values})
            bar.write(line)
            print(line, file=history, flush=True)
            for key, value in values.items():
                if value["loss"] < best.get(key, float("inf")):
                    best[key] = value["loss"]
                    save(model.state_dict(), task.folder / f"best_{key}.pt")
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "best": best, "epoch": epoch + 1}
            state |= {"scheduler": scheduler.state_dict(), "random": torch.get_rng_state()}
            save(state, task.folder / "checkpoint.pt")


@torch.no_grad()
def evaluate(model: nn.Module, loader: DataLoader[Any]) -> dict[str, float]:
    model.eval()
    loss, right, count = torch.zeros(()), torch.zeros(()), 0
    for inputs, labels in loader:
        logits = model(inputs)
        loss += F.cross_entropy(logits, labels, reduction="sum")
        right += (logits.argmax(1) == labels).sum()
        count += len(labels)
    return {"loss": loss.item() / count, "accuracy": right.item() / count}


def save(state: dict[str, Any], path: Path) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)
