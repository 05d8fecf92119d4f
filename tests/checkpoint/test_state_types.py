"""The JSON of a checkpoint is of the kinds that a training writes, or refused with the place of what is not."""

import copy
import json

import pytest

from accmt.checkpoint.state_types import Process, TrainerFile, check_written


@pytest.fixture(scope="module")
def files():
    return {}


@pytest.fixture
def checkpoint(files, trainer, regression, data):
    """What a training wrote, file -> JSON; it is trained once."""
    if not files:
        training = trainer(checkpoint_every="1 step", epochs=1)
        training.fit(regression(), data(8), data(4, 1))
        [folder] = (training.model_path / "checkpoints").iterdir()
        files.update({kind: json.loads((folder / name).read_text()) for kind, name in NAMES.items()})
    return files


NAMES = {TrainerFile: "trainer.json", Process: "process-0.json"}
WRONG = [
    (TrainerFile, "settled", None),
    (TrainerFile, "settled", "x"),
    (TrainerFile, "data_seed", True),
    (TrainerFile, "position.place", -1),
    (TrainerFile, "position.ended_epoch", 0),
    (TrainerFile, "position.unit.counts", "steps"),
    (TrainerFile, "position.unit.batch_size", True),
    (TrainerFile, "position.unit.readers", 0.5),
    (TrainerFile, "configuration", []),
    (TrainerFile, "configuration.settings", []),
    (TrainerFile, "configuration.data", "x"),
    (TrainerFile, "configuration.order", {}),
    (TrainerFile, "configuration.groups.0", []),
    (TrainerFile, "configuration.groups.0.settings", None),
    (TrainerFile, "beside", []),
    (TrainerFile, "beside", False),
    (TrainerFile, "beside.modes", {}),
    (TrainerFile, "beside.modes.now.frozen", 3),
    (TrainerFile, "beside.modes.start.shapes", {"model.mask": "x"}),
    (TrainerFile, "beside.modes.buffers", []),
    (TrainerFile, "beside.attributes", None),
    (Process, "objects", []),
    (Process, "training", [[]]),
    (Process, "training", {"aux": [True, 1]}),
    (Process, "training", {"aux": [1.0]}),
    (Process, "losses.unit", None),
    (Process, "losses.sum", None),
    (Process, "losses.log", [0.0, -1]),
    (Process, "losses.evaluation", ["x", 1]),
    (Process, "data.generators", [[]]),
]


@pytest.mark.parametrize(("kind", "place", "value"), WRONG)
def test_another_kind_is_refused_with_its_place(checkpoint, kind, place, value):
    written = copy.deepcopy(checkpoint[kind])
    check_written(kind, written)
    *way, last = place.split(".")
    inner = written
    for key in way:
        inner = inner[int(key) if isinstance(inner, list) else key]
    inner[last if isinstance(inner, dict) else int(last)] = value
    with pytest.raises(ValueError, match=place) as caught:
        check_written(kind, written)
    assert "\n" not in str(caught.value)
    assert "pydantic" not in str(caught.value)


def test_what_earlier_versions_did_not_write_may_be_missing(checkpoint):
    former = {key: value for key, value in checkpoint[TrainerFile].items() if key not in ("settled", "configuration")}
    former["position"] = {k: v for k, v in former["position"].items() if k not in ("place", "unit", "ended_epoch")}
    del former["beside"]
    check_written(TrainerFile, former)
    check_written(Process, {key: checkpoint[Process][key] for key in ("losses", "data")})
    with pytest.raises(ValueError, match=r"^position\.step is missing$"):
        check_written(TrainerFile, {**former, "position": {k: v for k, v in former["position"].items() if k != "step"}})
