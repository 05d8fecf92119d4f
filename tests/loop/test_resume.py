"""A training that is interrupted anywhere and started again ends bit by bit as if nothing had happened."""

import hashlib
import json
import random
import textwrap
import time
import warnings

import numpy as np
import pytest
import torch
from launching import launch, start
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, WeightedRandomSampler

from accmt import AcceleratorModule, Callback, FunctionMetric, TrainingHistory, set_seed
from accmt.checkpoint.checkpoints import NoCheckpoint
from accmt.checkpoint.stateful import Mismatch
from accmt.cli.main import main


class PowerCut(BaseException):
    """Not an Exception: nothing in the library may catch it on the way."""


class CutAt(Callback):
    """Cuts the power after an optimizer step."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def on_after_zero_grad(self, optimizer):
        if self.step is not None and self.state.global_step + 1 == self.step:
            raise PowerCut


class Augmented(Dataset):
    """Adds noise from the process-wide generator to every sample."""

    def __init__(self, dataset):
        self._dataset = dataset

    def __len__(self):
        return len(self._dataset)

    def __getitem__(self, index):
        inputs, targets = self._dataset[index]
        return inputs + 0.01 * torch.randn(4), targets


def timeless(data):
    """Without what the clock says."""
    if isinstance(data, dict):
        return {key: timeless(value) for key, value in data.items() if key != "elapsed"}
    return [timeless(item) for item in data] if isinstance(data, list) else data


def contents(path):
    """The tensors of a file, bit by bit: what else is in it may stand in any order."""
    return {name: (tensor.dtype, tensor.shape, tensor.numpy().tobytes()) for name, tensor in load_file(path).items()}


def outcome(training, module):
    """All that has to be equal at the end."""
    checkpoint = max((training.model_path / "checkpoints").iterdir())
    files = {path.name: contents(path) for path in checkpoint.iterdir() if path.suffix == ".safetensors"}
    engine = timeless(json.loads((checkpoint / "trainer.json").read_text())["engine"])
    journals = []
    for name in ("history.jsonl", "replicates.jsonl", "decisions.jsonl"):
        path = training.model_path / name
        lines = path.read_text().splitlines() if path.exists() else []  # replicates only if a rule asks for them
        journals += [timeless(json.loads(line)) for line in lines]
    weights = {name: value.clone() for name, value in module.model.state_dict().items()}
    return weights, files, engine, journals


def assert_same(one, other):
    for name, value in one[0].items():
        assert torch.equal(value, other[0][name]), name
    assert one[1:] == other[1:]


PLAIN = {"evaluate_every_n_steps": 2, "checkpoint_every": "1 step", "log_every": 3}
VARIANTS = {
    "plain": {},
    "accumulation": {"grad_accumulation_steps": 4},
    "adamw and a schedule per step": {
        "optimizer": "AdamW",
        "hps": {"scheduler": "CosineWithWarmup", "scheduler_kwargs": {"num_warmup_steps": 2}},
    },
    "a schedule per epoch": {
        "hps": {"scheduler": "StepLR", "scheduler_kwargs": {"step_size": 1}, "step_scheduler_per_epoch": True}
    },
    "one cycle": {"hps": {"scheduler": "OneCycleLR", "scheduler_kwargs": {"max_lr": 0.1}}},
    "max_steps": {"max_steps": 9},
    "not shuffled": {"shuffle_train": False},
    "two workers": {"dataloader_num_workers": 2},
    "evaluation at epochs": {"evaluate_every_n_steps": None},
    "checkpoints by evaluations or steps": {"checkpoint_every": "1 evaluation or 3 steps"},
}


def train(trainer, path, module, dataset, validation, cut=None, **arguments):
    callback = CutAt(cut)
    settings = {**PLAIN, "replicates": 20, **arguments}
    metric = FunctionMetric("error", lambda p, t: (p - t).abs().mean(), greater_is_better=False)
    training = trainer(path, callback=callback, metrics=metric, patience=9, **settings)
    training.register_model_saving("best_error/valid_loss")
    training.register_model_saving("best_avg(error, 3) keep 2")
    training.register_model_saving("best_train_loss by 1% after 2 steps")
    training.register_model_saving("best_error keep 2 by 0.1 se")
    training.register_model_saving("best_avg(error, 2) by 0.1 se")
    if cut is None:
        training.fit(module, dataset, validation)
    else:
        with pytest.raises(PowerCut):
            training.fit(module, dataset, validation)
    return training


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_cut_at_every_step(trainer, regression, data, variant, full):
    arguments = VARIANTS[variant]
    validation = {"a": data(6, 1), "b": data(5, 2)}
    set_seed(0)
    module = regression(dropout=0.3)
    reference = train(trainer, "whole", module, data(22), validation, **arguments)
    expected, steps = outcome(reference, module), reference.state.global_step
    for cut in range(2, steps + 1, 1 if full else 2) if variant == "plain" else (3, steps // 2 + 2):
        path = f"cut{cut}"
        set_seed(0)
        train(trainer, path, regression(dropout=0.3), data(22), validation, cut=cut, **arguments)
        set_seed(1234)
        module = regression(dropout=0.3)
        resumed = train(trainer, path, module, data(22), validation, **arguments)
        assert_same(outcome(resumed, module), expected)


@pytest.mark.parametrize("every", ["2 steps", "3 steps", "epoch"])
def test_cut_between_checkpoints(trainer, regression, data, every):
    """What was done after the newest checkpoint is done again in the same way; savings and history are the same."""
    set_seed(0)
    module = regression(dropout=0.3)
    reference = train(trainer, "whole", module, data(22), data(5), checkpoint_every=every)
    expected = outcome(reference, module)
    for cut in (7, 8, 11):
        set_seed(0)
        train(trainer, f"cut{cut}", regression(dropout=0.3), data(22), data(5), cut=cut, checkpoint_every=every)
        module = regression(dropout=0.3)
        resumed = train(trainer, f"cut{cut}", module, data(22), data(5), checkpoint_every=every)
        assert_same(outcome(resumed, module), expected)
        mine, theirs = resumed.best("best_train_loss by 1%"), reference.best("best_train_loss by 1%")
        assert (mine.step, mine.values) == (theirs.step, theirs.values)


def weighted(dataset):
    return WeightedRandomSampler([1.0] * len(dataset), len(dataset))


def seeded(dataset):
    return RandomSampler(dataset, generator=torch.Generator().manual_seed(5))


class Lazy:
    """A sampler that draws from the process-wide generator, as users write them."""

    def __init__(self, dataset):
        self._size = len(dataset)

    def __iter__(self):
        return iter(torch.randperm(self._size).tolist())

    def __len__(self):
        return self._size


def unchanged(dataset):
    return None


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize(("make", "workers"), [(weighted, 0), (seeded, 0), (Lazy, 0), (unchanged, 2)])
def test_samplers_and_augmentation(trainer, regression, data, make, workers):
    def run(path, seed, cut=None):
        set_seed(seed)
        module, dataset = regression(dropout=0.3), Augmented(data(22))
        settings = {"sampler": make(dataset), "dataloader_num_workers": workers}
        training = train(trainer, path, module, dataset, data(5), cut=cut, **settings)
        return training, module

    expected = outcome(*run("whole", 0))
    for cut in (3, 6, 7, 10) if workers == 0 else (3, 10):
        run(f"cut{cut}", 0, cut)
        assert_same(outcome(*run(f"cut{cut}", 99)), expected)


class Own(Augmented):
    """Adds noise from generators of its own, which it seeds as the process is seeded."""

    def __init__(self, dataset):
        super().__init__(dataset)
        self.numpy = np.random.default_rng(np.random.randint(1000))
        self.python = random.Random(random.random())

    def __getitem__(self, index):
        inputs, targets = self._dataset[index]
        return inputs + 0.01 * self.python.gauss(0, 1), targets + 0.01 * float(self.numpy.normal())


class Mixed(IterableDataset):
    """A stream that mixes samples by draws from the process-wide generators, and keeps a state if it is told to."""

    def __init__(self, dataset):
        self._samples = Augmented(dataset)

    def __iter__(self):
        waiting = []
        for index in range(len(self._samples)):
            waiting.append(self._samples[index])
            if len(waiting) > 5:
                yield waiting.pop(int(torch.randint(6, ())))
        yield from waiting


class Stateful(Mixed):
    place = 0

    def __iter__(self):
        while self.place < len(self._samples):
            self.place += 1
            yield self._samples[self.place - 1]
        self.place = 0

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]


def of_torchdata(dataset, **given):
    library = pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata is not installed")
    return library.StatefulDataLoader(dataset, 4, **given)


LOADERS = {
    "own generators": lambda data: DataLoader(Own(data), 4, shuffle=True),
    "a stream that mixes": lambda data: DataLoader(Mixed(data), 4),
    "torchdata": lambda data: of_torchdata(Augmented(data), shuffle=True, num_workers=2),
    "torchdata, a stream": lambda data: of_torchdata(Stateful(data), num_workers=1),
}


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")
@pytest.mark.parametrize(
    ("name", "accumulation"),
    [
        ("own generators", 1),
        ("own generators", 4),
        ("a stream that mixes", 4),
        ("torchdata", 1),
        ("torchdata, a stream", 4),
    ],
)
def test_loaders_of_a_module(trainer, regression, data, name, accumulation):
    """With generators of the module and of the validation data, which a checkpoint keeps as well."""

    class Drawing(regression):
        def __init__(self):
            super().__init__(dropout=0.3)
            self.random = random.Random(random.random())

        def training_step(self, batch):
            return super().training_step(batch) + self.random.random() * sum(p.sum() for p in self.model.parameters())

        def get_train_dataloader(self, dataset):
            return LOADERS[name](dataset)

    def run(path, seed, cut=None):
        set_seed(seed)
        module, validation = Drawing(), {"a": Own(data(6)), "b": data(5)}
        settings = {"grad_accumulation_steps": accumulation, "cut": cut}
        return train(trainer, path, module, data(22), validation, **settings), module

    expected = outcome(*run("whole", 0))
    for cut in (3, 8) if accumulation == 1 else (2, 4):
        run(f"cut{cut}", 0, cut)
        assert_same(outcome(*run(f"cut{cut}", 99)), expected)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_model_of_transformers(trainer):
    """Its words are masked at random in workers, and it has dropout."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    sizes = {"vocab_size": 16, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(**sizes, intermediate_size=16, max_position_embeddings=16)

    class Masked(AcceleratorModule):
        def __init__(self):
            self.model = transformers.BertForMaskedLM(config)

        def training_step(self, batch):
            return self.model(**batch).loss

        def validation_step(self, key, batch):
            return self.training_step(batch)

    def mask(texts):
        words = torch.tensor(texts)
        chosen = torch.rand(words.shape) < 0.5
        return {"input_ids": words.masked_fill(chosen, 4), "labels": words.masked_fill(~chosen, -100)}

    texts = [[5 + (index + place) % 11 for place in range(8)] for index in range(22)]

    def run(path, seed, cut=None):
        set_seed(seed)
        module = Masked()
        settings = {"optimizer": "AdamW", "collate_fn": mask, "dataloader_num_workers": 2}
        training = trainer(path, callback=CutAt(cut), **PLAIN, **settings)
        if cut is None:
            training.fit(module, texts, {"dev": texts[:5]})
        else:
            with pytest.raises(PowerCut):
                training.fit(module, texts, {"dev": texts[:5]})
        return training, module

    expected = outcome(*run("whole", 0))
    run("cut", 0, 9)
    assert_same(outcome(*run("cut", 99)), expected)


def test_resume_by_index_goes_on_from_there(trainer, regression, data):
    common = {"multiple_checkpoints": True, "checkpoint_every": "2 steps"}
    set_seed(0)
    module = regression(dropout=0.3)
    training = train(trainer, "m", module, data(22), data(5), **common)
    expected = {k: v.clone() for k, v in module.model.state_dict().items()}
    before = (training.model_path / "history.jsonl").read_text().splitlines()
    module = regression(dropout=0.3)
    again = train(trainer, "m", module, data(22), data(5), resume=2, **common)
    assert all(torch.equal(value, expected[name]) for name, value in module.model.state_dict().items())
    names = sorted(path.name for path in (again.model_path / "checkpoints").iterdir())
    assert names == [f"checkpoint-{i:04d}-step-{2 * i}" for i in range(1, 7)]
    left = sorted(path.name for path in (again.model_path / "earlier-1").iterdir())
    assert left == [f"checkpoint-{i:04d}-step-{2 * i}" for i in range(3, 7)]
    after = (again.model_path / "history.jsonl").read_text().splitlines()
    assert len(before) == len(after)
    assert before[:2] == after[:2]


@pytest.mark.proves("Trainer(resume)")
@pytest.mark.parametrize(
    ("resume", "text"), [(True, "resume=True, but there is no checkpoint in"), (-1, "resume=-1"), (3, "resume=3")]
)
def test_nothing_to_resume_from(trainer, regression, data, resume, text):
    training = trainer(resume=resume, multiple_checkpoints=True)
    with pytest.raises(NoCheckpoint, match=text):
        training.fit(regression(), data(8))
    assert not training.model_path.exists()


@pytest.mark.proves("Trainer(resume)")
def test_unknown_index(trainer, regression, data):
    trainer(multiple_checkpoints=True).fit(regression(), data(8))
    with pytest.raises(NoCheckpoint, match=r"there is no checkpoint 7 in .*; the checkpoints are: 1, 2"):
        trainer(multiple_checkpoints=True, resume=7).fit(regression(), data(8))


def test_resume_false_starts_anew(trainer, regression, data):
    trainer().fit(regression(), data(8))
    fresh = trainer(resume=False)
    fresh.fit(regression(), data(8))
    assert [decision.progress.step for decision in fresh.decisions] == [2, 4]
    assert len((fresh.model_path / "history.jsonl").read_text().splitlines()) == 2


def test_a_finished_training_has_nothing_left_to_do_and_can_be_prolonged(trainer, regression, data):
    class Steps(Callback):
        def __init__(self):
            super().__init__()
            self.seen = []

        def on_resume(self):
            self.seen.append("resume")

        def on_after_optimizer_step(self, optimizer):
            self.seen.append(self.state.global_step + 1)

    trainer().fit(regression(), data(8), data(4))
    again = Steps()
    trainer(callback=again).fit(regression(), data(8), data(4))
    assert again.seen == ["resume"]
    longer = Steps()
    training = trainer(epochs=3, callback=longer)
    training.fit(regression(), data(8), data(4))
    assert longer.seen == ["resume", 5, 6]
    assert [decision.progress.epoch for decision in training.decisions] == [1, 2, 3]


def test_a_training_that_was_cut_short_by_max_steps_continues_in_its_epoch(trainer, regression, data):
    set_seed(0)
    module = regression()
    trainer("whole").fit(module, data(20))
    expected = module.model.state_dict()
    set_seed(0)
    trainer("parts", max_steps=7).fit(regression(), data(20))
    module = regression()
    trainer("parts").fit(module, data(20))
    assert all(torch.equal(value, expected[name]) for name, value in module.model.state_dict().items())


def test_patience_that_ran_out_stays_run_out_until_it_is_raised(trainer, regression, data):
    class Stuck(regression):
        def validation_step(self, key, batch):
            return torch.tensor(1.0)

    trainer(epochs=10, patience=2).fit(Stuck(), data(8), data(4))
    same = trainer(epochs=10, patience=2)
    same.fit(Stuck(), data(8), data(4))
    assert same.state.global_step == 6
    more = trainer(epochs=10, patience=4)
    more.fit(Stuck(), data(8), data(4))
    assert more.state.global_step == 10


def test_a_damaged_checkpoint_is_passed_over(trainer, regression, data, capsys):
    training = trainer(multiple_checkpoints=True)
    training.fit(regression(), data(8))
    newest = max((training.model_path / "checkpoints").iterdir())
    weights = newest / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    again = trainer(multiple_checkpoints=True)
    again.fit(regression(), data(8))
    said = "warning: checkpoint-0002-step-4 cannot be used: model.safetensors is damaged"
    assert capsys.readouterr().out.count(said) == 1
    assert again.state.global_step == 4
    assert newest.exists()


@pytest.mark.parametrize(
    ("change", "text"),
    [({"schema": 99}, "update accmt to continue from it"), ({"position": None}, "cannot be")],
)
def test_a_checkpoint_that_cannot_be_read_is_said_and_not_what_fails_then(trainer, regression, data, change, text):
    """Its files are whole, so it is trusted: another version wrote it, or somebody else."""
    trainer(epochs=1).fit(regression(), data(8))
    training = trainer(epochs=2)
    [folder] = (training.model_path / "checkpoints").iterdir()
    file = folder / "trainer.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    listed = json.loads((folder / "MANIFEST.json").read_text())
    content = file.read_bytes()
    listed["files"]["trainer.json"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "MANIFEST.json").write_text(json.dumps(listed))
    with pytest.raises((Mismatch, NoCheckpoint), match=text):
        training.fit(regression(), data(8))


class Drawing(Augmented):
    """Draws from a generator of its own."""

    def __init__(self, dataset, own):
        super().__init__(dataset)
        self.own = own


def test_a_generator_of_another_kind_is_refused_before_anything_is_loaded(trainer, regression, data):
    trainer(epochs=1).fit(regression(), Drawing(data(8), torch.Generator()))
    module = regression()
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    with pytest.raises(NoCheckpoint, match="Nothing was changed"):
        trainer(epochs=2).fit(module, Drawing(data(8), np.random.default_rng(0)))
    assert all(torch.equal(value, before[name]) for name, value in module.model.state_dict().items())
    again = trainer(epochs=2)
    again.fit(regression(), Drawing(data(8), torch.Generator()))
    assert again.state.global_step == 4


def test_changed_rules_are_said(trainer, regression, data, capsys):
    first = trainer()
    first.register_model_saving("best_valid_loss")
    first.register_model_saving("best_train_loss")
    first.fit(regression(), data(8), data(4))
    second = trainer(epochs=3)
    second.register_model_saving("best_valid_loss by 1%")
    second.register_model_saving("best_valid_loss", name="other")
    capsys.readouterr()
    second.fit(regression(), data(8), data(4))
    text = " ".join(capsys.readouterr().out.split())
    assert "the rule 'best_valid_loss' has changed: it starts fresh" in text
    assert "the rule 'other' is new: it starts fresh" in text
    assert "the rule 'best_train_loss' is gone" in text


SCRIPT = """
    import os, sys
    import torch
    from torch import nn
    from torch.utils.data import TensorDataset
    from accmt import AcceleratorModule, Callback, HyperParameters, Trainer, set_seed

    class Module(AcceleratorModule):
        def __init__(self):
            self.model = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.2), nn.Linear(64, 1))
        def training_step(self, batch):
            return nn.functional.mse_loss(self.model(batch[0]), batch[1])
        def validation_step(self, key, batch):
            return self.training_step(batch)

    class Noisy(TensorDataset):
        def __getitem__(self, index):
            inputs, targets = super().__getitem__(index)
            return inputs + 0.01 * torch.randn(4), targets

    set_seed(int(sys.argv[2]))
    x = torch.randn(120, 4, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(x, x.sum(1, keepdim=True))
    trainer = Trainer(HyperParameters(2, batch_size=4, optimizer="AdamW"), sys.argv[1], dataloader_num_workers=1,
                      checkpoint_every="1 step", evaluate_every_n_steps=10)
    module = Module()
    trainer.fit(module, Noisy(*data.tensors), {"a": data, "b": Noisy(x[:9], x[:9, :1])})
    torch.save(module.model.state_dict(), sys.argv[1] + "/end.bin")
"""


def test_kill_minus_nine(tmp_path):
    """A real process, really killed, several times; the next one ends as an undisturbed one does, though it is seeded
    in another way, and so are the hashes of its texts."""
    script, checkpoints = textwrap.dedent(SCRIPT), tmp_path / "killed" / "checkpoints"
    launch(script, tmp_path / "whole", 0).check()
    for seed, step in enumerate((7, 30, 44)):  # of 60; the second epoch begins after 30
        with start(script, tmp_path / "killed", seed, server=seed % 2) as process:
            while not any(int(path.name.split("-")[-1]) >= step for path in checkpoints.glob("checkpoint-*")):
                assert process.is_running(), process.end()
                time.sleep(0.001)
            time.sleep(random.uniform(0, 0.05))  # anywhere in a step
            process.kill()
            assert process.end().returncode == -9
    launch(script, tmp_path / "killed", 7, server=1).check()
    ends = [torch.load(tmp_path / folder / "end.bin", weights_only=True) for folder in ("whole", "killed")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_no_warning_is_given_by_a_normal_run(trainer, regression, data):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer().fit(regression(), data(8), data(4))
        trainer(epochs=3).fit(regression(), data(8), data(4))


TWO = """
    import json, os, random, sys
    from pathlib import Path
    import numpy as np
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, IterableDataset
    from accmt import AcceleratorModule, HyperParameters, Trainer, set_seed

    torch.set_num_threads(1)
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    x = torch.randn(44, 4, generator=torch.Generator().manual_seed(0))

    def noisy(index):
        return x[index] + 0.01 * torch.randn(4) + 0.01 * random.random() + 0.01 * np.random.rand()

    class Samples(torch.utils.data.Dataset):
        def __len__(self):
            return 44
        def __getitem__(self, index):
            return noisy(index)

    class Stream(IterableDataset):
        place = 0
        def __iter__(self):
            while self.place < 44:
                self.place += 1
                yield noisy(self.place - 1)
            self.place = 0

    class Stateful(Stream):
        def state_dict(self):
            return {"place": self.place}
        def load_state_dict(self, state):
            self.place = state["place"]

    class Drawing:
        def __len__(self):
            return 44
        def __iter__(self):
            return iter(np.random.permutation(44).tolist())

    loaders = {
        "samples": lambda: DataLoader(Samples(), 4, sampler=Drawing(), num_workers=1),
        "stream": lambda: DataLoader(Stream(), 4),
        "stateful": lambda: DataLoader(Stateful(), 4),
    }
    try:
        from torchdata.stateful_dataloader import StatefulDataLoader
        loaders["torchdata"] = lambda: StatefulDataLoader(Stateful(), 4, num_workers=1)
    except ImportError:
        pass

    class PowerCut(BaseException):
        pass

    def train(path, make, seed, cut=None):
        class Module(AcceleratorModule):
            def __init__(self):
                self.model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 1))
            def training_step(self, batch):
                if self.state.global_step == cut:
                    raise PowerCut
                return (self.model(batch) - batch.sum(1, keepdim=True)).square().mean()
            def get_train_dataloader(self, dataset):
                return make()
        set_seed(seed)
        module = Module()
        settings = {"checkpoint_every": "1 step", "destroy_after_training": False, "quiet": True}
        trainer = Trainer(HyperParameters(2, batch_size=4, optimizer="AdamW"), folder / path, **settings)
        try:
            trainer.fit(module)
        except PowerCut:
            return None
        return {name: value.tolist() for name, value in module.model.state_dict().items()}

    found = {}
    for name, make in loaders.items():
        whole = train(name, make, 0)
        for cut in (2, 8):
            train(f"{name}-{cut}", make, 0, cut)
            found[f"{name}, {cut}"] = train(f"{name}-{cut}", make, 99) == whole
    (folder / f"rank{rank}.json").write_text(json.dumps(found))
"""


@pytest.mark.xdist_group("processes")
def test_two_processes(tmp_path):
    """Streams, states, workers and samplers that draw, each process its share."""
    launch(textwrap.dedent(TWO), tmp_path, processes=2).check()
    for rank in (0, 1):
        found = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert len(found) >= 6
        assert [name for name, same in found.items() if not same] == []


@pytest.mark.parametrize("name", ["decisions.jsonl", "history.jsonl"])
def test_a_damaged_journal_is_moved_away_and_its_readable_lines_are_kept(trainer, regression, data, capsys, name):
    trainer(epochs=3, quiet=True).fit(regression(), data(8), data(8))
    path = trainer(epochs=3).model_path / name
    first, _, third = path.read_text().splitlines(keepends=True)
    path.write_text(damaged := f"{first}garbage\n{third}")
    capsys.readouterr()
    training = trainer(epochs=4, quiet=True)
    training.fit(regression(), data(8), data(8))
    kind = {"decisions.jsonl": "decisions", "history.jsonl": "evaluations"}[name]
    aside = training.model_path / "earlier-1"
    text = f"2 of 3 {kind} can be read: the rest is lost; the damaged {name} was moved to {aside}"
    shown = capsys.readouterr()
    assert f"warning: {text}\n" in (shown.out + shown.err).replace("\n  ", " ")
    assert (aside / name).read_text() == damaged
    lines = path.read_text().splitlines(keepends=True)
    assert lines[:2] == [first, third]
    assert len(lines) == 3
    assert main(["explain", str(training.model_path)]) == 0
    assert main(["replay", str(training.model_path)]) == 0
    assert "damaged" not in capsys.readouterr().err
    assert TrainingHistory.load(training.model_path)


def test_data_lost_is_a_warning_that_quiet_shows(trainer, regression, data, capsys):
    trainer(epochs=2, quiet=True).fit(regression(), data(8), data(8))
    training = trainer(epochs=3, quiet=True)
    (training.model_path / "history.jsonl").write_text("")
    (training.model_path / "run.json").write_text("garbage")
    capsys.readouterr()
    training.fit(regression(), data(8), data(8))
    shown = "".join(capsys.readouterr())
    assert "warning: 0 of 2 evaluations can be read: the rest is lost\n" in shown
    assert "warning: earlier starts are not known: " in shown
