"""Names of users and of a training do not meet in its folder, and paths are resolved once, where they are given."""

import os
from pathlib import Path

import pytest
import yaml

from accmt import Callback, Trainer, load_saving
from accmt.files.paths import resolved_address
from accmt.hyperparameters import ConfigError
from accmt.rules import RuleError, SavingRule
from accmt.rules import reserved_names as names
from accmt.rules.checker import clashes

OURS = [value for name, value in vars(names).items() if name.isupper() and isinstance(value, str)]
HPS = {"epochs": 1, "batch_size": 4}
TAKEN = [
    *(name for name in OURS if not name.endswith("-")),
    *("earlier-1", "EARLIER-12", "Outbox", "OUTBOX.", "History.JSONL", "checkpointS", "training.json..", "Run.json"),
]


@pytest.mark.parametrize("name", TAKEN)
def test_a_rule_has_none_of_our_names(tmp_path, name):
    trainer = Trainer(HPS, tmp_path)
    with pytest.raises(RuleError, match="is not a name for a rule"):
        trainer.register_model_saving("train_loss", name=name)
    with pytest.raises(ConfigError, match=r"rules\.save\[0\]: .* is not a name for a rule"):
        Trainer({"hps": HPS, "rules": {"save": [{"rule": "train_loss", "name": name}]}}, tmp_path)


@pytest.mark.parametrize("name", ["earlier", "earlier-stop", "checkpoint", "outboxes", "lock", "history", "best"])
def test_names_that_only_resemble_ours_are_free(name):
    assert SavingRule.parse("train_loss", name=name).folder == name


def test_all_that_a_training_writes_has_a_name_of_ours(trainer, regression, data, tmp_path):
    """The rule's name is the only one that is free. A tracker that cannot be reached leaves its outbox."""
    arguments = {"log_with": "mlflow", "logging_dir": "127.0.0.1:9", "log_every": 1}
    path = tmp_path / "model"
    for resume in (None, False):
        training = trainer(path, epochs=1, resume=resume, **arguments)
        training.register_model_saving("train_loss", name="mine")
        training.fit(regression(), data(8))
    there = {entry.name for entry in path.iterdir()}
    assert there >= {"mine", "checkpoints", "outbox", "history.jsonl", "earlier-1", ".lock"}
    assert {name for name in there if not names.is_taken(name)} == {"mine"}


def test_names_that_are_one_on_some_disks_are_one_here():
    """The sign of the angstrom is a letter with a ring, written otherwise."""
    rules = [
        SavingRule.parse("train_loss", name="\u00c5ngstrom"),
        SavingRule.parse("valid_loss", name="\u212bNGSTROM."),
    ]
    assert [problem.message for problem in clashes(tuple(rules))] == [
        "the rules '\u00c5ngstrom' and '\u212bNGSTROM.' would save into one folder, '\u212bNGSTROM.'"
    ]


@pytest.mark.parametrize(
    ("logging_dir", "track_name", "name"),
    [
        ("model", "outbox", "outbox"),
        ("model", "Checkpoints/x", "Checkpoints"),
        ("model/outbox", "x", "outbox"),
        ("model/../model/earlier-1", "x", "earlier-1"),
        ("link", ".tmp-x", ".tmp-x"),
    ],
)
def test_a_tracker_writes_to_none_of_our_places(tmp_path, monkeypatch, logging_dir, track_name, name):
    monkeypatch.chdir(tmp_path)
    os.mkdir("model")
    os.symlink("model", "link")
    arguments = {"log_with": "tensorboard", "logging_dir": logging_dir, "track_name": track_name}
    with pytest.raises(ConfigError, match=f"logging_dir: a tracker would write to '{name}' in model_path"):
        Trainer(HPS, "model", **arguments)
    Trainer(HPS, "other", **arguments)


def test_a_rule_and_a_tracker_do_not_meet(tmp_path):
    arguments = {"log_with": "tensorboard", "logging_dir": str(tmp_path), "track_name": "Mine"}
    with pytest.raises(RuleError, match="would save into 'mine', which a tracker of this training writes to"):
        Trainer(HPS, tmp_path, **arguments).register_model_saving("train_loss", name="mine")
    rules = {"save": {"rule": "train_loss", "name": "artifacts"}}
    with pytest.raises(RuleError, match="would save into 'artifacts'"):
        Trainer({"hps": HPS, "rules": rules}, tmp_path, log_with="mlflow", logging_dir=str(tmp_path))


@pytest.mark.parametrize("kind", ["a file", "a folder"])
def test_what_others_have_is_not_replaced_by_a_model(trainer, regression, data, tmp_path, kind):
    mine = tmp_path / "mine"
    if kind == "a folder":
        mine.mkdir()
    (mine / "text" if kind == "a folder" else mine).write_text("precious")
    training = trainer(tmp_path, epochs=1)
    training.register_model_saving("train_loss", name="mine")
    with pytest.raises(ConfigError, match="its 'mine' was not saved by a rule"):
        training.fit(regression(), data(8))
    assert (mine / "text" if kind == "a folder" else mine).read_text() == "precious"


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "start").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "start")
    return tmp_path / "home"


class Moves(Callback):
    def on_fit_start(self):
        os.chdir("../elsewhere")

    on_epoch_end = on_evaluation_start = on_fit_start


def test_a_folder_is_the_same_wherever_the_process_goes(regression, data, home):
    """Saved models, checkpoints, journals, the tracker's files and a search's come to where the trainer was made."""
    start, seen = Path.cwd(), []
    for epochs in (1, 2):
        os.chdir(start)
        arguments = {"log_with": "tensorboard", "dataloader_num_workers": 0, "quiet": True, "callback": Moves()}
        trainer = Trainer({**HPS, "epochs": epochs}, "model", logging_dir="logs", **arguments)
        os.chdir("../elsewhere")
        trainer.fit(regression(), data(8), data(4))
        seen.append(trainer.state.global_step)
        trainer.log_artifact(start / "model" / "history.jsonl")
    assert seen == [2, 4]
    assert list(start.parent.joinpath("elsewhere").iterdir()) == []
    assert {path.name for path in start.iterdir()} == {"model", "logs"}
    assert trainer.best("best_valid_loss").folder == start / "model" / "best_valid_loss"
    os.chdir(start)
    assert load_saving("model/best_valid_loss", regression()).step == trainer.best("best_valid_loss").step


def test_the_home_of_the_user(regression, data, home):
    Path("hps.yaml").write_text(yaml.safe_dump(HPS))
    Path("hps.yaml").rename(home / "hps.yaml")
    trainer = Trainer("~/hps.yaml", "~/model", log_with="tensorboard", logging_dir="~/logs", quiet=True)
    assert trainer.model_path == home / "model"
    trainer.fit(regression(), data(8))
    assert {path.name for path in home.iterdir()} == {"hps.yaml", "model", "logs"}
    assert load_saving("~/model/best_train_loss", regression()).rule == "best_train_loss"
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    "arguments", [{"model_path": "~nobody-of-this-name/x"}, {"logging_dir": "~nobody-of-this-name"}]
)
def test_a_home_of_nobody(home, arguments):
    arguments = {"model_path": "m", "log_with": "mlflow", **arguments}
    with pytest.raises(ConfigError, match=f"{[*arguments][-1] if len(arguments) > 2 else 'model_path'}: .*no user"):
        Trainer(HPS, **arguments)


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"])
@pytest.mark.parametrize("argument", ["model_path", "logging_dir"])
def test_a_name_that_no_path_can_have(home, argument, name):
    with pytest.raises(ConfigError, match=f"{argument}: .*contains a character that paths cannot have"):
        Trainer(HPS, **{"model_path": "m", "log_with": "tensorboard", argument: name})


def test_a_current_folder_that_is_gone(home):
    os.rmdir(os.getcwd())
    with pytest.raises(ConfigError, match="model_path: 'model' is relative, and the current folder is gone"):
        Trainer(HPS, "model")


@pytest.mark.parametrize(
    ("given", "right"),
    [
        ("sqlite:///a.db", "sqlite:///{here}/a.db"),
        ("sqlite:///~/a.db", "sqlite:///{home}/a.db"),
        ("sqlite+pysqlite:///a.db?x=1", "sqlite+pysqlite:///{here}/a.db?x=1"),
        ("sqlite:////a.db", "sqlite:////a.db"),
        ("sqlite:///:memory:", "sqlite:///:memory:"),
        ("sqlite://", "sqlite://"),
        ("postgresql://host/a.db", "postgresql://host/a.db"),
        ("127.0.0.1:5000", "127.0.0.1:5000"),
    ],
)
def test_addresses_of_files(home, given, right):
    assert resolved_address(given) == right.format(here=Path.cwd(), home=home)
