"""A run holds each part once, and a checkpoint knows nothing of it."""

import ast
import json
from dataclasses import fields
from pathlib import Path

import accmt
from accmt.checkpoint.checkpoints import Checkpoints
from accmt.loop.run import Run

PACKAGE = Path(accmt.__file__).parent


def test_a_run_has_few_parts():
    """A sixteenth belongs into one of these, or is read from one."""
    assert len(fields(Run)) <= 15


def test_a_run_holds_each_part_once(monkeypatch, trainer, regression, data):
    runs = []
    monkeypatch.setattr(Run, "close", lambda run: runs.append(run))
    trainer(epochs=1).fit(regression(), data(8), data(4))
    parts = [getattr(runs[0], field.name) for field in fields(Run)]
    assert len({id(part) for part in parts if part is not None}) == len([part for part in parts if part is not None])


def test_the_room_of_checkpoints_names_no_run():
    """Not even as an annotation or an attribute."""
    for path in (PACKAGE / "checkpoint").glob("*.py"):
        names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
        assert not names & {"run", "Run", "Progress", "Position"}, path.name


def test_reading_a_checkpoint_changes_nothing_and_loading_it_everything(monkeypatch, trainer, regression, data):
    """Every part checks its state before any restores it."""
    runs = []
    monkeypatch.setattr(Run, "close", lambda run: runs.append(run))
    training = trainer(epochs=2, multiple_checkpoints=True, checkpoint_every="2 steps")
    training.fit(regression(), data(16), data(4))
    [run] = runs
    first = Checkpoints(training.model_path).all()[0]
    now = run.checkpointer.read(Checkpoints(training.model_path).all()[-1])
    weights = {name: value.clone() for name, value in run.checkpointer.model.model.state_dict().items()}
    saved = run.checkpointer.read(first)
    assert saved.shared["position"]["position"]["step"] == 2 != run.position.step == 8
    assert json.loads(json.dumps(run.engine.state())) == now.shared["engine"]
    assert run.state.global_step == 8
    run.checkpointer.load(saved)
    assert run.position.step == run.state.global_step == run.checkpointer.last_step == 2
    assert json.loads(json.dumps(run.engine.state())) == saved.shared["engine"]
    assert any(not value.equal(weights[name]) for name, value in run.checkpointer.model.model.state_dict().items())


def test_our_own_parts_are_not_taken_for_objects_of_the_user(trainer, regression, data):
    """Parts in attributes of the module have a state of their own, and a place of their own in the checkpoint."""
    training = trainer(epochs=1, training_metrics={"aux": "min"})

    class Logging(regression):
        def training_step(self, batch):
            self.log({"aux": 1.0}, self.state.global_step)
            return super().training_step(batch)

    training.fit(Logging(), data(8), data(4))
    [checkpoint] = Checkpoints(training.model_path).all()
    assert json.loads((checkpoint.path / "process-0.json").read_text())["objects"] == {}
