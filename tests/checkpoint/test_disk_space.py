"""Whether there is room is found out before anything is written."""

import errno
import re
import shutil
from collections import namedtuple

import pytest

from accmt.checkpoint.checkpoints import Checkpoints
from accmt.checkpoint.disk_space import require_space
from accmt.distributed.collective import Failed

Usage = namedtuple("Usage", "total used free")


def test_room(tmp_path):
    require_space(tmp_path, 1)
    require_space(tmp_path / "not there", 1)  # writing will say so


def test_no_room(tmp_path):
    with pytest.raises(OSError, match=r"1\.1 PB are needed and [\d.]+ \w+ are free") as raised:
        require_space(tmp_path, 2**50)
    assert raised.value.errno == errno.ENOSPC


def test_a_file_system_that_does_not_know_its_size_has_room(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(0, 0, 0))
    require_space(tmp_path, 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10, 10, 0))
    with pytest.raises(OSError, match="are needed"):
        require_space(tmp_path, 10**9)


def test_a_training_says_so_before_it_writes(trainer, regression, data, monkeypatch, capsys):
    """The first checkpoint finds room, the others do not: a warning, then an error; the first one stays."""
    training = trainer(checkpoint_every="2 steps", disable_model_saving=True)
    real, calls = shutil.disk_usage, []

    def usage(folder):
        calls.append(folder)
        return real(folder) if len(calls) == 1 else Usage(100, 90, 10)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    with pytest.raises(Failed, match="are needed"):
        training.fit(regression(), data(20))
    said = r"warning: no checkpoint at step 4: OSError: .* \d[\d.]* kB are needed and 10 bytes are free"
    assert len(re.findall(said, capsys.readouterr().out)) == 1
    assert [checkpoint.step for checkpoint in Checkpoints(training.model_path).all()] == [2]
    assert sorted(path.name for path in (training.model_path / "checkpoints").iterdir()) == ["checkpoint-0001-step-2"]


def test_neither_is_a_model_begun(trainer, regression, data, monkeypatch, capsys):
    """The model that a rule saved before stays until there is room for another."""
    real, calls = shutil.disk_usage, []

    def usage(folder):
        calls.append(folder)
        return Usage(100, 90, 10) if len(calls) == 2 else real(folder)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    training = trainer(epochs=3, enable_checkpointing=False)
    training.fit(regression(), data(20), data(8))
    assert [verdict.outcome.value for d in training.decisions for verdict in d.verdicts] == ["saved", "failed", "saved"]
    said = (
        "best_valid_loss could not be saved at step 10: OSError: [Errno 28] 196 bytes are needed and 10 bytes are free"
    )
    assert said in capsys.readouterr().out
