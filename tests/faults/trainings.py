"""The trainings of the fault suite, each in a process of its own (see forks.py), and what is compared of them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import injected
import torch
from torch import nn
from torch.utils.data import TensorDataset

from accmt import AcceleratorModule, Callback, FunctionMetric, HyperParameters, Trainer, load_saving, set_seed

CHECKPOINT = re.compile(r"checkpoint-([0-9]{4,})-step-([0-9]+)")
CHANGED = "-- the model was changed --"


class Deep(AcceleratorModule):
    """A model with dropout, so that random states count, and large enough for a checkpoint to take a while."""

    def __init__(self, width: int) -> None:
        self.model = nn.Sequential(
            nn.Linear(4, width), nn.Tanh(), nn.Dropout(0.2), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)
        )

    def training_step(self, batch):
        inputs, targets = batch
        return nn.functional.mse_loss(self.model(inputs), targets)

    def validation_step(self, key, batch):
        inputs, targets = batch
        outputs = self.model(inputs)
        loss = nn.functional.mse_loss(outputs, targets)
        return {"loss": loss, "error": (outputs, targets), "age": torch.full((len(inputs),), self.state.global_step)}


class Told(Callback):
    """Writes a line when a checkpoint was reported as made: on the way out of the process before anything follows."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def on_save_checkpoint(self):
        line = {"made": self.state.num_checkpoints_made, "time": time.monotonic()}
        os.write(self._file, (json.dumps(line) + "\n").encode())


def make_data(count: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 4, generator=generator)
    return TensorDataset(inputs, inputs.sum(1, keepdim=True))


def train(
    folder: str,
    *,
    told: str,
    ending: str,
    seed: int = 0,
    width: int = 400,
    rules: tuple[str, ...] = ("best_error/valid_loss", "best_age keep 2", "best_train_loss"),
    faults: tuple[dict[str, Any], ...] = (),
    **arguments: Any,
) -> None:
    """Train in a folder, with a checkpoint at every step and an evaluation at every second, and write how it ended.

    Args:
        folder: The model_path.
        told: Where each checkpoint that was reported is noted, a line each.
        ending: Where it is written what the training ended with.
        seed: Of the weights and everything random.
        width: Of the model.
        rules: The savings.
        faults: What is to go wrong: see injected.py.
        **arguments: For the trainer.
    """
    set_seed(seed)
    module = Deep(width)
    settings = HyperParameters(
        2, None, 4, "AdamW", {"lr": 0.01}, scheduler="CosineWithWarmup", scheduler_kwargs={"num_warmup_steps": 2}
    )
    callbacks = [Told(told), *injected.prepare(folder, faults)]
    settled: dict[str, Any] = {
        "dataloader_num_workers": 0,
        "checkpoint_every": "1 step",
        "evaluate_every_n_steps": 2,
        "log_every": 3,
        "metrics": [
            FunctionMetric("error", lambda p, t: (p - t).abs().mean(), greater_is_better=False),
            FunctionMetric(
                "age", lambda steps: steps.double().mean(), greater_is_better=True
            ),  # the newest model is always the best
        ],
    }
    trainer = Trainer(settings, folder, callback=callbacks, **settled | arguments)
    for rule in rules:
        trainer.register_model_saving(rule)
    with unchanged(module):
        trainer.fit(module, make_data(12, 0), make_data(4, 1))
    Path(ending).write_text(json.dumps({"outcome": outcome(trainer, module), **injected.counted()}))


def load(folder: str, *, faults: tuple[dict[str, Any], ...] = (), width: int = 400) -> None:
    """Load a saved model, as a user does after a training."""
    set_seed(0)
    module = Deep(width)
    injected.prepare(folder, faults)
    with unchanged(module):
        load_saving(folder, module)


@contextmanager
def unchanged(module: Deep) -> Iterator[None]:
    """Tell if an error comes before the first step and has changed the model all the same."""
    before = weights_of(module)
    try:
        yield
    except BaseException:
        if not injected.has_started() and weights_of(module) != before:
            print(CHANGED, flush=True)  # noqa: T201  (for the tests)
        raise


def weights_of(module: Deep) -> dict[str, str]:
    return {name: digest(value.numpy().tobytes()) for name, value in module.model.state_dict().items()}


def outcome(trainer: Trainer, module: Any) -> dict[str, Any]:
    """All that has to be equal at the end, bit by bit, but for what the clock says."""
    path = trainer.model_path
    names = [entry.name for entry in (path / "checkpoints").iterdir()]
    newest = path / "checkpoints" / max(name for name in names if CHECKPOINT.fullmatch(name))
    described = timeless(json.loads((newest / "trainer.json").read_text()))
    return {
        "weights": weights_of(module),
        "newest": newest.name,
        "files": {file.name: digest(file.read_bytes()) for file in sorted(newest.glob("*.safetensors"))},
        "trainer": described,
        "history": journal(path / "history.jsonl"),
        "decisions": journal(path / "decisions.jsonl"),
        "savings": {
            str(file.relative_to(path)): digest(file.read_bytes())
            for folder in sorted(path.glob("best_*"))
            if not folder.is_symlink()
            for file in sorted(folder.rglob("*"))
            if file.is_file() and not file.is_symlink()
        },
        "best": {rule: value and [value.values, value.step] for rule, value in _best(trainer)},
    }


def _best(trainer: Trainer) -> list[tuple[str, Any]]:
    return [(rule, trainer.best(rule)) for rule in sorted(trainer.state.model_savings)]


def journal(path: Path) -> list[Any]:
    return [_entry(line) for line in path.read_text(errors="replace").splitlines()]


def _entry(line: str) -> Any:
    try:
        return timeless(json.loads(line))
    except ValueError:
        return line


def timeless(data: Any) -> Any:
    """Without what the clock says."""
    if isinstance(data, dict):
        return {key: timeless(value) for key, value in data.items() if key != "elapsed"}
    return [timeless(item) for item in data] if isinstance(data, list) else data


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
