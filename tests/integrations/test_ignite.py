"""Rules in the engines of Ignite: real trainings, whole, killed and resumed; and what is refused."""

import signal
from pathlib import Path

import ignite_program as program
import pytest
from ignite.engine import Events
from launching import launch

from accmt import load_best
from accmt.config.errors import ConfigError
from accmt.rules import Facts, Observation, Reported, RuleEngine, RuleError, Rules, SavingRule
from accmt.tracking.journal import read

PROGRAM = Path(program.__file__)


def decisions_in(folder):
    return [{k: v for k, v in entry.items() if k != "elapsed"} for entry in read(folder / "model/decisions.jsonl")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    launch(PROGRAM, folder).check()
    return folder


def test_it_decides_as_the_engine_does(whole):
    observed = [Observation.from_json(entry) for entry in read(whole / "model/history.jsonl")]
    reported = Reported(("dev", "ood"), greater_is_better=False)
    savings = tuple(SavingRule.parse(text, patience=3) for text in program.SAVE)
    engine = RuleEngine(Rules(savings), Facts({"error": reported, "valid_loss": reported}, ("dev", "ood")))
    decided = [engine.after_evaluation(each) for each in observed]
    recorded = decisions_in(whole)
    assert [entry["step"] for entry in recorded] == list(range(4, 4 * len(recorded) + 1, 4))
    assert len(recorded) < 12  # it stopped
    outcomes = [[verdict.outcome for verdict in decision.verdicts] for decision in decided]
    assert [[verdict["outcome"] for verdict in entry["verdicts"]] for entry in recorded] == outcomes
    assert [bool(entry["stop"]) for entry in recorded] == [bool(decision.stop) for decision in decided]


def test_the_best_model_is_read_by_load_best(whole):
    _trainer, evaluators, loaders, net, _ = program.parts()
    saved = load_best(whole / "model", net, rule="error@dev")
    evaluators["dev"].run(loaders["dev"])
    assert evaluators["dev"].state.metrics["error"] == pytest.approx(saved.values["error@dev"])


@pytest.mark.parametrize("loaders", ["1", "0"])
def test_killed_and_resumed_it_decides_the_same(whole, tmp_path, loaders):
    """Also if the evaluators are run by handlers of the user."""
    ran = launch(PROGRAM, tmp_path, "stop=22", f"loaders={loaders}")
    assert ran.returncode == -signal.SIGKILL
    launch(PROGRAM, tmp_path, f"loaders={loaders}").check()
    assert decisions_in(tmp_path) == decisions_in(whole)


def trained(rules, epochs=2, **given):
    trainer, evaluators, loaders, net, _ = program.parts()
    rules.attach(trainer, **{"evaluators": evaluators, "loaders": loaders, "model": net, **given})
    trainer.run(program.samples(32, 0), max_epochs=epochs)
    return trainer


def test_evaluations_are_each_epoch_by_default(tmp_path):
    trained(program.rules_in(tmp_path))
    assert [entry["step"] for entry in read(tmp_path / "decisions.jsonl")] == [8, 16]


def test_a_condition_stops_between_evaluations(tmp_path):
    rules = program.rules_in(tmp_path, stop_when="step >= 3")
    trainer = trained(rules)
    assert trainer.state.iteration == 3
    assert rules.stop.asked_by == "step >= 3"


def test_a_second_run_continues(tmp_path):
    rules = program.rules_in(tmp_path, patience=None)
    trainer = trained(rules)
    trainer.run(program.samples(32, 0), max_epochs=3)
    assert [entry["step"] for entry in read(tmp_path / "decisions.jsonl")] == [8, 16, 24]


def test_the_training_loss_alone_decides_where_there_are_no_evaluators(tmp_path):
    rules = program.rules_in(tmp_path, ["train_loss"], metrics=None)
    trained(rules, evaluators=None, loaders=None)
    assert [entry["step"] for entry in read(tmp_path / "decisions.jsonl")] == [8, 16]
    assert rules.best("best_train_loss").values["train_loss"] > 0


def test_an_output_that_is_no_loss(tmp_path):
    with pytest.raises(TypeError) as caught:
        no_loss(program.rules_in(tmp_path / "a", ["train_loss"], metrics=None))
    assert str(caught.value) == (
        "a rule uses train_loss, so trainer.state.output must be a number: give output_transform= to attach, not "
        "{'loss': 2.0} (dict)"
    )
    rules = program.rules_in(tmp_path / "b", ["train_loss"], metrics=None)
    no_loss(rules, output_transform=lambda output: output["loss"])
    assert rules.best("best_train_loss").values["train_loss"] == 2


def no_loss(rules, **given):
    trainer, _, _, net, _ = program.parts()
    trainer._process_function = lambda engine, batch: {"loss": 2.0}
    rules.attach(trainer, model=net, **given)
    trainer.run(program.samples(8, 0), max_epochs=1)


def test_mistakes_are_errors_before_the_first_iteration(tmp_path):
    with pytest.raises(RuleError, match="unknown metric 'eror'"):
        program.rules_in(tmp_path, ["eror@dev"])
    with pytest.raises(RuleError, match="unknown dataset 'dve'"):
        trained(program.rules_in(tmp_path, ["error@dve"]))
    rules = program.rules_in(tmp_path, checkpoint_every="epoch", evaluate_every="2 steps", held_out=["test"])
    trainer, evaluators, loaders, net, _ = program.parts()
    with pytest.raises(ConfigError) as caught:
        rules.attach(trainer, {"dev": evaluators["dev"], "ood": evaluators["dev"]}, model=net)
    assert str(caught.value) == (
        "4 mistakes in attach(...):\n"
        "  checkpoint: needs Rules(checkpoint_every=), and that needs attach(checkpoint=)\n"
        "  evaluate_every: needs attach(loaders=), to run the evaluators\n"
        "  evaluators: are one engine for several datasets, which needs loaders=\n"
        "  held_out: 'test' is not among evaluators="
    )
    with pytest.raises(ConfigError, match="loaders: are for dev, and evaluators for dev, ood"):
        trained(program.rules_in(tmp_path), loaders={"dev": loaders["dev"]})
    assert not list(tmp_path.iterdir())


def test_data_without_a_length_are_refused(tmp_path):
    trainer, evaluators, loaders, net, _ = program.parts()
    program.rules_in(tmp_path).attach(trainer, evaluators, loaders=loaders, model=net)
    with pytest.raises(ConfigError, match="epoch_length: is not known: the data have no length"):
        trainer.run((batch for batch in program.samples(8, 0)), max_epochs=1)


def test_a_metric_that_is_not_reported(tmp_path):
    rules = program.rules_in(tmp_path, metrics={"error": "min", "f1": "max"})
    with pytest.raises(ValueError, match="the evaluation on 'dev' does not report f1, which Rules"):
        trained(rules)
    assert not (tmp_path / "best_error@dev").exists()
    trained(program.rules_in(tmp_path, ["mae"], metrics={"mae": "min"}, names={"error": "mae"}))


def test_an_evaluator_that_is_not_run(tmp_path):
    trainer, evaluators, loaders, net, _ = program.parts()
    program.rules_in(tmp_path).attach(trainer, evaluators, model=net)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluators["dev"].run(loaders["dev"]))
    with pytest.raises(RuntimeError) as caught:
        trainer.run(program.samples(32, 0), max_epochs=2)
    assert str(caught.value) == (
        "the evaluation at iteration 8 has no values of ood: run its evaluator there too, or leave it out of "
        "attach(evaluators=)"
    )


def test_a_state_without_its_trainer_is_said(tmp_path):
    rules = program.rules_in(tmp_path)
    trained(rules)
    other = program.rules_in(tmp_path / "other")
    other.load_state_dict(rules.state_dict())
    with pytest.warns(UserWarning, match="not used, because the trainer starts from scratch"):
        trained(other)
    trainer, _, _, net, _ = program.parts()
    trainer.load_state_dict({"iteration": 8, "epoch_length": 8, "max_epochs": 2})
    program.rules_in(tmp_path / "third", ["train_loss"], metrics=None).attach(trainer, model=net)
    with pytest.warns(UserWarning, match="from iteration 8 without a state of the rules: they start from scratch"):
        trainer.run(program.samples(32, 0))


def test_an_error_is_recorded_and_raised_unless_the_user_takes_it(tmp_path):
    for number, takes in enumerate((False, True)):
        trainer, _, _, net, _ = program.parts()
        program.rules_in(tmp_path / str(number), ["train_loss"], metrics=None).attach(trainer, model=net)
        trainer.add_event_handler(Events.ITERATION_STARTED(once=3), lambda: 1 / 0)
        taken = []
        if takes:
            trainer.add_event_handler(Events.EXCEPTION_RAISED, taken.append)
            trainer.run(program.samples(32, 0))
        else:
            with pytest.raises(ZeroDivisionError):
                trainer.run(program.samples(32, 0))
        assert len(taken) == takes
        events = [line.get("event") for line in read(tmp_path / str(number) / "log.jsonl")]
        assert events[-1] == "FAILED"
