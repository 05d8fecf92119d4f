"""Rules in a loop by hand: what is due, which rules save, what is written, and what is refused."""

import json
import subprocess
import sys
import warnings

import pytest
import torch

from accmt.cli.main import main
from accmt.config.errors import ConfigError
from accmt.integrations.counters import LossMean
from accmt.integrations.loop import Rules
from accmt.rules import RuleError, SavingRule
from accmt.tracking.journal import read

DEV = [0.5, 0.6, 0.4, 0.7, 0.7, 0.7]
OOD = [0.2, 0.2, 0.3, 0.3, 0.2, 0.2]


def make(folder, save=("best_accuracy@dev keep 2", "best_worst(accuracy)"), **given):
    defaults = {"metrics": {"accuracy": "max"}, "datasets": ["dev", "ood"], "evaluate_every": "2 steps"}
    return Rules(folder, list(save), **{**defaults, "checkpoint_every": "epoch", "patience": 2, **given})


def write(folder):
    (folder / "weights.txt").write_text("weights")


def drive(rules, first=1, last=12, loss=lambda step: 1 / step, at_checkpoint=lambda step, state: None):
    """A loop of three epochs with four steps each; give the steps that saved, and that of the end."""
    saved = {}
    for step in range(first, last + 1):
        due = rules.step(epoch=step / 4, total_steps=12, train_loss=loss(step))
        if due.evaluate:
            number = step // 2 - 1
            decision = rules.evaluated({"dev": {"accuracy": DEV[number]}, "ood": {"accuracy": OOD[number]}})
            for verdict in rules.save(decision, write).saved:
                saved.setdefault(verdict.rule, []).append(step)
        if due.checkpoint:
            at_checkpoint(step, json.dumps(rules.state_dict()))
        if rules.stop:
            break
    return saved, step


def test_rules_save_and_stop(tmp_path):
    with make(tmp_path / "model") as rules:
        saved, end = drive(rules)
    assert saved == {"best_accuracy@dev": [2, 4, 8, 10], "best_worst(accuracy)": [2, 6]}
    assert end == 12
    assert rules.stop.reason.startswith("best_accuracy@dev and best_worst(accuracy) have not improved")
    kept = json.loads((tmp_path / "model/best_accuracy@dev/index.json").read_text())["best_first"]
    assert kept == ["evaluation-0004-step-8", "evaluation-0005-step-10"]
    assert (tmp_path / "model/best_worst(accuracy)/weights.txt").read_text() == "weights"


@pytest.mark.parametrize("command", ["explain", "replay", "checkpoints", "report --text", "sweep --patience 1..3"])
def test_the_commands_read_the_folder(tmp_path, capsys, command):
    with make(tmp_path / "model") as rules:
        drive(rules)
    name, *options = command.split()
    assert main([name, str(tmp_path / "model"), *options]) == 0
    shown = capsys.readouterr().out
    assert "best_accuracy@dev" in shown or name == "sweep"
    if name == "replay":
        assert shown.endswith("these are the decisions that the training made\n")


def test_a_misspelt_metric_is_an_error_at_once(tmp_path):
    with pytest.raises(RuleError) as caught:
        make(tmp_path / "model", ["best_acuracy@dev", "best_accuracy@dve"])
    assert str(caught.value) == (
        "unknown metric 'acuracy'\n"
        "    best_acuracy@dev\n"
        "         ^^^^^^^\n"
        "  this training reports: accuracy (dev, ood), train_loss, valid_loss (dev, ood)\n"
        "  did you mean 'accuracy'?\n"
        "\n"
        "unknown dataset 'dve'\n"
        "    best_accuracy@dve\n"
        "                  ^^^\n"
        "  the datasets are: dev, ood\n"
        "  did you mean 'dev'?"
    )
    assert not (tmp_path / "model").exists()


def test_torch_is_not_imported(tmp_path):
    program = f"""
import sys
from accmt.integrations.loop import Rules

with Rules({str(tmp_path / "model")!r}, ["best_accuracy"], metrics={{"accuracy": "max"}}, datasets=["dev"]) as rules:
    due = rules.step(epoch=1, train_loss=0.5)
    decision = rules.evaluated({{"dev": {{"accuracy": 0.5}}}})
    rules.save(decision, lambda folder: (folder / "weights").write_text("x"))
    rules.state_dict()
print("torch" in sys.modules, [verdict.reason for verdict in decision.saved])
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == "False ['0.5 is the first, saved']\n"


def test_a_loop_continues_from_its_state(tmp_path):
    states = {}
    with make(tmp_path / "whole") as rules:
        drive(rules, at_checkpoint=states.__setitem__)
    killed = make(tmp_path / "cut")
    drive(killed, last=6, at_checkpoint=states.__setitem__)
    del killed
    with make(tmp_path / "cut") as rules:
        rules.load_state_dict(json.loads(states[4]))
        rest, end = drive(rules, first=5)
    assert (rest, end) == ({"best_accuracy@dev": [8, 10], "best_worst(accuracy)": [6]}, 12)
    for name in ("history.jsonl", "decisions.jsonl"):
        one, other = (read(tmp_path / run / name) for run in ("whole", "cut"))
        assert [{**line, "elapsed": 0} for line in one] == [{**line, "elapsed": 0} for line in other]


def test_a_model_that_cannot_be_written_leaves_the_former(tmp_path):
    def fail(folder):
        write(folder)
        raise OSError("the disk is gone")

    with make(tmp_path / "model", ["best_accuracy@dev"]) as rules:
        for step, value in enumerate((0.5, 0.6, 0.55), 1):
            rules.step(epoch=step)
            decision = rules.evaluated({"dev": {"accuracy": value}, "ood": {"accuracy": 0}})
            if step == 2:
                with pytest.warns(match="best_accuracy@dev could not be saved at step 2: OSError: the disk is gone"):
                    decision = rules.save(decision, fail)
                assert [verdict.outcome for verdict in decision.verdicts] == ["failed"]
            else:
                rules.save(decision, write)
    about = json.loads((tmp_path / "model/best_accuracy@dev/saving.json").read_text())
    assert about["step"] == 3


def test_a_held_out_dataset_decides_nothing(tmp_path):
    with pytest.raises(RuleError, match="'ood' is held out"):
        make(tmp_path / "model", ["best_accuracy@ood"], held_out=["ood"])
    with make(tmp_path / "model", ["best_accuracy"], held_out=["ood"]) as rules:
        rules.step(epoch=1)
        decision = rules.evaluated({"dev": {"accuracy": 0.5}, "ood": {"accuracy": 0.9}})
        rules.save(decision, write)
    assert decision.verdicts[0].values == (0.5,)
    assert json.loads((tmp_path / "model/history.jsonl").read_text())["values"] == {"dev": {"accuracy": 0.5}}
    [line] = [line for line in read(tmp_path / "model/log.jsonl") if "values" in line]
    assert line["values"] == {"accuracy@ood": 0.9}


def test_rules_come_from_a_file(tmp_path):
    (tmp_path / "rules.yaml").write_text(
        "rules:\n  save:\n    - {rule: best_accuracy@dev, name: best, patience: 3}\n  checkpoint_every: 2 steps\n"
    )
    rules = Rules(tmp_path / "model", config=tmp_path / "rules.yaml", metrics={"accuracy": "max"}, datasets=["dev"])
    assert not rules.step(epoch=0).checkpoint
    assert rules.step(epoch=1).checkpoint
    rules.save(rules.evaluated({"dev": {"accuracy": 1}}), write)
    assert (tmp_path / "model/best/weights.txt").is_file()


def test_datasets_may_be_known_at_the_start(tmp_path):
    rules = Rules(tmp_path / "model", SavingRule.parse("best_accuracy@dev"), metrics={"accuracy": "max"})
    with pytest.raises(RuleError, match="unknown dataset 'dev'"):
        rules.start(datasets=["valid"])
    rules.start(datasets=["dev"], total_steps=10, steps_per_epoch=5)
    for _ in range(5):
        rules.step()
    rules.evaluated({"dev": {"accuracy": 0.5}})
    assert json.loads((tmp_path / "model/history.jsonl").read_text())["epoch"] == 1


def test_values_are_checked(tmp_path):
    rules = make(tmp_path / "model", ["best_accuracy"])
    rules.step()
    with pytest.raises(ConfigError) as caught:
        rules.evaluated({"dev": {"acuracy": 0.5, "accuracy": "high"}, "odd": {}})
    assert str(caught.value) == (
        "3 mistakes in evaluated(...):\n"
        "  odd: unknown dataset, did you mean 'ood'? The datasets are: dev, ood\n"
        "  dev.acuracy: unknown metric, did you mean 'accuracy'? Declared are: accuracy, valid_loss\n"
        "  dev.accuracy: the value must be a number or a tensor of one element, not 'high' (str)"
    )
    with pytest.raises(ConfigError) as caught:
        rules.evaluated({"dev": {}})
    assert str(caught.value) == (
        "2 mistakes in evaluated(...):\n"
        "  dev.accuracy: is missing: no value is given\n"
        "  ood: no values are given. The datasets are: dev, ood"
    )


def test_the_order_of_calls(tmp_path):
    rules = make(tmp_path / "model", ["best_accuracy"])
    rules.step()
    first = rules.evaluated({"dev": {"accuracy": 0.5}, "ood": {"accuracy": 0.5}})
    with pytest.raises(RuntimeError, match=r"best_accuracy saves: call rules.save\(decision, write\)"):
        rules.state_dict()
    rules.save(first, write)
    with pytest.raises(RuntimeError, match="it needs the decision that the last evaluated"):
        rules.save(first, write)
    with pytest.raises(RuntimeError, match="there was an evaluation at step 1 already"):
        rules.evaluated({"dev": {"accuracy": 0.5}, "ood": {"accuracy": 0.5}})
    with pytest.raises(ValueError, match="step is 1, and step 1 is counted already"):
        rules.step(step=1)
    with pytest.raises(RuntimeError, match=r"rules.load_state_dict: the training has begun"):
        rules.load_state_dict(rules.state_dict())
    rules.close()
    with pytest.raises(RuntimeError, match="these rules are closed"):
        rules.evaluated({"dev": {"accuracy": 0.5}, "ood": {"accuracy": 0.5}}, step=2)


def test_losses_on_a_device_are_summed_in_double_precision():
    mean = LossMean()
    for loss in (torch.tensor(2.0, dtype=torch.bfloat16), torch.tensor(1e-7), 1.0):
        mean.add(loss, 2)
    assert mean.total.dtype == torch.float64
    assert mean.mean == pytest.approx((3 + 1e-7) / 3, abs=1e-12)


def test_a_new_training_puts_an_earlier_one_aside(tmp_path):
    for _ in range(2):
        with make(tmp_path / "model", ["best_accuracy"]) as rules, warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            rules.step()
            rules.save(rules.evaluated({"dev": {"accuracy": 1}, "ood": {"accuracy": 1}}), write)
    assert [str(one.message).endswith("earlier-1") for one in told] == [True]
    assert (tmp_path / "model/earlier-1/best_accuracy/weights.txt").is_file()
    assert len(read(tmp_path / "model/history.jsonl")) == 1


@pytest.mark.filterwarnings("ignore:this training ended without an evaluation")
def test_two_trainings_do_not_share_a_folder(tmp_path):
    with make(tmp_path / "model") as rules:
        rules.step()
        with pytest.raises(RuntimeError, match="another training of this process uses"):
            make(tmp_path / "model").step()


def test_all_mistakes_are_told_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        make(tmp_path, ["best_accuracy ff"], datasets="dev", metrics={"f1": "up"}, checkpoint_every=5, patience=0)
    text = str(caught.value)
    assert text.startswith("5 mistakes in Rules(...):\n  checkpoint_every: must be a string, not 5 (int)")
    for part in (
        "datasets: must be a list of names",
        "metrics['f1']: must be",
        "the patience is 0",
        "best_accuracy ff",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("names", "why"),
    [
        ([], "write(folder) wrote nothing into its folder"),
        (["index.json"], "write(folder) wrote index.json, which accmt writes itself: choose another name"),
    ],
)
def test_what_cannot_be_published_is_not_saved(tmp_path, names, why):
    with make(tmp_path / "model", ["best_accuracy"]) as rules:
        for step in (1, 2):
            rules.step()
            decision = rules.evaluated({"dev": {"accuracy": step}, "ood": {"accuracy": step}})
            fails = (
                pytest.warns(match="best_accuracy could not be saved at step 1")
                if step == 1
                else pytest.raises(RuntimeError, match="best_accuracy could not be saved, twice in a row")
            )
            with fails:
                decision = rules.save(decision, lambda folder: [(folder / name).touch() for name in names])
            if step == 1:
                assert decision.verdicts[0].reason == f"could not be saved: ValueError: {why}"
    assert not (tmp_path / "model/best_accuracy").exists()


SCORES = [[1.0] * 30 + [0.0] * 30, [1.0] * 33 + [0.0] * 27, [1.0] * 59 + [0.0]]
"""Of 60 samples: half are right, a few more, nearly all."""


def noisy(folder, **given):
    return Rules(folder, "accuracy by 2 se", metrics={"accuracy": "max"}, datasets=["dev"], **given)


def test_scores_of_samples_tell_quality_from_luck(tmp_path, capsys):
    with noisy(tmp_path / "model") as rules:
        for number, scores in enumerate(SCORES):
            rules.step()
            values = scores if number else tuple(scores)
            decision = rules.save(rules.evaluated({"dev": {"accuracy": values}}), write)
            if number == 1:
                state = json.dumps(rules.state_dict())
                assert decision.verdicts[0].reason.endswith("se, not by more than 2 se")
        assert [kept.step for kept in decision.verdicts[0].kept] == [3]
    assert main(["replay", str(tmp_path / "model"), "--rule", "accuracy by 1 se"]) == 0
    with noisy(tmp_path / "model") as rules:
        rules.load_state_dict(json.loads(state))
        rules.step()
        again = rules.save(rules.evaluated({"dev": {"accuracy": SCORES[2]}}), write)
    assert again.verdicts == decision.verdicts


def test_a_rule_with_standard_errors_asks_for_scores(tmp_path):
    rules = noisy(tmp_path / "model")
    rules.step()
    with pytest.raises(ConfigError, match=r"dev\.accuracy: needs a score for each sample"):
        rules.evaluated({"dev": {"accuracy": 0.5}})
    with pytest.raises(ConfigError, match="replicates: must be a whole number from 20 to 10,000, not 3"):
        noisy(tmp_path / "other", replicates=3)


def test_the_best_of_a_rule_that_does_not_exist(tmp_path):
    rules = make(tmp_path / "model")
    assert rules.best("best_worst(accuracy)") is None
    with pytest.raises(ValueError, match="there is no rule") as caught:
        rules.best("best_acuracy@dev")
    known = "The rules are: best_accuracy@dev, best_worst(accuracy)"
    assert str(caught.value) == f"there is no rule 'best_acuracy@dev', did you mean 'best_accuracy@dev'? {known}"


def test_what_was_not_saved_is_told_at_the_end(tmp_path):
    expected = r"best_accuracy@dev saved nothing at step 1: rules.save\(decision, write\) was not called"
    rules = make(tmp_path / "model", ["best_accuracy@dev"])
    rules.step()
    rules.evaluated({"dev": {"accuracy": 1}, "ood": {"accuracy": 1}})
    with pytest.warns(UserWarning, match=expected):
        rules.close()


def test_a_training_without_evaluation_is_told(tmp_path):
    expected = "this training ended without an evaluation: no rule has decided anything"
    rules = make(tmp_path / "model")
    rules.step()
    with pytest.warns(UserWarning, match=expected):
        rules.close()


def test_kept_models_are_not_averaged_here(tmp_path):
    with pytest.raises(ConfigError) as caught:
        make(tmp_path / "model", ["best_accuracy keep 3 average"])
    why = "only accmt.Trainer averages the kept models at the end of a training: leave 'average' out"
    assert str(caught.value) == f"1 mistake in Rules(...):\n  save: 'best_accuracy keep 3 average': {why}"


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        (
            ["a", "b"],
            "needs a score for each sample, as a rule with 'se' compares it: give a list, an array or a tensor",
        ),
        ([1, 0, 1], "has 3 scores, and had 2 before: give those of the same samples always"),
    ],
)
def test_scores_that_cannot_be_compared(tmp_path, scores, expected):
    with make(tmp_path / "model", ["best_accuracy@dev by 2 se"], datasets=["dev"]) as rules:
        rules.step()
        rules.save(rules.evaluated({"dev": {"accuracy": [1, 0]}}), write)
        rules.step()
        with pytest.raises(ConfigError) as caught:
            rules.evaluated({"dev": {"accuracy": scores}})
    assert f"dev.accuracy: {expected}" in str(caught.value)
