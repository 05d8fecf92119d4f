"""The training that signals, errors and deaths of processes disturb: `train` is called in each of its processes.

A disturbance is a dictionary: `{"at": "training_step", "step": 5, "do": ["SIGTERM"], "rank": 1}` lets process 1 send
itself a SIGTERM in the training step after five steps. Where it can happen: `training_step`, `validation_step`,
`metric`, `write` (the files of a checkpoint are being written, in the background or not), `exchange` (the processes are
telling each other what only one of them knows), and every hook of a callback, by its name. It happens at the first
opportunity, at the first one after `step` steps, or at those with the numbers `nth`, from 1, and only in the first
attempt of torchrun, or that of `attempt`. What can happen: a signal to this process; `raise` an error, `fail` as a full
disk does; `nan` as the training loss; `wait` until the test has made the file `go`; `later`: more than a second goes by
before what follows.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import trainings
from accelerate import PartialState
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.utils.data import Dataset

from accmt import Callback, FunctionMetric, HyperParameters, MetricParallel, Terminated, Trainer, set_seed
from accmt.callbacks import HOOKS
from accmt.checkpoint import checkpointer
from accmt.distributed.heartbeat import Heartbeat


class Disturber:
    """Lets disturbances happen when their moment comes, and writes down what happened.

    Args:
        disturbances: Those of all processes.
        rank: Of this process.
        folder: Where noted.jsonl is, with a line for all that happened.
    """

    def __init__(self, disturbances: Sequence[Mapping[str, Any]], rank: int, folder: Path) -> None:
        here = {"rank": rank, "attempt": int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))}
        wheres = ({"rank": rank, "attempt": 0, **each} for each in disturbances)
        self._waiting = [each for each in wheres if here.items() <= each.items()]
        self._rank = rank
        self._folder = folder
        self._file = os.open(folder / "noted.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._counts: dict[str, int] = {}
        self.state: Any = None

    def note(self, **what: Any) -> None:
        line = {**what, "rank": self._rank, "step": self.state and self.state.global_step, "time": time.monotonic()}
        os.write(self._file, (json.dumps(line) + "\n").encode())

    def come(self, moment: str) -> set[str]:
        """The moment has come: do what is due. What happened is given back, for what the caller has to do himself."""
        self._counts[moment] = self._counts.get(moment, 0) + 1
        happened: set[str] = set()
        for each in [each for each in self._waiting if self._is_due(each, moment)]:
            if "nth" not in each:
                self._waiting.remove(each)
            for action in each["do"]:
                self.note(at=moment, did=action)
                self._do(action)
                happened.add(action)
        return happened

    def _is_due(self, each: dict[str, Any], moment: str) -> bool:
        if each["at"] != moment:
            return False
        if "nth" in each:
            return self._counts[moment] in each["nth"]
        return "step" not in each or (self.state is not None and self.state.global_step == each["step"])

    def _do(self, action: str) -> None:
        match action:
            case "raise":
                raise ArithmeticError("disturbed")
            case "fail":
                raise OSError(28, "No space left on device")
            case "wait":
                while not (self._folder / "go").exists():
                    time.sleep(0.001)
            case "later":
                time.sleep(1.1)
            case "nan":
                pass
            case _:
                os.kill(os.getpid(), signal.Signals[action])


class Module(trainings.Deep):
    """Its steps take a while, if they are asked to."""

    def __init__(self, disturber: Disturber, pause: float) -> None:
        super().__init__(8)
        self._come, self._pause = disturber.come, pause

    def training_step(self, batch):
        happened = self._come("training_step")
        time.sleep(self._pause)
        loss = super().training_step(batch)
        return loss * float("nan") if "nan" in happened else loss

    def validation_step(self, key, batch):
        self._come("validation_step")
        time.sleep(self._pause)
        outputs = super().validation_step(key, batch)
        return {**outputs, "spread": outputs["error"]}


class Parallel(MetricParallel):
    """Computed on each process over its own part."""

    def __init__(self, disturber: Disturber) -> None:
        super().__init__("spread", greater_is_better=False)
        self._come = disturber.come

    def compute(self, predictions, targets):
        self._come("metric")
        return {"spread": (predictions - targets).abs().amax()}


class Slow(Dataset):
    """Takes its time for each sample."""

    def __init__(self, dataset: Dataset, pause: float) -> None:
        self._dataset, self._pause = dataset, pause

    def __len__(self):
        return len(self._dataset)

    def __getitem__(self, index):
        time.sleep(self._pause)
        return self._dataset[index]


def callback_of(disturber: Disturber) -> Callback:
    """A callback in whose every hook something can happen."""

    def hook(name: str) -> Any:
        def call(self: Callback, *_: Any) -> None:
            disturber.state = self.state
            disturber.come(name)

        return call

    return type("Disturbs", (Callback,), {name: hook(name) for name in HOOKS})()


def watch(disturber: Disturber) -> None:
    """Let moments come that no callback sees."""
    write_files, ask = checkpointer.write_files, Heartbeat._ask

    def writes(folder: Path, files: Any) -> Iterator[Path]:
        disturber.come("write")
        yield from write_files(folder, files)

    def asks(self: Heartbeat) -> None:
        ask(self)
        disturber.come("exchange")

    checkpointer.write_files, Heartbeat._ask = writes, asks


@dataclass(frozen=True)
class Course:
    """What a training is like.

    Attributes:
        hps: Hyperparameters other than the default ones.
        sizes: Samples of the training data, and of each validation set, which are called a and b.
        pauses: Seconds that a step takes at least, and each sample of the training data.
        rules: The savings.
        handles: The script has handlers of its own for the signals, which let the process live.
    """

    hps: Mapping[str, Any] = field(default_factory=dict)
    sizes: Sequence[int] = (22, 6)
    pauses: Sequence[float] = (0.0, 0.0)
    rules: Sequence[str] = ("best_error/valid_loss", "best_avg(error, 3) keep 2", "best_train_loss by 1% after 2 steps")
    handles: bool = False


def train(
    folder: str,
    *,
    told: str,
    ending: str,
    seed: int = 0,
    faults: Sequence[Mapping[str, Any]] = (),
    ranks: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> None:
    """Train in a folder and write how it ended, each process for itself.

    Args:
        folder: The model_path.
        told: Where each checkpoint that was reported is noted; what else happened is noted beside it, in noted.jsonl.
        ending: The file for what the training ended with, with the rank before its suffix but for the main process.
        seed: Of the weights and everything random.
        faults: What is to happen.
        ranks: `rank`, `world` and the `port` of the store of all processes, and `timeout` in seconds for what one waits
            for the others; without it there is one process, or what torchrun says.
        **arguments: For the course, and for the trainer.
    """
    rank = _join(ranks)
    own = {entry.name: arguments.pop(entry.name) for entry in fields(Course) if entry.name in arguments}
    course, disturber = Course(**own), Disturber(faults, rank, Path(told).parent)
    handlers = _handlers(course, disturber)
    watch(disturber)
    set_seed(seed)
    module = Module(disturber, course.pauses[0])
    trainer = _trainer(folder, course, disturber, [trainings.Told(told)] if rank == 0 else [], arguments)
    data = trainings.make_data(course.sizes[0], 0)
    validation = {"ab"[number]: trainings.make_data(size, number + 1) for number, size in enumerate(course.sizes[1:])}
    ended: dict[str, Any] = {"ended": "", "text": ""}
    try:
        trainer.fit(module, Slow(data, course.pauses[1]) if course.pauses[1] else data, validation)
        outcome = trainings.outcome(trainer, module) if rank == 0 else _share(trainer, module)
        Path(ending).with_suffix(f".{rank}.json" if rank else ".json").write_text(json.dumps({"outcome": outcome}))
    except BaseException as error:
        ended = {"ended": type(error).__name__, "text": str(error)}
        if not (isinstance(error, Terminated) and course.handles):
            raise
        ended["code"] = error.code
    finally:
        kept = all(signal.getsignal(number) is handler for number, handler in handlers.items())
        disturber.note(**ended, kept=kept)
    if "code" in ended:
        os._exit(ended["code"])


def _handlers(course: Course, disturber: Disturber) -> dict[int, Any]:
    """Those of the script, where it has some. Ctrl-C is what it is in a terminal."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    numbers = (signal.SIGTERM, signal.SIGUSR1) if course.handles else ()
    handlers = {number: lambda got, frame: disturber.note(handled=signal.Signals(got).name) for number in numbers}
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return handlers


def _trainer(
    folder: str, course: Course, disturber: Disturber, callbacks: list[Callback], arguments: dict[str, Any]
) -> Trainer:
    settings = {"epochs": 2, "batch_size": 4, "optimizer": "AdamW", "optim_kwargs": {"lr": 0.01}, **course.hps}
    settled: dict[str, Any] = {
        "dataloader_num_workers": 0,
        "checkpoint_every": "1 step",
        "evaluate_every_n_steps": 2,
        "log_every": 3,
        "patience": 9,
        "callback": [callback_of(disturber), *callbacks],
        "metrics": [
            FunctionMetric("error", lambda p, t: (p - t).abs().mean(), greater_is_better=False),
            Parallel(disturber),
        ],
    }
    trainer = Trainer(HyperParameters(**settings), folder, **settled | arguments)
    for rule in course.rules:
        trainer.register_model_saving(rule)
    return trainer


def _share(trainer: Trainer, module: Any) -> dict[str, Any]:
    """What the other processes hold at the end."""
    decisions = [trainings.timeless(decision.to_json()) for decision in trainer.decisions]
    return {"weights": trainings.weights_of(module), "decisions": decisions}


def _join(ranks: Mapping[str, Any] | None) -> int:
    """Be one of several processes, if there are several; the rank."""
    if ranks is None and "RANK" not in os.environ:
        return 0
    os.environ["ACCELERATE_USE_CPU"] = "true"
    if ranks is not None:
        own = {"RANK": ranks["rank"], "LOCAL_RANK": ranks["rank"], "WORLD_SIZE": ranks["world"]}
        own |= {"LOCAL_WORLD_SIZE": ranks["world"], "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": ranks["port"]}
        # The store is in the process of the test: there is no port that another test could take meanwhile.
        os.environ |= {name: str(value) for name, value in own.items()} | {"TORCHELASTIC_USE_AGENT_STORE": "True"}
        if "timeout" in ranks:
            PartialState(cpu=True, timeout=timedelta(seconds=ranks["timeout"]))
    return int(os.environ["RANK"])


def launch(restarts: int, **arguments: Any) -> None:
    """Be what torchrun is: its own agent, which starts two processes, but by forking."""
    config = LaunchConfig(
        1,
        1,
        2,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id="launch",
        max_restarts=restarts,
        start_method="fork",
        monitor_interval=0.05,
    )
    elastic_launch(config, _train)(arguments)


def _train(arguments: dict[str, Any]) -> None:
    train(**arguments)


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(**json.loads(sys.argv[1]))
