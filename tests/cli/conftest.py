"""The folder of a small training, made without one."""

import json
import os
import time
from types import SimpleNamespace

import pytest

from accmt.checkpoint import publish
from accmt.checkpoint.checkpoints import SCHEMA
from accmt.cli.main import main

TRAINER = {"schema": SCHEMA, "position": {"step": 0, "epoch": 0, "step_in_epoch": 0}, "steps_per_epoch": 150}


def put_files(target, files, age=330):
    """Publish a folder, as old as that."""
    with publish.publishing(target) as temporary:
        for name, content in files.items():
            (temporary / name).write_text(content if isinstance(content, str) else json.dumps(content))
    os.utime(target / publish.MANIFEST, (time.time() - age,) * 2)


def put_checkpoint(folder, number, age=330, **changes):
    completed, steps = divmod(100 * number, 150)
    position = {"step": 100 * number, "epoch": completed, "step_in_epoch": steps}
    trainer = {**TRAINER, "position": position, **changes}
    put_files(
        folder / "checkpoints" / f"checkpoint-{number:04d}-step-{100 * number}",
        {"trainer.json": trainer, "model.safetensors": "w" * 2000},
        age,
    )


def put_saving(target, rule, text, values, number):
    about = {"rule": rule, "text": text, "values": values, "step": 150 * number, "epoch": number, "evaluation": number}
    put_files(target, {"saving.json": {"schema": 1, **about}, "pytorch_model.bin": "w" * 1000})


def kept(number):
    return f"evaluation-{number:04d}-step-{150 * number}"


@pytest.fixture(name="put")
def _put():
    """How the things of a training are put into its folder."""
    return SimpleNamespace(checkpoint=put_checkpoint, saving=put_saving, kept=kept)


@pytest.fixture
def look(capsys):
    """Arguments -> status, stdout, stderr."""

    def run(*arguments):
        capsys.readouterr()
        status = main(["checkpoints", *map(str, arguments)])
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture
def folder(tmp_path):
    """The folder of a training with three checkpoints and three rules."""
    path = tmp_path / "runs" / "model"
    for number in (1, 2, 3):
        put_checkpoint(path, number, age=(4 - number) * 3600 + 100)
    put_saving(path / "best_accuracy@dev", "best_accuracy@dev", "best_accuracy@dev", {"accuracy@dev": 0.875}, 2)
    put_saving(
        path / "best_f1@dev__f1@ood",
        "best_f1@dev/f1@ood",
        "best_f1@dev/f1@ood",
        {"f1@dev": 0.123456789, "f1@ood": 0.5},
        2,
    )
    for number, value in ((1, 0.9), (2, 0.8)):
        put_saving(path / "lowest" / kept(number), "lowest", "best_valid_loss keep 2", {"valid_loss": value}, number)
    (path / "lowest" / "index.json").write_text(json.dumps({"schema": 1, "best_first": [kept(2), kept(1)]}))
    for name in ("history.jsonl", "decisions.jsonl", ".lock"):
        (path / name).touch()
    return path
