"""Rules in Lightning: real trainings, whole, killed and resumed, and on two processes; and what is refused."""

import json
import signal
from pathlib import Path

import lightning.pytorch as pl
import lightning_program as program
import pytest
from launching import launch
from lightning.pytorch.callbacks import ModelCheckpoint

from accmt.config.errors import ConfigError
from accmt.rules import Facts, Observation, Reported, RuleEngine, RuleError, Rules, SavingRule
from accmt.tracking.journal import read

PROGRAM = Path(program.__file__)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    launch(PROGRAM, folder).check()
    return folder


def decisions_in(folder, name="model"):
    return [{k: v for k, v in entry.items() if k != "elapsed"} for entry in read(folder / name / "decisions.jsonl")]


def test_the_best_model_is_the_one_of_the_rule(whole):
    found = json.loads((whole / "found.json").read_text())
    assert found["path"] == str(whole / "model/best_error@dev/model.ckpt")
    assert found["val_error/dataloader_idx_0"] == pytest.approx(found["score"])


def test_it_decides_as_the_engine_does(whole):
    observed = [Observation.from_json(entry) for entry in read(whole / "model/history.jsonl")]
    savings = [
        SavingRule.parse(text, patience=3) for text in ("error@dev", "valid_loss keep 2", "valid_loss/error@ood")
    ]
    reported = Reported(("dev", "ood"), greater_is_better=False)
    engine = RuleEngine(Rules(tuple(savings)), Facts({"error": reported, "valid_loss": reported}, ("dev", "ood")))
    decided = [engine.after_evaluation(each) for each in observed]
    outcomes = [[verdict.outcome for verdict in decision.verdicts] for decision in decided]
    recorded = decisions_in(whole)
    assert len(recorded) >= 4
    assert [[verdict["outcome"] for verdict in entry["verdicts"]] for entry in recorded] == outcomes
    assert bool(recorded[-1]["stop"]) == bool(decided[-1].stop)


def test_killed_and_resumed_it_decides_the_same(whole, tmp_path):
    assert launch(PROGRAM, tmp_path, "stop=18").returncode == -signal.SIGKILL
    launch(PROGRAM, tmp_path).check()
    assert decisions_in(tmp_path) == decisions_in(whole)


@pytest.mark.xdist_group("processes")
def test_two_processes_decide_alike(tmp_path):
    launch(PROGRAM, tmp_path, "devices=2", processes=2).check()
    outcomes = {v["outcome"] for entry in decisions_in(tmp_path) for v in entry["verdicts"]}
    assert {"saved", "not better"} <= outcomes


def test_a_misspelt_metric_is_an_error_at_once(tmp_path):
    with pytest.raises(RuleError, match="unknown metric 'eror'"):
        program.Rules(tmp_path, "eror@dev", metrics={"error": "min"}, datasets=["dev"])


def fit(rules, loaders, ckpt_path=None, **given):
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = pl.Trainer(**{"max_epochs": 1, "callbacks": [rules], **options, **given})
    trainer.fit(program.Line(), program.samples(8, 0), loaders, ckpt_path=ckpt_path)
    return trainer


@pytest.mark.filterwarnings("ignore")
def test_what_contradicts_the_rules_is_refused(tmp_path):
    rules = program.rules_in(tmp_path / "model")
    with pytest.raises(ConfigError, match="put Rules before it"):
        fit(rules, [program.samples(8, 1)] * 2, callbacks=[ModelCheckpoint(tmp_path), rules])
    with pytest.raises(ValueError, match=r"fit was given 1 validation loaders, and .* they are dev, ood"):
        fit(program.rules_in(tmp_path / "model"), program.samples(8, 1))
    missing = program.rules_in(tmp_path / "model", metrics={"error": "min", "f1": "max"})
    with pytest.raises(ValueError, match="does not report f1, which Rules"):
        fit(missing, [program.samples(8, 1)] * 2)
    assert not (tmp_path / "model/best_error@dev").exists()


def test_standard_errors_are_refused_with_what_to_do(tmp_path):
    with pytest.raises(ConfigError) as caught:
        program.Rules(tmp_path, "error@dev by 2 se", metrics={"error": "min"}, datasets=["dev"])
    assert str(caught.value) == (
        "1 mistake in Rules(...):\n"
        "  save: 'error@dev by 2 se' needs a score for each sample, and metrics are single numbers here: write an "
        "amount, such as by 0.01 or by 1%, or use accmt.Trainer or accmt.integrations.loop"
    )


@pytest.mark.filterwarnings("ignore")
def test_loaders_that_are_known_late_and_validations_without_a_step(tmp_path):
    rules = program.rules_in(tmp_path / "late", checkpoint_every=None)
    loaders = [program.samples(8, 1)] * 2
    fit(rules, loaders, max_epochs=2, check_val_every_n_epoch=2, num_sanity_val_steps=0)
    assert [entry["epoch"] for entry in decisions_in(tmp_path, "late")] == [2]
    often = program.rules_in(tmp_path / "often", checkpoint_every=None)
    fit(often, loaders, val_check_interval=1, accumulate_grad_batches=2)
    assert [entry["step"] for entry in decisions_in(tmp_path, "often")] == [0, 1]


@pytest.mark.filterwarnings("ignore")
def test_nothing_is_validated(tmp_path):
    loaders = [program.samples(8, 1)] * 2
    with pytest.raises(ValueError, match="limit_val_batches=0 means that nothing is validated"):
        fit(program.rules_in(tmp_path / "model"), loaders, limit_val_batches=0)
    with pytest.warns(UserWarning, match="this training ended without an evaluation: no rule has decided anything"):
        fit(program.rules_in(tmp_path / "model"), loaders, check_val_every_n_epoch=5)


@pytest.mark.filterwarnings("ignore")
def test_a_try_run_writes_nothing(tmp_path):
    fit(program.rules_in(tmp_path / "model"), [program.samples(8, 1)] * 2, fast_dev_run=True)
    assert not (tmp_path / "model").exists()
    missing = program.rules_in(tmp_path / "model", metrics={"error": "min", "f1": "max"})
    with pytest.raises(ValueError, match="does not report f1, which Rules"):
        fit(missing, [program.samples(8, 1)] * 2, fast_dev_run=True)


@pytest.mark.filterwarnings("ignore")
def test_a_trainer_that_trains_further_continues_the_rules(tmp_path):
    rules, loaders = program.rules_in(tmp_path / "model"), [program.samples(8, 1)] * 2
    trainer = fit(rules, loaders)
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    trainer.fit_loop.max_epochs = 2
    trainer.fit(trainer.lightning_module, program.samples(8, 0), loaders)
    assert [entry["epoch"] for entry in decisions_in(tmp_path)] == [1, 2]
    again = program.rules_in(tmp_path / "model")
    fit(again, loaders, max_epochs=3, ckpt_path=tmp_path / "after.ckpt")
    assert [entry["epoch"] for entry in decisions_in(tmp_path)] == [1, 2, 3]
    assert not (tmp_path / "model/earlier-1").exists()
