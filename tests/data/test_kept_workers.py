"""Workers outlive epochs and evaluations, and this makes no difference to what is loaded."""

import multiprocessing
import os
import random
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, get_worker_info

from accmt import AcceleratorModule, Callback, set_seed

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
STAGE = {"value": 0.0}


class Part:
    """A part of a dataset, with a state that is not found by its name."""

    def __init__(self):
        self.value = 0.0
        self.draws = random.Random(3)


class Noise(Dataset):
    """Noise of the three generators, and what changes; it notes the processes that load it."""

    stage = 0.0

    def __init__(self, pids: Path | None = None, count=12):
        self.pids, self.count, self.part, self.items = pids, count, Part(), np.zeros(12)

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if self.pids is not None:
            with self.pids.open("a") as file:
                file.write(f"{os.getpid()}\n")
        info = get_worker_info()
        seed = -1 if info is None else (info.seed - info.id) % 1000
        drawn = [torch.rand(()).item(), np.random.rand(), random.random()]
        kept = self.stage, STAGE["value"], self.part.value, self.items[index]
        return torch.tensor([*drawn, seed, index, *kept], dtype=torch.float32)


class Counts(Noise):
    def __getitem__(self, index):
        self.part.value += 1
        return super().__getitem__(index)


class DrawsItself(Noise):
    def __getitem__(self, index):
        self.items[0] = self.part.draws.random()
        return super().__getitem__(index)


class Told(Noise):
    def set_epoch(self, epoch):
        self.stage = epoch


class Locked(Noise):
    """It cannot be pickled."""

    def __init__(self):
        super().__init__()
        self.open = lambda: None
        self.lock = multiprocessing.Lock()


class Drawing(AcceleratorModule):
    """It keeps what is loaded; with `own`, loaders of the user, whose workers end with each pass."""

    def __init__(self, own):
        self.model, self.loaded, self.own = nn.Linear(9, 1), [], own

    def training_step(self, batch):
        self.loaded.append(batch.tolist())
        return self.model(batch).square().mean()

    def validation_step(self, key, batch):
        return self.training_step(batch)

    def get_train_dataloader(self, dataset):
        generator = torch.Generator()
        return DataLoader(dataset, 4, shuffle=True, num_workers=self.own, generator=generator) if self.own else None

    def get_validation_dataloader(self, dataset):
        return DataLoader(dataset, 4, num_workers=self.own) if self.own else None


def loaded(trainer, path, data, *, own=False, validation=None, epochs=3, workers=1, **arguments):
    set_seed(1)
    module = Drawing(own and workers)
    validation = {"a": data} if validation is None else validation
    trainer(path, epochs=epochs, dataloader_num_workers=workers, quiet=True, sanity_check=False, **arguments).fit(
        module, data, validation
    )
    assert multiprocessing.active_children() == []
    return module.loaded


def processes(file):
    return len({int(line) for line in file.read_text().split()} - {os.getpid()})


def loads(file):
    """The number of samples that workers have loaded."""
    return sum(int(line) != os.getpid() for line in file.read_text().split())


@pytest.mark.proves("Trainer(dataloader_num_workers)")
def test_each_loader_starts_its_workers_once(trainer, tmp_path):
    file = tmp_path / "pids"
    loaded(trainer, "kept", Noise(file), validation={"a": Noise(file), "b": Noise(file)}, workers=2)
    assert processes(file) == 6


def test_those_of_the_users_loaders_end_with_each_pass(trainer, tmp_path):
    file = tmp_path / "pids"
    loaded(trainer, "own", Noise(file), validation={"a": Noise(file)}, own=True)
    assert processes(file) == 6


def test_a_process_keeps_sixteen_for_its_validation_data(trainer, tmp_path):
    file = tmp_path / "pids"
    validation = {f"{number}": Noise(file, 8) for number in range(9)}
    loaded(trainer, "many", Noise(None, 4), validation=validation, epochs=2, workers=2)
    assert processes(file) == 16 + 2 * 2


@pytest.mark.parametrize("kind", [Noise, Counts, DrawsItself, Told, Locked])
def test_the_data_are_those_of_new_workers(trainer, kind):
    """Also of datasets that change in a worker, are told epochs, or cannot be looked through."""
    assert loaded(trainer, "kept", kind()) == loaded(trainer, "new", kind(), own=True)


CHANGES = {
    "attribute": lambda data: setattr(data, "stage", data.stage + 1),
    "part": lambda data: setattr(data.part, "value", data.part.value + 1),
    "array": lambda data: data.items.__iadd__(1),
    "class": lambda data: setattr(Noise, "stage", Noise.stage + 1),
    "global": lambda data: STAGE.update(value=STAGE["value"] + 1),
}


HOOKS = ["on_epoch_start", "on_epoch_end", "on_evaluation_end", "on_after_training_step"]


@pytest.mark.parametrize(
    ("change", "hook"), [(change, "on_epoch_start") for change in CHANGES] + [("part", hook) for hook in HOOKS[1:]]
)
def test_what_changes_in_between_reaches_the_workers(trainer, monkeypatch, change, hook):
    """Even if the first batches of the next epoch have been loaded already."""
    found = []
    for own in (False, True):
        monkeypatch.setattr(Noise, "stage", 0.0)
        monkeypatch.setitem(STAGE, "value", 0.0)
        data = Noise()
        callback = type("Changing", (Callback,), {hook: lambda self, data=data: CHANGES[change](data)})()
        found.append(loaded(trainer, f"{own}", data, own=own, callback=callback))
    assert found[0] == found[1]
    assert len({tuple(row[5:]) for batch in found[0] for row in batch}) > 2, "it was seen"


@pytest.mark.parametrize(
    "hook", ["on_epoch_end", "on_epoch_start", "on_before_validation_step", "on_after_validation_step"]
)
def test_so_do_files_that_a_callback_writes_between_epochs(trainer, tmp_path, hook):
    file = tmp_path / "stage"

    class Stages(Dataset):
        def __len__(self):
            return 12

        def __getitem__(self, index):
            return torch.full((9,), float(file.read_text()))

    found = []
    for own in (False, True):
        file.write_text("0")
        changing = {hook: lambda self, *_: file.write_text(str(self.state.epoch + 1))}
        callback = type("Changing", (Callback,), changing)()
        found.append(loaded(trainer, f"{own}", Stages(), own=own, validation={"a": Noise()}, callback=callback))
    assert found[0] == found[1]


class Cut(Callback):
    def __init__(self, step):
        super().__init__()
        self.step = step

    def on_after_optimizer_step(self, optimizer):
        if self.state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("kind", [Noise, Told])
@pytest.mark.parametrize("step", [1, 3, 4, 7])
def test_a_resumed_training_loads_the_same(trainer, kind, step):
    """After a cut within an epoch, and at its end."""
    whole = loaded(trainer, "whole", kind(), workers=2)
    with pytest.raises(KeyboardInterrupt):
        loaded(trainer, "cut", kind(), workers=2, checkpoint_every="1 step", callback=Cut(step))
    rest = loaded(trainer, "cut", kind(), workers=2, checkpoint_every="1 step")
    assert rest == whole[len(whole) - len(rest) :]
    assert len(rest) < len(whole)


class Failing(Drawing):
    def validation_step(self, key, batch):
        if self.state.epoch == self.own:
            raise ArithmeticError
        return super().training_step(batch)

    def get_train_dataloader(self, dataset):
        return None

    get_validation_dataloader = get_train_dataloader


def test_none_is_left_if_an_evaluation_fails_while_they_load_the_next_epoch(trainer):
    with pytest.raises(ArithmeticError):
        trainer(epochs=3, dataloader_num_workers=2, quiet=True, sanity_check=False).fit(Failing(1), Noise(), Noise())
    assert multiprocessing.active_children() == []


def test_nor_if_a_condition_stops_the_training_there(trainer):
    batches = loaded(trainer, "stopped", Noise(), validation={"a": Noise()}, stop_when="epoch >= 2")
    assert len(batches) == 2 * 6


def test_the_next_epoch_is_loaded_while_the_evaluation_runs(trainer, tmp_path):
    """The evaluation waits until samples of the next epoch have been loaded."""
    file = tmp_path / "pids"

    class Waiting(Drawing):
        def validation_step(self, key, batch):
            until = time.monotonic() + 60
            while loads(file) <= 12 and time.monotonic() < until:
                time.sleep(0.01)
            self.loaded.append(loads(file))
            return self.model(batch).square().mean()

    module = Waiting(False)
    arguments = {"dataloader_num_workers": 1, "quiet": True, "sanity_check": False, "evaluate_every": "1 epoch"}
    trainer(epochs=2, **arguments).fit(module, Noise(file), Noise())
    assert module.loaded[3] > 12
    assert loads(file) == 24
