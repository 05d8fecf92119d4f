"""The JSON of a checkpoint is of the kinds that a training writes, or refused with the place of what is not."""

import copy
import json

import pytest

from accmt.loop.written import Process, Trainer, check_written


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


NAMES = {Trainer: "trainer.json", Process: "process-0.json"}
WRONG = [
    (Trainer, "settled", None),
    (Trainer, "settled", "x"),
    (Trainer, "data_seed", True),
    (Trainer, "position.place", -1),
    (Trainer, "position.ended_epoch", 0),
    (Trainer, "position.unit.counts", "steps"),
    (Trainer, "position.unit.batch_size", True),
    (Trainer, "position.unit.readers", 0.5),
    (Trainer, "configuration", []),
    (Trainer, "configuration.settings", []),
    (Trainer, "configuration.data", "x"),
    (Trainer, "configuration.order", {}),
    (Trainer, "configuration.groups.0", []),
    (Trainer, "configuration.groups.0.settings", None),
    (Trainer, "beside", []),
    (Trainer, "beside", False),
    (Trainer, "beside.modes", {}),
    (Trainer, "beside.modes.now.frozen", 3),
    (Trainer, "beside.modes.start.shapes", {"model.mask": "x"}),
    (Trainer, "beside.modes.buffers", []),
    (Trainer, "beside.attributes", None),
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
    former = {key: value for key, value in checkpoint[Trainer].items() if key not in ("settled", "configuration")}
    former["position"] = {k: v for k, v in former["position"].items() if k not in ("place", "unit", "ended_epoch")}
    del former["beside"]
    check_written(Trainer, former)
    check_written(Process, {key: checkpoint[Process][key] for key in ("losses", "data")})
    with pytest.raises(ValueError, match=r"^position\.step is missing$"):
        check_written(Trainer, {**former, "position": {k: v for k, v in former["position"].items() if k != "step"}})
