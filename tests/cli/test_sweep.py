"""`accmt sweep`: what other patience would have saved and lost, in trainings and in logs that others have written."""

import csv
import io
import json

import pytest
from launching import launch

from accmt.cli.main import main

CURVES = {"first": (0.5, 0.75, 0.625, 0.7, 0.9375), "second": (0.5, 0.625, 0.75, 0.7, 0.7)}


@pytest.fixture
def runs(tmp_path):
    """A folder with a CSV file for each curve."""
    for name, values in CURVES.items():
        rows = [f"{100 * n},{n},dev,{value}" for n, value in enumerate(values, 1)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["step,epoch,dataset,accuracy", *rows]) + "\n")
    return tmp_path


@pytest.fixture
def sweep(capsys):
    """Arguments -> status, stdout, stderr."""

    def run(*arguments):
        capsys.readouterr()
        try:
            status = main(["sweep", *map(str, arguments)])
        except SystemExit as error:
            status = error.code
        out, err = capsys.readouterr()
        return status, out, err

    return run


BOTH = ("--rule", "best_accuracy", "--metric", "accuracy:max")

TABLE = """\
rule             by  patience  stopped  steps saved  time saved     lost  most lost
best_accuracy               1      2/2          30%              0.09375     0.1875  front
best_accuracy               2      2/2          10%              0.09375     0.1875
best_accuracy            none      0/2           0%                    0          0  front
best_accuracy  0.25         1      2/2          60%               0.3438     0.4375  front
best_accuracy  0.25         2      2/2          40%               0.3438     0.4375
best_accuracy  0.25      none      0/2           0%                0.125       0.25

best_accuracy: every setting that saves steps loses quality in some training
"""


def test_the_table(runs, sweep):
    status, out, err = sweep(runs / "first.csv", runs / "second.csv", *BOTH, "--patience", "1,2", "--by", "0,0.25")
    assert (status, err) == (0, "")
    assert [line.rstrip() for line in out.splitlines()] == TABLE.splitlines()


def test_a_setting_that_loses_nothing_is_named(runs, sweep):
    out = sweep(runs / "second.csv", *BOTH, "--patience", "1..3")[1]
    assert out.splitlines()[-1] == "best_accuracy: patience 1 saves 20% of the steps and loses nothing"


def test_patience_that_is_never_exhausted_saves_nothing(runs, sweep):
    out = sweep(runs / "second.csv", *BOTH, "--patience", "50")[1]
    assert out.splitlines()[-1] == "best_accuracy: no setting saves steps"


def test_json_and_csv(runs, sweep):
    out = sweep(runs / "first.csv", *BOTH, "--patience", "2", "--json")[1]
    first = json.loads(out.splitlines()[0])
    assert first == {
        "rule": "best_accuracy",
        "by": "",
        "patience": 2,
        "stopped": 1,
        "steps_saved": pytest.approx(0.2),
        "time_saved": None,
        "lost": [0.1875],
        "most_lost": [0.1875],
        "front": True,
    }
    rows = list(csv.DictReader(io.StringIO(sweep(runs / "first.csv", *BOTH, "--patience", "2", "--csv")[1])))
    assert [row["lost"] for row in rows] == ["0.1875", "0.0"]


def test_patience_is_from_one_to_ten_unless_given(runs, sweep):
    out = sweep(runs / "first.csv", *BOTH, "--json")[1]
    assert [json.loads(line)["patience"] for line in out.splitlines()] == [*range(1, 11), ""]


def test_the_picture_is_one(runs, sweep):
    picture = runs / "sweep.png"
    status, _, err = sweep(runs / "first.csv", *BOTH, "--patience", "1..3", "-o", picture)
    assert (status, err) == (0, f"the picture is in {picture}\n")
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_own_rules_of_all_trainings_in_a_folder(trainer, regression, data, sweep):
    for name, rate in (("a", 0.2), ("b", 0.01)):
        training = trainer(f"runs/{name}", epochs=4, lr=rate)
        training.register_model_saving("best_valid_loss")
        training.fit(regression(), data(22), {"dev": data(6, 1)})
    folder = training.model_path.parent
    (folder / "c").mkdir()
    (folder / "c" / "history.jsonl").write_text("{damaged\n")
    status, out, err = sweep(folder, "--patience", "1", "--json")
    assert status == 0
    assert err.startswith(f"left out: {folder / 'c' / 'history.jsonl'}")
    assert [json.loads(line)["rule"] for line in out.splitlines()] == ["best_valid_loss", "best_valid_loss"]


def test_a_training_that_a_rule_does_not_fit_is_left_out(trainer, regression, data, sweep):
    for name, key in (("a", "dev"), ("b", "other")):
        training = trainer(f"runs/{name}", epochs=2)
        training.fit(regression(), data(22), {key: data(6, 1)})
    folder = training.model_path.parent
    status, out, err = sweep(folder, "--rule", "valid_loss@dev", "--patience", "1", "--json")
    assert status == 0
    assert [json.loads(line)["rule"] for line in out.splitlines()] == ["best_valid_loss@dev"] * 2
    _, table, _ = sweep(folder, "--rule", "valid_loss@dev", "--patience", "1")
    assert "0/1" in table
    assert err.startswith(f"left out for best_valid_loss@dev: in {folder / 'b'}:\n\nunknown dataset 'dev'")
    status, out, err = sweep(folder, "--rule", "valid_loss@dve", "--patience", "1")
    assert (status, out) == (1, "")
    assert err.startswith(f"in {folder / 'a'}:\n\nunknown dataset 'dve'")


def test_own_rules_that_differ_by_a_bound_are_all_swept(trainer, regression, data, sweep):
    training = trainer("runs/bounds", epochs=2)
    training.register_model_saving("valid_loss", name="a")
    training.register_model_saving("valid_loss", name="b", saving_below=0.0)
    training.fit(regression(), data(22), {"dev": data(6, 1)})
    status, out, _ = sweep(training.model_path, "--patience", "1", "--json")
    assert (status, len(out.splitlines())) == (0, 4)


def test_values_of_a_dataset_from_before_it_was_held_out_do_not_count(trainer, regression, data, sweep):
    sets = {"dev": data(6, 1), "test": data(6, 2)}
    for epochs, held_out in ((2, "test"), (4, "dev")):
        training = trainer("held", epochs=epochs, held_out=held_out)
        training.fit(regression(), data(22), sets)
    status, out, _ = sweep(training.model_path, "--patience", "1", "--json")
    assert status == 0
    assert [json.loads(line)["stopped"] for line in out.splitlines()] == [1, 0]  # nothing is measured on test at first


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("nothing.csv", "--patience", "1"), 1, "nothing.csv does not exist"),
        (("first.csv", "--patience", "3..1"), 2, "'3..1' is not a range upwards to at most 10000"),
        (("first.csv", "--patience", "1", "--by", "much"), 2, "'much' is not a list of amounts, such as 0,0.001,1%"),
        (("first.csv", "--patience", "1"), 1, "the trainings do not have rules of their own: give --rule"),
        (
            ("first.csv", *BOTH, "--patience", "1", "-o", "no/x.png"),
            1,
            "no/x.png cannot be written: its folder does not exist",
        ),
        (("first.csv", *BOTH, "--patience", "1", "-o", "x.doc"), 1, "x.doc cannot be written: Format 'doc' is not"),
        (("first.csv", "--rule", "best_acuracy", "--patience", "1"), 1, "unknown metric 'acuracy'"),
        (("first.csv", *BOTH[:2], "--patience", "1"), 1, "On the command line, give the direction with --metric"),
        ((".", *BOTH, "--patience", "1"), 1, "no training was found in ."),
    ],
)
def test_what_goes_wrong(runs, sweep, monkeypatch, arguments, status, said):
    monkeypatch.chdir(runs)
    got, out, err = sweep(*arguments)
    assert (got, out) == (status, "")
    assert said in err


OTHERS = """
import sys, warnings
import lightning, torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import Trainer, TrainingArguments

warnings.filterwarnings("ignore")
data = TensorDataset(torch.randn(40, 4), torch.randn(40, 1))
rows = [{"x": x, "labels": y} for x, y in data]

class Lit(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 1)
    def training_step(self, batch, number):
        loss = nn.functional.mse_loss(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss
    def validation_step(self, batch, number, dataloader_idx=0):
        self.log("val_acc", self.current_epoch + dataloader_idx / 10)
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 1)
    def forward(self, x=None, labels=None):
        out = self.net(x)
        return {"loss": nn.functional.mse_loss(out, labels), "logits": out}

loggers = [CSVLogger(".", name="csv", version=0), TensorBoardLogger(".", name="tensorboard", version=0)]
loader = DataLoader(data, 4)
lightning.Trainer(max_epochs=3, logger=loggers, enable_progress_bar=False, enable_checkpointing=False,
                  accelerator="cpu", log_every_n_steps=4).fit(Lit(), loader, [loader, loader])
arguments = TrainingArguments("hf", num_train_epochs=3, per_device_train_batch_size=4, eval_strategy="epoch",
                              save_strategy="epoch", logging_steps=4, report_to="none", disable_tqdm=True, use_cpu=True)
scores = iter((0.5, 0.625, 0.75, 0.5, 0.25, 0.5))
Trainer(Net(), arguments, train_dataset=rows, eval_dataset={"dev": rows, "test_2": rows},
        compute_metrics=lambda _: {"score": next(scores)}).train()
"""


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """The folder in which Lightning and transformers have trained and logged."""
    folder = tmp_path_factory.mktemp("logs")
    launch(OTHERS, folder=folder).check()
    return folder


def replayed(capsys, *arguments):
    assert main(["replay", *map(str, arguments), "--json"]) == 0
    return [
        (d["step"], d["epoch"], d["verdicts"][0]["values"])
        for d in map(json.loads, capsys.readouterr().out.splitlines())
    ]


def test_the_log_of_transformers(logs, capsys):
    score = ("--rule", "score@dev/score@test_2", "--metric", "score:max")
    assert replayed(capsys, logs / "hf", *score) == [
        (10, 1, [0.5, 0.625]),
        (20, 2, [0.75, 0.5]),
        (30, 3, [0.25, 0.5]),
    ]
    assert replayed(capsys, logs / "hf" / "checkpoint-20" / "trainer_state.json", *score)[-1] == (20, 2, [0.75, 0.5])
    assert replayed(capsys, logs / "hf", "--rule", "best_valid_loss@dev after 1 epoch")


@pytest.mark.parametrize(("kind", "first"), [("csv", 10), ("tensorboard", 9)])  # TensorBoard has Lightning's steps
def test_the_logs_of_lightning(logs, capsys, kind, first):
    found = replayed(capsys, logs / kind / "version_0", "--rule", "val_acc@0@1", "--metric", "val_acc:max")
    assert [(step, values) for step, _, values in found] == [
        (first, [pytest.approx(0.05)]),
        (first + 10, [pytest.approx(1.05)]),
        (first + 20, [pytest.approx(2.05)]),
    ]


def test_epochs_that_a_log_does_not_tell_are_refused(logs, sweep):
    table = logs / "csv" / "version_0"
    status, _, err = sweep(table, "--rule", "val_acc after 1 epoch", "--metric", "val_acc:max", "--patience", "1")
    assert status == 1
    assert err.splitlines()[-1] == f"  {table / 'metrics.csv'} does not say when epochs end; use steps"


def test_logs_in_a_folder_are_swept_together(logs, sweep):
    status, out, err = sweep(
        logs / "csv", logs / "tensorboard", "--rule", "val_acc@1", "--metric", "val_acc:max", "--patience", "1"
    )
    assert (status, err) == (0, "")
    assert "0/2" in out


def test_damaged_logs(tmp_path, sweep):
    for content, said in [
        ("{", "Expecting property name"),
        ("[]", "is not a log of transformers"),
        ('{"log_history": []}', "has no evaluations"),
        ('{"log_history": [{"eval_loss": 1}]}', "is not a log of transformers: KeyError('step')"),
    ]:
        path = tmp_path / "trainer_state.json"
        path.write_text(content)
        status, _, err = sweep(path, "--rule", "best_valid_loss", "--patience", "1")
        assert status == 1
        assert said in err
    (tmp_path / "metrics.csv").write_text("epoch,step,train_loss\n0,9,0.5\n")
    path.unlink()
    status, _, err = sweep(tmp_path, "--rule", "best_valid_loss", "--patience", "1")
    assert err == (
        f"{tmp_path / 'metrics.csv'} has no values of validation, whose names begin with 'val' or 'eval', or are given "
        "with --metric; it has: train_loss\n"
    )
