"""`accmt replay`: a training's own rules decide as they did, and other rules say what they would have done."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from accmt import Callback, FunctionMetric, Trainer, set_seed
from accmt.checkpoint.model_store import ModelStore
from accmt.cli.main import main

COMMAND = Path(sys.executable).with_name("accmt")


@pytest.fixture
def replay(capsys):
    """Arguments -> status, stdout, stderr."""

    def run(*arguments):
        capsys.readouterr()
        status = main(["replay", *map(str, arguments)])
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture
def refused(capsys):
    """Arguments -> the last line of what a wrong call says."""

    def run(*arguments):
        with pytest.raises(SystemExit) as caught:
            main(["replay", *map(str, arguments)])
        assert caught.value.code == 2
        return capsys.readouterr().err.splitlines()[-1].removeprefix("accmt replay: error: ")

    return run


@pytest.fixture
def fit(trainer, regression, data):
    """Rules and arguments -> the folder of a small training on dev and test, with two metrics."""

    class Module(regression):
        def validation_step(self, key, batch):
            outputs = super().validation_step(key, batch)
            return {**outputs, "accuracy": outputs["error"]}

    def train(rules=(), path="model", validation=True, **arguments):
        error = FunctionMetric("error", lambda p, t: (p - t).abs().mean(), greater_is_better=False)
        close = FunctionMetric("accuracy", lambda p, t: ((p - t).abs() < 0.8).float().mean(), True)
        arguments.setdefault("metrics", {"dev": [error, close], "test": close})
        training = trainer(path, **{"epochs": 5, "lr": 0.2, **arguments})
        for rule in rules:
            training.register_model_saving(**rule) if isinstance(rule, dict) else training.register_model_saving(rule)
        set_seed(0)
        sets = {"dev": data(6, 1), "test": data(5, 2)} if validation else None
        training.fit(Module(), data(22), sets)
        return training.model_path

    return train


def decided(folder):
    return (folder / "decisions.jsonl").read_text()


def saves(out, rule):
    """The evaluations that a rule saves, from decisions as JSON."""
    decisions = map(json.loads, out.splitlines())
    return [d["evaluation"] for d in decisions for v in d["verdicts"] if v["rule"] == rule and v["outcome"] == "saved"]


OWN = {
    "defaults": ([], {}),
    "keep": (["best_accuracy@dev keep 2", "accuracy@dev/error keep 3"], {"evaluate_every_n_steps": 2}),
    "functions over time": (
        ["best_avg(error, 3)", "best_ema(accuracy, 0.5) if not stalled(valid_loss, 2)", "best_best(error) keep 2"],
        {"evaluate_every": "2 steps"},
    ),
    "thresholds and names": (
        [{"model_saving": "error by 1%", "saving_below": 1.5, "saving_above": 0.1, "name": "low", "patience": 4}],
        {"evaluate_every_n_steps": 1},
    ),
    "patience": (["accuracy@dev after 1 epoch", "worst(accuracy)"], {"patience": 2, "evaluate_every": "2 steps"}),
    "the start and the end": (["error"], {"eval_when_start": True, "evaluate_every": "4 steps", "max_steps": 11}),
    "stop at an evaluation": (["error"], {"stop_when": "error < 1", "evaluate_every": "2 steps"}),
    "stop on stalling": (["train_loss"], {"stop_when": ["stalled(avg(accuracy, 2), 2)"], "evaluate_every": "1 step"}),
    "stop at a log": (["error"], {"stop_when": ["train_loss < 1"], "log_every": 1, "evaluate_every": "7 steps"}),
    "stop by counters": (["error"], {"stop_when": "step > 7", "log_every": 2, "evaluate_every": "3 steps"}),
    "stop without a last evaluation": (
        ["error"],
        {"stop_when": "step > 6", "log_every": 1, "evaluate_every": "3 steps", "eval_when_finish": False},
    ),
    "stop by the clock": (["error"], {"stop_when": "elapsed > 0.001 sec", "log_every": 1, "evaluate_every": "3 steps"}),
    "checkpoints by evaluations": (["error"], {"checkpoint_every": "2 evaluations", "evaluate_every": "2 steps"}),
    "checkpoints by either": (
        ["error"],
        {"checkpoint_every": "5 steps or 3 evaluations", "evaluate_every": "2 steps"},
    ),
    "per cent": (["error after 20%"], {"stop_when": "step > 60%", "evaluate_every": "5%", "log_every": 1}),
    "no validation data": (["best_train_loss by 0.001"], {"validation": False, "patience": 1, "metrics": None}),
}


@pytest.mark.parametrize("variant", OWN)
def test_a_training_decides_again_as_it_did(fit, replay, variant):
    rules, arguments = OWN[variant]
    folder = fit(rules, **arguments)
    status, out, err = replay(folder, "--json")
    assert (status, err) == (0, "")
    assert out == decided(folder)
    assert out
    assert replay(folder)[1].endswith("these are the decisions that the training made\n")


def test_nan_and_the_configuration_decide_again_as_they_did(fit, replay, trainer, regression, data):
    hps = {
        "hps": {"epochs": 4, "batch_size": 4, "optimizer": {"type": "SGD", "lr": 1e9}},
        "rules": {
            "save": [{"rule": "best_valid_loss", "patience": 3, "saving_below": float("inf")}],
            "evaluate_every": "1 step",
            "stop_when": "valid_loss is nan and evaluation > 5",
        },
    }
    training = Trainer(hps, fit(path="other").parent / "model", dataloader_num_workers=0, clip_grad=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        training.fit(regression(), data(22), data(6))
    status, out, _ = replay(training.model_path, "--json")
    assert status == 0
    assert out == decided(training.model_path)
    assert '"nan"' in out


def test_what_could_not_be_saved_then_is_not_saved_now(fit, replay, monkeypatch):
    written, calls = ModelStore.save, []

    def failing(self, rule, verdict, *others):
        calls.append(rule.name)
        if calls.count(rule.name) in (2, 4) and rule.name == "best_error":
            raise OSError("No space left on device")
        return written(self, rule, verdict, *others)

    monkeypatch.setattr(ModelStore, "save", failing)
    folder = fit(["error", "accuracy@dev keep 2"], evaluate_every="2 steps")
    assert decided(folder).count('"failed"') == 2
    assert replay(folder, "--json")[1] == decided(folder)
    assert '"failed"' not in replay(folder, "--json", "--rule", "error")[1]


def test_after_a_resume_too(fit, replay):
    rules = ["best_avg(error, 3) keep 2", "accuracy@dev"]
    arguments = {"evaluate_every": "2 steps", "checkpoint_every": "3 evaluations"}
    folder = fit(rules, epochs=2, **arguments)
    first = decided(folder)
    fit(rules, epochs=4, **arguments)
    assert replay(folder, "--json")[1] == decided(folder)
    assert decided(folder).startswith(first)


def test_rules_that_changed_on_a_resume_are_told(fit, replay):
    folder = fit(["error"], epochs=2)
    fit(["error", "accuracy@dev"], epochs=3)
    assert replay(folder)[1].endswith(
        "the training decided differently after evaluation 1, at step 6: its rules were changed later\n"
    )


def test_a_stop_that_was_passed_on_a_resume_is_told(fit, replay):
    folder = fit(["error"], stop_when="epoch >= 2", epochs=4)
    fit(["error"], epochs=4)
    status, out, _ = replay(folder, "--stop-when", "epoch >= 3")
    assert status == 0
    assert "would have stopped after evaluation 3, at step 18: the condition 'epoch >= 3' holds; " in out
    assert "the training continued for 1 more evaluation, to step 24\n" in out


def test_other_rules_decide_as_a_training_with_them(fit, replay):
    """The replay of one training says what another, of the same weights but other rules, really did."""
    rules = ["best_worst(accuracy) keep 3", "error@dev/accuracy@test by 0.01"]
    arguments = {"evaluate_every": "2 steps", "log_every": 3, "checkpoint_every": None}
    plain = fit(["error"], path="plain", **arguments)
    other = fit(rules, path="other", patience=3, stop_when=["step > 16", "stalled(error, 9)"], **arguments)
    command = [plain, "--json", "--patience", "3", "--stop-when", "step > 16", "--stop-when", "stalled(error, 9)"]
    status, out, err = replay(*command, *(word for rule in rules for word in ("--rule", rule)))
    assert (status, err) == (0, "")
    assert timeless(out) == timeless(decided(other))[: len(out.splitlines())]
    assert json.loads(out.splitlines()[-1])["stop"]["asked_by"] == "step > 16"


def timeless(lines):
    """Decisions without the counters that are not known between evaluations."""
    return [{**json.loads(line), "elapsed": 0, "samples": 0} for line in lines.splitlines()]


def test_patience_alone_takes_the_place_of_the_recorded_one(fit, replay):
    folder = fit([{"model_saving": "accuracy@test", "patience": 9}], evaluate_every="1 step")
    out = replay(folder, "--patience", "2")[1]
    assert "would have stopped " in out
    assert "best_accuracy@test has not improved for 2 evaluations; the training continued for " in out
    assert "these are the decisions" not in out


def test_what_was_in_between_is_not_known(fit, replay):
    folder = fit(["error"])
    _, _, err = replay(
        folder, "--stop-when", "train_loss < 0", "--stop-when", "elapsed > 1 h", "--stop-when", "step > 99"
    )
    assert err == "".join(
        f"note: '{text}' is checked only at evaluations, because the values in between were not recorded\n"
        for text in ("train_loss < 0", "elapsed > 1 h")
    )


def test_the_command_itself(fit):
    folder = fit(["best_error"])
    ran = subprocess.run([COMMAND, "replay", folder, "--json"], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, decided(folder), "")
    ran = subprocess.run([COMMAND, "replay", folder, "--rule", "eror"], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "  did you mean 'error'?\n" in ran.stderr
    ran = subprocess.run([COMMAND, "replay"], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (2, "")


class TestFolder:
    """What a folder can lack."""

    def test_no_training(self, replay, tmp_path):
        assert replay(tmp_path / "no") == (1, "", f"{tmp_path}/no does not exist\n")
        assert replay(tmp_path) == (1, "", f"{tmp_path} is not the folder of a training: it has no history.jsonl\n")
        (tmp_path / "history.jsonl").touch()
        assert replay(tmp_path, "--rule", "a") == (
            1,
            "",
            "there are no evaluations yet: there is nothing to decide\n",
        )
        said = f"{tmp_path}/history.jsonl is a file of a training: give the training's folder, {tmp_path}\n"
        assert replay(tmp_path / "history.jsonl", "--rule", "a") == (1, "", said)

    def test_without_its_description_directions_are_given(self, fit, replay):
        folder = fit(["error"])
        (folder / "training.json").unlink()
        assert replay(folder) == (1, "", "the source does not have the rules of the training: give --rule\n")
        status, _, err = replay(folder, "--rule", "error")
        assert status == 1
        assert err.startswith("nothing says which way is better here\n")
        status, out, _ = replay(folder, "--rule", "error", "--metric", "error:min", "--json")
        assert status == 0
        assert saves(out, "best_error") == saves(decided(folder), "best_error")
        status, _, err = replay(folder, "--rule", "valid_loss after 10%")
        assert status == 1
        assert err.startswith("per cent of what? The length of this training is not known\n")

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ("{", " cannot be read: "),
            ("{}", " cannot be read: schema is missing\n"),
            ('{"schema": 1}', " cannot be read: datasets is missing\n"),
            ("[]", " cannot be read: [] is not an object\n"),
        ],
    )
    def test_a_damaged_description(self, fit, replay, content, said):
        folder = fit(["error"], epochs=1)
        (folder / "training.json").write_text(content)
        status, out, err = replay(folder)
        assert (status, out) == (1, "")
        assert err.startswith(f"{folder}/training.json{said}")

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            ('{"step": 1}', "not an observation: epoch is missing"),
            ('"step": 6', """not an observation: step: '6' is not a count"""),
            ("{", "damaged: "),
        ],
    )
    def test_a_damaged_history(self, fit, replay, line, said):
        folder = fit(["error"], epochs=1)
        path = folder / "history.jsonl"
        text = path.read_text().replace('"step": 6', '"step": "6"') if line == '"step": 6' else line + "\n"
        path.write_text(text)
        status, out, err = replay(folder)
        assert (status, out) == (1, "")
        assert err.startswith(f"{path}, line 1 is {said}")

    def test_a_metric_that_was_never_reported(self, fit, replay):
        folder = fit(["error"], epochs=1)
        said = "--metric accuray was never reported, did you mean 'accuracy'? The metrics are: error, accuracy\n"
        assert replay(folder, "--metric", "accuray:max") == (1, "", said)

    def test_options_of_other_sources(self, refused, tmp_path):
        assert (
            refused(tmp_path, "--dataset", "dev")
            == f"--dataset is only for mlflow:RUN_ID and logs of other trainers, and {tmp_path} is not one"
        )
        assert (
            refused(tmp_path, "--tracking-uri", "x")
            == f"--tracking-uri is only for mlflow:RUN_ID, and {tmp_path} is not one"
        )
        said = "--metric a: its datasets are those in the source; leave out '@' and what follows"
        assert refused(tmp_path, "--metric", "a:max@dev") == said


def test_mistakes_of_all_rules_at_once(fit, replay, tmp_path):
    folder = fit(["error"], epochs=1)
    (tmp_path / "hps.yaml").write_text("rules: {save: [error@tset]}")
    status, _, err = replay(
        folder, "--config", tmp_path / "hps.yaml", "--rule", "eror", "--stop-when", "elapsed > 1 step"
    )
    assert status == 1
    assert err.startswith("'elapsed' is not counted in steps\n")
    status, _, err = replay(folder, "--config", tmp_path / "hps.yaml", "--rule", "eror")
    assert status == 1
    assert "unknown dataset 'tset'\n" in err
    assert "unknown metric 'eror'\n" in err


TABLE = """\
step,epoch,dataset,elapsed,accuracy,valid_loss,train_loss
10,1,dev,5,0.5,0.9,1.0
10,1,test,6,0.4,0.8,
20,2,test,12,0.6,0.7,0.9
20,2,dev,11,0.7,0.6,0.9
30,3,dev,20,0.6,nan,0.8
30,3,test,20,0.5,0.9,0.8

40,4,dev,30,0.65,0.8,0.7
40,4,test,30,,0.9,0.7
"""


class TestTable:
    """A CSV file as the source."""

    @pytest.fixture
    def write(self, tmp_path):
        def written(text):
            path = tmp_path / "scores.csv"
            path.write_text(text)
            return path

        return written

    def test_rules_on_a_table(self, replay, write):
        rules = [
            "accuracy@dev",
            "worst(accuracy)",
            "valid_loss",
            "train_loss after 15 sec",
            "accuracy@test after 1 epoch",
        ]
        command = [write(TABLE), "--metric", "accuracy:max", "--json"]
        status, out, err = replay(*command, *(word for rule in rules for word in ("--rule", rule)))
        assert (status, err) == (0, "")
        assert saves(out, "best_accuracy@dev") == [1, 2]
        assert saves(out, "best_worst(accuracy)") == [1, 2]
        assert saves(out, "best_valid_loss") == [1, 2]
        assert saves(out, "best_train_loss") == [3, 4]
        assert saves(out, "best_accuracy@test") == [2]
        assert [json.loads(line)["elapsed"] for line in out.splitlines()] == [6, 12, 20, 30]

    def test_the_whole_answer(self, replay, write):
        status, out, err = replay(write(TABLE), "--rule", "accuracy@dev", "--patience", "1", "--metric", "accuracy:max")
        assert (status, err) == (0, "")
        assert out == (
            "Decisions\n"
            "evaluation  step  epoch  rule               values  verdict     why\n"
            "         1    10      1  best_accuracy@dev  0.5     saved       0.5 is the first, saved\n"
            "         2    20      2  best_accuracy@dev  0.7     saved       0.7 beats 0.5, saved\n"
            "         3    30      3  best_accuracy@dev  0.6     not better  0.6 is not better than 0.7\n"
            "                                                    stop        "
            "best_accuracy@dev has not improved for 1 evaluation\n"
            "\n"
            "best_accuracy@dev: would have saved twice; the best at the end is 0.7 of evaluation 2, at step 20\n"
            "would have stopped after evaluation 3, at step 30: best_accuracy@dev has not improved for 1 evaluation; "
            "the training continued for 1 more evaluation, to step 40\n"
        )

    def test_a_stop_alone(self, replay, write):
        status, out, err = replay(write(TABLE), "--stop-when", "valid_loss@dev is nan")
        assert (status, err) == (0, "")
        assert "would have stopped after evaluation 3" in out

    def test_one_dataset_and_the_start(self, replay, write):
        path = write("\ufeffstep,epoch,f1\n0,0,0.9\n5,0.5,0.1\n10,1,0.2\n12,1,0.3\n20,2,0.4\n")
        status, out, _ = replay(path, "--rule", "f1@0 after 1 ep", "--rule", "f1", "--metric", "f1:max", "--json")
        assert status == 0
        assert saves(out, "best_f1@0") == [3, 4]
        assert saves(out, "best_f1") == [1, 2, 3, 4]
        assert json.loads(out.splitlines()[0])["verdicts"][0]["outcome"] == "inactive"

    def test_what_a_table_does_not_tell_is_refused(self, replay, write):
        path = write("step,epoch,f1\n5,1,0.1\n")
        rules = ["f1 after 2 h", "f1 if step > 10%", "train_loss", "f1 after 0.5 epochs", "f1 after 9 samples"]
        status, _, err = replay(
            path, "--metric", "f1:max", "--stop-when", "elapsed > 2 h", *(w for r in rules for w in ("--rule", r))
        )
        assert status == 1
        assert [line for line in err.splitlines() if " needs " in line] == [
            "'2 hours' needs the elapsed time, which is not known here",
            "'10%' needs the length of the training, which is not known here",
            "'train_loss' needs the training loss, which is not known here",
            "'0.5 epochs' needs the steps of an epoch, which is not known here",
            "'9 samples' needs the samples seen, which is not known here",
            "'elapsed' needs the elapsed time, which is not known here",
        ]
        assert (
            "'elapsed' needs the elapsed time, which is not known here\n"
            "    elapsed > 2 h\n"
            "    ^^^^^^^\n"
            f"  {path} has no column 'elapsed'\n"
        ) in err
        assert "per cent of what?" not in err

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("", " has no column 'step'. Its columns, separated by commas, are: none"),
            (
                "stp,epoch,a\n",
                " has no column 'step', did you mean 'stp'? Its columns, separated by commas, are: stp, epoch, a",
            ),
            ("step;epoch;a\n", " has no column 'step'. Its columns, separated by commas, are: step;epoch;a"),
            ("step,epoch\n1,1\n", " has no column for a metric"),
            ("step,epoch,a,a\n", " has the column 'a' twice"),
            ("step,epoch,,a\n", " has a column without a name"),
            ("step,epoch,a\n", " has no rows"),
            ("step,epoch,a\n1,1\n", ", line 2 has 2 cells, but the table has 3 columns"),
            ("step,epoch,a\n1,1,x\n", ", line 2: a is 'x', which is not a number"),
            ("step,epoch,a\n1.5,1,1\n", ", line 2: step must be a whole number of at least 0, not '1.5'"),
            ("step,epoch,a\n,1,1\n", ", line 2: step must be a whole number of at least 0, not ''"),
            ("step,epoch,a\n1,inf,1\n", ", line 2: epoch must be a number of at least 0, not 'inf'"),
            ("step,epoch,elapsed,a\n1,1,,1\n", ", line 2: elapsed must be a number of at least 0, not ''"),
            ("step,epoch,a\n1,1,1\n1,1,2\n", ", line 3: there already is a row for step 1 and '0'"),
            ("step,epoch,dataset,a\n1,1,x,1\n1,2,y,2\n", ", line 3: the epoch of step 1 is 2, but 1 in line 2"),
            ("step,epoch,a\n1,2,1\n2,1,1\n", ", line 3: epoch decreases, from 2 to 1"),
            ("step,epoch,elapsed,a\n1,1,9,1\n2,1,8,1\n", ", line 3: elapsed decreases, from 9 to 8"),
            (
                "step,epoch,dataset,train_loss\n1,1,x,1\n1,1,y,2\n",
                ", line 3: step 1 has several values of train_loss",
            ),
        ],
    )  # fmt: skip
    def test_tables_refused(self, replay, write, text, said):
        path = write(text)
        assert replay(path, "--rule", "a", "--metric", "a:max") == (1, "", f"{path}{said}\n")

    def test_no_text(self, replay, tmp_path):
        (tmp_path / "scores.csv").write_bytes(b"step,epoch,a\n\xff")
        status, _, err = replay(tmp_path / "scores.csv", "--rule", "a")
        assert status == 1
        assert "scores.csv cannot be read: " in err


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
class TestMlflow:
    """A run of MLflow as the source."""

    @pytest.fixture
    def run_of(self, fit, tmp_path, monkeypatch):
        """Arguments -> the folder of a training with a tracker, and the run."""

        def train(rules, **arguments):
            folder = fit(rules, log_with="mlflow", logging_dir=str(tmp_path / "logs"), **arguments)
            [checkpoint] = (folder / "checkpoints").iterdir()
            state = json.loads((checkpoint / "trainer.json").read_text())
            return folder, f"mlflow:{state['tracker']['mlflow']['run']}"

        return train

    def test_a_run_decides_as_its_training(self, run_of, replay, tmp_path):
        rules = ["accuracy@dev keep 2", "valid_loss by 1%", "error@dev/accuracy@test after 1 epoch"]
        folder, run = run_of(rules, eval_when_start=True, evaluate_every="2 steps")
        given = ["--tracking-uri", tmp_path / "logs", "--metric", "accuracy:max", "--metric", "error:min@dev"]
        given += ["--dataset", "dev", "--dataset", "test", "--json"]
        status, out, err = replay(run, *given, *(word for rule in rules for word in ("--rule", rule)))
        assert (status, err) == (0, "")
        for rule in ("best_accuracy@dev", "best_valid_loss", "best_error@dev/accuracy@test"):
            assert saves(out, rule) == saves(decided(folder), rule)
            assert saves(out, rule)

    def test_what_it_does_not_tell(self, run_of, replay, refused, tmp_path):
        _, run = run_of(["error"], epochs=1, monitor={"epoch": False})
        given = [run, "--tracking-uri", tmp_path / "logs", "--metric", "accuracy:max@dev"]
        status, _, err = replay(*given, "--rule", "accuracy if epoch > 1", "--rule", "train_loss", "--rule", "eror")
        assert status == 1
        assert "    best_accuracy" not in err
        assert "'epoch' needs the epochs, which is not known here\n" in err
        assert "  MLflow stores its mean since the last log, not since the last evaluation\n" in err
        assert "unknown metric 'eror'\n" in err
        said = "--metric accuracy: MLflow does not store directions: add :max or :min"
        assert refused(run, "--metric", "accuracy", "--rule", "accuracy") == said
        status, _, err = replay(run, "--tracking-uri", tmp_path / "logs", "--dataset", "dve", "--rule", "valid_loss")
        assert status == 1
        assert "has no values of these metrics on these datasets; its metrics are: accuracy_dev, " in err

    def test_no_run(self, run_of, replay, refused, tmp_path):
        run_of(["error"], epochs=1)
        assert refused("mlflow:", "--rule", "valid_loss") == "the run is missing: mlflow:RUN_ID"
        status, _, err = replay("mlflow:nothing", "--tracking-uri", tmp_path / "logs", "--rule", "valid_loss")
        assert status == 1
        assert err.startswith("the run nothing cannot be read: ")
        said = f"{tmp_path}/no: there is no such folder\n"
        assert replay("mlflow:nothing", "--tracking-uri", tmp_path / "no", "--rule", "valid_loss") == (1, "", said)

    def test_nowhere(self, replay, monkeypatch, tmp_path):
        """Without a place MLflow would make a store in the current folder, and find nothing in it."""
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        monkeypatch.chdir(tmp_path)
        status, out, err = replay("mlflow:abc", "--rule", "accuracy", "--metric", "accuracy:max")
        assert (status, out) == (1, "")
        assert err.endswith("cannot be read: say where it is by --tracking-uri, or by MLFLOW_TRACKING_URI\n")
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("evaluate_every", ["4 steps", "50 steps"])
def test_a_stop_that_the_script_asked_for_is_decided_again(fit, replay, evaluate_every):
    class Stopping(Callback):
        def on_after_training_step(self):
            if self.state.global_step in (5, 9):
                self.trainer.stop("enough")

    rules, arguments = ["error", "max(step)"], {"evaluate_every": evaluate_every}
    folder = fit(rules, callback=Stopping(), **arguments)
    assert replay(folder, "--json")[1] == decided(folder)
    assert "would have stopped after evaluation " in replay(folder)[1]
    assert "enough" in replay(folder)[1]
    assert "enough" not in replay(folder, "--rule", "accuracy@dev", "--json")[1]
    fit(rules, **arguments)
    assert replay(folder, "--json")[1] == decided(folder)
    assert replay(folder)[1].endswith("these are the decisions that the training made\n")


def test_counters_between_evaluations_decide_as_a_training_with_them(fit, replay):
    arguments = {"evaluate_every": "7 steps", "log_every": None}
    plain, other = (
        fit(["error"], path="plain", **arguments),
        fit(["error"], path="other", stop_when="step > 9", **arguments),
    )
    assert timeless(replay(plain, "--json", "--stop-when", "step > 9")[1]) == timeless(decided(other))[:2]
