"""`keep k average`: the average of the kept models, saved at the end if it is better than the best of them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from launching import launch
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, TensorDataset

from accmt import AcceleratorModule, Callback, ExtendedAcceleratorModule, HyperParameters, Trainer, load_best
from accmt.checkpoint.weights import read_weights
from accmt.cli.main import main
from accmt.config.errors import ConfigError

RULE = "valid_loss keep 3 average"


def sine(normalize: bool = False) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(1, 8), *([nn.BatchNorm1d(8)] * normalize), nn.Tanh(), nn.Linear(8, 1))


def data(length: int = 32) -> TensorDataset:
    inputs = torch.linspace(-1, 1, length)[:, None]
    return TensorDataset(inputs, torch.sin(3 * inputs) + 0.3 * torch.sign(torch.cos(40 * inputs)))


class Fitting(AcceleratorModule):
    """Evaluations find the given losses, the last one that of the average, so that a test decides what is saved."""

    def __init__(self, losses: list[float] | None = None, *, normalize: bool = False) -> None:
        self.model, self.losses = sine(normalize), None if losses is None else iter(losses)

    def training_step(self, batch):
        inputs, targets = batch
        loss = nn.functional.mse_loss(self.model(inputs), targets)
        self.log({"seen": loss.detach()}, self.state.global_step)
        return loss

    def validation_step(self, key, batch):
        if self.losses is None:
            return {"loss": nn.functional.mse_loss(self.model(batch[0]), batch[1])}
        return {"loss": torch.tensor(next(self.losses), dtype=torch.float64)}

    def get_optimizer(self):
        return torch.optim.SGD(self.model.parameters(), lr=0.3)


def train(folder: Path, module: AcceleratorModule, rule: str = RULE, *, epochs: int = 4, **arguments):
    arguments = {"quiet": True, "dataloader_num_workers": 0, "sanity_check": False} | arguments
    trainer = Trainer(HyperParameters(epochs=epochs, batch_size=8), folder, **arguments)
    trainer.register_model_saving(rule)
    trainer.fit(module, data(), data(8))
    return trainer


def averages(folder: Path) -> list[str]:
    lines = [json.loads(line) for line in (folder / "decisions.jsonl").read_text().splitlines()]
    return [line["average"]["reason"] for line in lines if "average" in line]


def mean_of(folder: Path, names: list[str]) -> dict[str, torch.Tensor]:
    models = [read_weights(folder / name) for name in names]
    return {name: torch.stack([model[name].double() for model in models]).mean(0).float() for name in models[0]}


def test_an_average_that_is_better_is_saved_beside_its_models_and_is_the_best_from_then_on(tmp_path):
    module = Fitting([0.5, 0.4, 0.3, 0.2, 0.1])
    trainer = train(tmp_path, module)
    folder = tmp_path / "best_valid_loss"
    names = [f"evaluation-{n:04d}-step-{4 * n}" for n in (4, 3, 2)]
    assert averages(tmp_path) == ["average of 3 models: 0.1 beats 0.2, saved"]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*names, "average", "average.json", "index.json"])
    expected = mean_of(folder, names)
    assert all(torch.equal(value, expected[name]) for name, value in read_weights(folder / "average").items())
    last = read_weights(folder / names[0])
    assert all(torch.equal(value, last[name]) for name, value in module.model.state_dict().items())  # trained weights
    best = trainer.best()
    assert (best.folder, best.values, best.average_of) == (folder / "average", {"valid_loss": 0.1}, tuple(names))
    assert trainer.state.model_savings == {"best_valid_loss": (0.1,)}
    other = Fitting()
    assert load_best(tmp_path, other).folder == folder / "average"
    assert all(torch.equal(value, expected[name]) for name, value in other.model.state_dict().items())


def test_the_table_at_the_end_has_what_an_average_reaches_on_held_out_datasets(tmp_path, capsys):
    class Judged(Fitting):
        def validation_step(self, key, batch):
            return {"loss": torch.tensor(0.75)} if key == "test" else super().validation_step(key, batch)

    trainer = Trainer(HyperParameters(2, batch_size=8), tmp_path, held_out="test", sanity_check=False)
    trainer.register_model_saving(RULE)
    trainer.fit(Judged([0.5, 0.4, 0.1]), data(), {"dev": data(8), "test": data(8)})
    said = "held out: valid_loss@test 0.75 the average of its 2 models"
    assert said in " ".join(capsys.readouterr().out.replace("\N{NO-BREAK SPACE}", " ").split())


def test_an_average_that_is_not_better_is_not_saved_and_not_made_again(tmp_path, capsys):
    trainer = train(tmp_path, Fitting([0.5, 0.4, 0.3, 0.2, 0.25]), quiet=False)
    reason = "average of 3 models: 0.25 is not better than 0.2"
    assert averages(tmp_path) == [reason]
    assert f"best_valid_loss: {reason}" in capsys.readouterr().out
    assert not (tmp_path / "best_valid_loss" / "average").exists()
    assert trainer.best().folder.name == "evaluation-0004-step-16"
    train(tmp_path, Fitting([]))
    assert averages(tmp_path) == [reason]


@pytest.mark.parametrize(
    ("rule", "average", "reason"),
    [
        ("valid_loss by 0.1 keep 3 average", 0.15, "0.15 beats 0.2, but not by more than 0.1"),
        ("valid_loss if valid_loss > 0.1 keep 3 average", 0.05, "blocked by if valid_loss > 0.1"),
        ("valid_loss keep 3 average", float("nan"), "valid_loss is nan"),
        ("valid_loss@0/valid_loss keep 3 average", 0.25, "valid_loss@0: 0.25 is worse than 0.2"),
        ("valid_loss@0/valid_loss keep 3 average", 0.1, "(0.1, 0.1) beats (0.2, 0.2), saved"),
    ],
)
def test_an_average_is_judged_as_models_are(tmp_path, rule, average, reason):
    train(tmp_path, Fitting([0.5, 0.4, 0.3, 0.2, average]), rule)
    assert averages(tmp_path) == [f"average of 3 models: {reason}"]


def test_statistics_of_batch_normalization_are_estimated_on_training_batches(tmp_path):
    losses = [0.5, 0.4, 0.3, 0.2, 0.1]
    module = Fitting(losses, normalize=True)
    torch.manual_seed(3)
    train(tmp_path, module, shuffle_train=False)
    state = torch.get_rng_state()
    assert averages(tmp_path) == ["average of 3 models: 0.1 beats 0.2, saved"]
    folder = tmp_path / "best_valid_loss"
    expected = Fitting(normalize=True).model
    expected.load_state_dict(mean_of(folder, [f"evaluation-{n:04d}-step-{4 * n}" for n in (2, 3, 4)]))
    update_bn(DataLoader(data(), 8), expected)
    saved = read_weights(folder / "average")
    torch.testing.assert_close(saved, dict(expected.state_dict()), rtol=1e-6, atol=1e-7)
    assert saved["1.num_batches_tracked"] == 4
    assert module.model[1].num_batches_tracked == 16
    assert module.model[1].momentum == 0.1
    plain = Fitting(losses, normalize=True)
    torch.manual_seed(3)
    train(tmp_path / "plain", plain, "valid_loss keep 3", shuffle_train=False)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_average_is_made_at_each_end_from_the_models_that_are_kept_then(tmp_path):
    folder, said = tmp_path / "best_valid_loss" / "average", []
    for epochs, losses in ((2, [0.5, 0.4, 0.1]), (3, [0.2, 0.15]), (4, [0.9]), (5, [0.3, 0.3])):
        train(tmp_path, Fitting(losses), epochs=epochs)
        said += [(*averages(tmp_path), folder.is_dir())]
    assert said == [
        ("average of 2 models: 0.1 beats 0.4, saved", True),
        ("average of 3 models: 0.15 beats 0.2, saved", True),
        ("average of 3 models: 0.15 beats 0.2, saved", True),  # of the same models: not made again
        ("average of 3 models: 0.3 is not better than 0.2", False),
    ]


def test_one_model_has_no_average(tmp_path):
    train(tmp_path, Fitting([0.5]), epochs=1)
    assert averages(tmp_path) == ["one model is kept: no average is made"]


def test_the_word_may_be_added_when_the_training_has_ended(tmp_path):
    train(tmp_path, Fitting([0.5, 0.4, 0.3, 0.2]), "valid_loss keep 3")
    train(tmp_path, Fitting([0.1]))
    assert averages(tmp_path) == ["average of 3 models: 0.1 beats 0.2, saved"]


@pytest.mark.parametrize("reached", ["nothing", "average", "index.json"])
def test_an_average_that_was_cut_is_made_by_the_next_run(tmp_path, reached):
    train(tmp_path, Fitting([0.5, 0.4, 0.3, 0.2, 0.1]))
    folder = tmp_path / "best_valid_loss"
    (folder / "average.json").unlink()  # they are written in this order, so a process may be killed between them
    if reached != "index.json":
        names = json.loads((folder / "index.json").read_text())["best_first"]
        (folder / "index.json").write_text(json.dumps({"schema": 1, "best_first": names[1:]}))
    if reached == "nothing":
        shutil.rmtree(folder / "average")
    again = Fitting([0.05])
    assert train(tmp_path, again).best().values == {"valid_loss": 0.05}
    assert averages(tmp_path) == ["average of 3 models: 0.05 beats 0.2, saved"]
    assert (folder / "average.json").is_file()


class Interrupting(Callback):
    def on_before_validation_step(self, batch):
        if self.state.evaluations_done == 4:
            raise KeyboardInterrupt


def test_an_interrupted_average_leaves_the_trained_weights_and_the_next_run_makes_it(tmp_path):
    module = Fitting([0.5, 0.4, 0.3, 0.2, 0.1])
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, module, callback=Interrupting())
    assert averages(tmp_path) == []
    last = read_weights(tmp_path / "best_valid_loss" / "evaluation-0004-step-16")
    assert all(torch.equal(value, last[name]) for name, value in module.model.state_dict().items())
    train(tmp_path, Fitting([0.1]))
    assert averages(tmp_path) == ["average of 3 models: 0.1 beats 0.2, saved"]


def test_a_damaged_model_costs_the_average_only(tmp_path, capsys):
    class Damaging(Callback):
        def on_evaluation_end(self):
            for path in (tmp_path / "best_valid_loss").glob("evaluation-0002-*/pytorch_model.bin"):
                path.write_bytes(b"")

    train(tmp_path, Fitting([0.5, 0.4, 0.3, 0.2]), callback=Damaging())
    folder = tmp_path / "best_valid_loss" / "evaluation-0002-step-8"
    assert capsys.readouterr().out == (
        "warning: best_valid_loss: the average of its models could not be made, running again tries it again: "
        f"{folder} cannot be used: pytorch_model.bin has 0 bytes instead of 2,393\n"
    )


def test_nothing_is_averaged_where_nothing_is_saved(tmp_path, capsys):
    train(tmp_path, Fitting([0.5, 0.4]), epochs=2, disable_model_saving=True)
    assert averages(tmp_path) == []
    text = "warning: 'best_valid_loss' averages no models: disable_model_saving is given\n"
    assert capsys.readouterr().out == text


class Manual(ExtendedAcceleratorModule, Fitting):
    def training_step(self, batch):
        loss = nn.functional.mse_loss(self.model(batch[0]), batch[1])
        self.backward(loss)
        self.step()
        return loss


def test_statistics_cannot_be_estimated_by_steps_that_train(tmp_path):
    with pytest.raises(ConfigError) as caught:
        train(tmp_path, Manual(normalize=True))
    assert str(caught.value) == (
        "1 mistake in register_model_saving(...):\n"
        "  valid_loss keep 3 average: its training_step makes optimizer steps, so that no statistics of batch "
        "normalization can be estimated for averaged weights: leave 'average' out"
    )


def test_the_verdict_is_explained_and_repeated_by_a_replay_and_shown_in_a_report(tmp_path, capsys):
    train(tmp_path, Fitting([0.5, 0.4, 0.3, 0.2, 0.1]))
    reason = "average of 3 models: 0.1 beats 0.2, saved"
    for arguments, said in (
        (["explain"], [f"  4    16      4  best_valid_loss  0.1     saved    {reason}", f"evaluations 3, 2; {reason}"]),
        (["explain", "--csv", "--last", "1"], [f'4,16,4,best_valid_loss,0.1,saved,"{reason}"']),
        (["replay"], ["these are the decisions that the training made", reason]),
        (["report", "--text"], [f"valid_loss 0.1 █▆▃▁  {tmp_path / 'best_valid_loss' / 'average'}"]),
    ):
        capsys.readouterr()
        assert main([arguments[0], str(tmp_path), *arguments[1:]]) == 0
        out = capsys.readouterr().out
        assert [text for text in said if text not in out] == []


TWO = """
import sys
sys.path.insert(0, sys.argv[2])
import test_averages
from accelerate import PartialState
from launching import launch
from torch import nn
from torch.optim import SGD
from accmt import set_seed

set_seed(0)
module = test_averages.Fitting(normalize=True)
trainer = test_averages.train(sys.argv[1], module, dataloader_num_workers=0)
state, folder = module.model.state_dict(), trainer.best().folder
print(trainer.decisions[-1].average.reason, folder.name, *trainer.state.model_savings)
last = test_averages.read_weights(trainer.model_path / "best_valid_loss" / "evaluation-0004-step-8")
same = [name for name in last if state[name].equal(last[name])]
print("weights are", "as before" if len(same) == len(last) or PartialState().process_index else "changed")
"""


@pytest.mark.xdist_group("processes")
def test_two_processes_evaluate_one_average(tmp_path):
    ran = launch(TWO, tmp_path, Path(__file__).parent, processes=2).check()
    lines = sorted(ran.stdout.splitlines())
    assert lines[0] == lines[1]
    assert lines[0].startswith("average of 3 models: ")
    assert lines[0].endswith(", saved average best_valid_loss")
    assert lines[2:] == ["weights are as before"] * 2
