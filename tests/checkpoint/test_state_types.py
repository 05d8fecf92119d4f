"""The JSON of a checkpoint is of the kinds that a training writes, or refused with the place of what is not.

A training is kept as it is when it ends, and asked to read its checkpoint after a change to the files: nothing may be
restored, because every part checks its state first.
"""

import json
import shutil
from dataclasses import replace

import pytest

from accmt.checkpoint.checkpoints import Checkpoints, NoCheckpoint
from accmt.checkpoint.tensor_files import read_tensors
from accmt.loop.run import Run


@pytest.fixture(scope="module")
def kept():
    return []


@pytest.fixture
def run(kept, monkeypatch, trainer, regression, data):
    """A training at its end, whose parts can still read checkpoints; it is trained once."""
    if not kept:
        monkeypatch.setattr(Run, "close", lambda run: kept.append(run))
        training = trainer(checkpoint_every="1 step", epochs=1, training_metrics={"aux": "min"})

        class Logging(regression):
            def training_step(self, batch):
                self.log({"aux": 1.0}, self.state.global_step)
                return super().training_step(batch)

        training.fit(Logging(), data(8), data(4, 1))
        kept.append(Checkpoints(training.model_path).all()[-1])
    return kept[0]


@pytest.fixture
def checkpoint(run, kept, tmp_path):
    """A copy of its checkpoint."""
    copied = tmp_path / "copy"
    shutil.copytree(kept[1].path, copied)
    return replace(kept[1], path=copied)


def changed(checkpoint, file, place, change):
    """Change the mapping or list that holds a place in a file."""
    path = checkpoint.path / f"{file}.json"
    content = json.loads(path.read_text())
    *way, last = place.split(".")
    inner = content
    for key in way:
        inner = inner[int(key) if isinstance(inner, list) else key]
    change(inner, last if isinstance(inner, dict) else int(last))
    path.write_text(json.dumps(content))


WRONG = [
    ("trainer", "settled", None),
    ("trainer", "settled", "x"),
    ("trainer", "data_seed", True),
    ("trainer", "position.place", -1),
    ("trainer", "position.ended_epoch", 0),
    ("trainer", "position.unit.counts", "steps"),
    ("trainer", "position.unit.batch_size", True),
    ("trainer", "position.unit.readers", 0.5),
    ("trainer", "state.epoch", "x"),
    ("trainer", "tracker", 3),
    ("trainer", "history", -1),
    ("trainer", "parts", []),
    ("trainer", "configuration", []),
    ("trainer", "configuration.settings", []),
    ("trainer", "configuration.data", "x"),
    ("trainer", "configuration.order", {}),
    ("trainer", "configuration.groups.0", []),
    ("trainer", "configuration.groups.0.settings", None),
    ("trainer", "beside", []),
    ("trainer", "beside", False),
    ("trainer", "beside.modes", {}),
    ("trainer", "beside.modes.now.frozen", 3),
    ("trainer", "beside.modes.start.shapes", {"model.mask": "x"}),
    ("trainer", "beside.modes.buffers", []),
    ("trainer", "beside.attributes", None),
    ("process-0", "objects", []),
    ("process-0", "training", [[]]),
    ("process-0", "training", {"aux": [True, 1]}),
    ("process-0", "training", {"aux": [1.0]}),
    ("process-0", "losses.unit", None),
    ("process-0", "losses.sum", None),
    ("process-0", "losses.log", [0.0, -1]),
    ("process-0", "losses.evaluation", ["x", 1]),
    ("process-0", "data.generators", [[]]),
]


@pytest.mark.parametrize(("file", "place", "value"), WRONG)
def test_another_kind_is_refused_with_its_place(run, checkpoint, file, place, value):
    run.checkpointer.read(checkpoint)
    changed(checkpoint, file, place, lambda inner, last: inner.__setitem__(last, value))
    before = repr([part.state_dict() for part in run.checkpointer.parts.shared.values() if part is not run.position])
    with pytest.raises(NoCheckpoint) as caught:
        run.checkpointer.read(checkpoint)
    text = str(caught.value)
    assert place in text or place.rpartition(".")[2] in text
    assert "pydantic" not in text
    after = repr([part.state_dict() for part in run.checkpointer.parts.shared.values() if part is not run.position])
    assert before == after


@pytest.mark.parametrize("key", ["position", "engine", "state", "nan_reported", "tracker", "history", "elapsed"])
def test_a_part_without_its_state_is_refused(run, checkpoint, key):
    changed(checkpoint, "trainer", key, lambda inner, last: inner.pop(last))
    with pytest.raises(NoCheckpoint):
        run.checkpointer.read(checkpoint)


@pytest.mark.parametrize("key", ["objects", "training", "data"])
def test_a_part_of_a_process_without_its_state_is_refused(run, checkpoint, key):
    changed(checkpoint, "process-0", key, lambda inner, last: inner.pop(last))
    with pytest.raises(NoCheckpoint, match=f"{key} is missing"):
        run.checkpointer.read(checkpoint)


def test_what_is_missing_is_said_with_its_place(run, checkpoint):
    changed(checkpoint, "trainer", "position.step", lambda inner, last: inner.pop(last))
    with pytest.raises(NoCheckpoint, match=r"position\.step is missing"):
        run.checkpointer.read(checkpoint)


def test_the_layout_is_that_of_every_checkpoint_of_this_schema(checkpoint):
    """Where a key changes its place or meaning, so must the schema: checkpoints of users are read by these names."""
    trainer = json.loads((checkpoint.path / "trainer.json").read_text())
    model = {"schema", "parts", "kinds", "model", "beside", "deepspeed", "versions"}
    position = {"position", "settled", "elapsed", "data_seed", "processes", "steps_per_epoch"}
    records = {"nan_reported", "history", "decisions"}
    assert trainer.keys() == {*model, *position, *records, "engine", "state", "tracker", "configuration"}
    assert trainer["schema"] == 2
    counters = {"step", "epoch", "batch", "step_in_epoch", "evaluation", "samples_before", "place", "unit"}
    assert trainer["position"].keys() == counters
    assert trainer["configuration"].keys() == {"settings", "data", "order", "groups", "schedule"}
    process = json.loads((checkpoint.path / "process-0.json").read_text())
    assert process.keys() == {"losses", "training", "data", "objects"}
    assert process["losses"].keys() == {"unit", "sum", "count", "log", "evaluation"}
    assert process["data"].keys() == {"reading", "generators"}
    tensors = read_tensors(checkpoint.path / "rng-0.safetensors")
    assert {name.partition(".")[0] for name in tensors} <= {"now", "epoch", "gradient", "data", "object"}
    assert {"now.python", "now.numpy", "now.torch"} <= tensors.keys()
