"""Putting an earlier training aside, so that a new one in the same folder neither continues nor overwrites it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from accmt.checkpoint.checkpoints import FOLDER, Checkpoints
from accmt.checkpoint.publish import move
from accmt.durable import flush_directory
from accmt.rules.names import DECISIONS, EARLIER, HISTORY, TRAINING

JOURNALS = (HISTORY, DECISIONS, TRAINING)
_NAME = re.compile(rf"{EARLIER}([0-9]{{1,9}})")


def put_aside(model_path: Path, savings: Iterable[Path]) -> Path | None:
    """Move what an earlier training left into `earlier-N`; None if it left neither checkpoints nor models.

    The checkpoints go first, in one step: whenever this is cut short, nothing of the earlier training is continued by
    mistake. The journals go next: what is left then is found again, by the models.

    Args:
        model_path: The folder of the training.
        savings: The folders of the models that it saved.
    """
    first = [model_path / FOLDER] if Checkpoints(model_path).all() else []
    journals = [path for name in JOURNALS if (path := model_path / name).exists()]
    last = list(savings)
    if not first and not last and not _were_forgotten(model_path, journals):
        return None
    return move_aside(model_path, [*first, *journals, *last])


def move_aside(model_path: Path, paths: Iterable[Path]) -> Path:
    """Move files and folders of a training into a new folder beside them, in this order."""
    aside = model_path / f"{EARLIER}{max(_numbers(model_path), default=0) + 1}"
    aside.mkdir()
    for path in paths:
        move(path, aside / path.name)
        flush_directory(aside)
        flush_directory(model_path)
    return aside


def _were_forgotten(model_path: Path, journals: Iterable[Path]) -> bool:
    """Whether journals belong to checkpoints that were put aside last, by a process that died before these followed."""
    newest = model_path / f"{EARLIER}{max(_numbers(model_path), default=0)}"
    return (newest / FOLDER).is_dir() and any(not (newest / journal.name).exists() for journal in journals)


def _numbers(model_path: Path) -> list[int]:
    """The numbers of the folders that there are: the highest is the newest one, whatever the clock says."""
    return [int(match[1]) for path in model_path.iterdir() if (match := _NAME.fullmatch(path.name))]
