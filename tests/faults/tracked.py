"""A training that tells an MLflow server of its course, and what the server must have of it afterwards.

`python tracked.py ARGUMENTS` trains in a process of its own; the arguments are JSON.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

from accmt import AcceleratorModule, FunctionMetric, HyperParameters, Monitor, Trainer, set_seed
from accmt import Callback as UsersCallback

STEPS = 8
BY_STEP = ("train_loss", "epoch", "learning_rate", "own", "cpu_utilization", "cpu_utilization_percent")
BY_EVALUATION = ("val_loss", "error")
EXPECTED = {name: list(range(1, STEPS + 1)) for name in BY_STEP} | {name: [2, 4, 6, 8] for name in BY_EVALUATION}
EXPECTED["own"] = list(range(STEPS))
EXPECTED["checkpoint"] = [3, 6, 8]
VARYING = ("cpu_utilization", "cpu_utilization_percent")


class Model(AcceleratorModule):
    """A small model with dropout that also logs something by itself."""

    def __init__(self) -> None:
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1))

    def training_step(self, batch):
        loss = nn.functional.mse_loss(self.model(batch[0]), batch[1])
        self.log({"own": 2 * loss}, step=self.state.global_step)
        return loss

    def validation_step(self, key, batch):
        outputs = self.model(batch[0])
        return {"loss": nn.functional.mse_loss(outputs, batch[1]), "error": (outputs, batch[1])}


class AtSteps(UsersCallback):
    """Does something at the start (0), before a step is taken (1 to 8), or after the last one (9)."""

    def __init__(self, actions: dict[int, Callable[[], object]]) -> None:
        super().__init__()
        self.actions = actions

    def on_fit_start(self):
        self._do(0)

    def on_before_optimizer_step(self, optimizer):
        self._do(self.state.global_step + 1)

    def on_fit_end(self):
        self._do(STEPS + 1)

    def _do(self, moment: int) -> None:
        self.actions.get(moment, lambda: None)()


def make_data(count: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 4, generator=generator)
    return TensorDataset(inputs, inputs.sum(1, keepdim=True))


def train(
    folder: str | Path, address: str | None, actions: dict[int, Callable[[], object]], **arguments: Any
) -> Trainer:
    """Train for eight steps, with a checkpoint every three and an evaluation every two.

    The experiment has the name of the folder.
    """
    set_seed(0)
    settled: dict[str, Any] = {
        "log_with": None if address is None else "mlflow",
        "logging_dir": address or "logs",
        "log_every": 1,
        "monitor": Monitor(learning_rate=True, cpu_utilization=True, checkpoint=True),
        "checkpoint_every": "3 steps",
        "evaluate_every_n_steps": 2,
        "dataloader_num_workers": 0,
        "metrics": FunctionMetric("error", lambda p, t: (p - t).abs().mean(), greater_is_better=False),
        "callback": AtSteps(actions),
    }
    trainer = Trainer(HyperParameters(2, None, 4, "AdamW", {"lr": 0.01}), folder, **settled | arguments)
    trainer.fit(Model(), make_data(16, 0), make_data(4, 1))
    return trainer


def course(folder: Path) -> list[Any]:
    """What was observed and decided, but for the time that it took."""
    lines = [line for name in ("history.jsonl", "decisions.jsonl") for line in (folder / name).read_text().splitlines()]
    return [{key: value for key, value in json.loads(line).items() if key != "elapsed"} for line in lines]


def points(client: Any, experiment: str) -> dict[str, list[tuple[int, float]]]:
    """Metric -> (step, value) of the only run of an experiment, in the order of the steps."""
    [run] = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return {
        name: sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, name))
        for name in run.data.metrics
    }


def differences(
    found: dict[str, list[tuple[int, float]]], undisturbed: dict[str, list[tuple[int, float]]]
) -> list[str]:
    """What is lost, doubled, or has another value than where nothing was disturbed."""
    problems = []
    for name, expected in EXPECTED.items():
        steps = Counter(step for step, _ in found.get(name, []))
        problems += [f"{name} of step {step} is lost" for step in expected if not steps[step]]
        problems += [f"{name} of step {step} is there {count} times" for step, count in steps.items() if count > 1]
        problems += [f"{name} of step {step} does not belong there" for step in steps if step not in expected]
        if name not in VARYING and not problems and found[name] != undisturbed[name]:
            problems.append(f"{name} is {found[name]} instead of {undisturbed[name]}")
    return problems


def _stand_still(mark: str) -> None:
    Path(mark).touch()
    time.sleep(3600)


def _end_the_server(address: str) -> None:
    urllib.request.urlopen(f"http://{address}/mode/down").close()


if __name__ == "__main__":
    torch.set_num_threads(1)
    given = json.loads(sys.argv[1])
    mark, at, down = given.pop("mark"), given.pop("at"), given.pop("down")
    train(**given, actions={down: lambda: _end_the_server(given["address"]), at: lambda: _stand_still(mark)})
