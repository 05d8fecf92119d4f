"""Putting an earlier training aside, so that a new one in the same folder neither continues nor overwrites it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

from accmt.checkpoint.checkpoints import FOLDER
from accmt.checkpoint.publish import flush_directory

JOURNALS = ("history.jsonl", "decisions.jsonl", "training.json")


def put_aside(model_path: Path, savings: Iterable[Path]) -> Path | None:
    """Move what an earlier training left into `earlier-N`; None if it left neither checkpoints nor models.

    The checkpoints go first, in one step: whenever this is cut short, nothing of the earlier training is continued by
    mistake.

    Args:
        model_path: The folder of the training.
        savings: The folders of the models that it saved.
    """
    checkpoints = model_path / FOLDER
    folders = [checkpoints] if checkpoints.is_dir() and any(checkpoints.iterdir()) else []
    folders += savings
    if not folders:
        return None
    journals = (path for name in JOURNALS if (path := model_path / name).exists())
    return move_aside(model_path, [*folders, *journals])


def move_aside(model_path: Path, paths: Iterable[Path]) -> Path:
    """Move files and folders of a training into a new folder beside them, in this order."""
    aside = next(path for n in itertools.count(1) if not (path := model_path / f"earlier-{n}").exists())
    aside.mkdir()
    for path in paths:
        path.rename(aside / path.name)
        flush_directory(model_path)
    return aside
