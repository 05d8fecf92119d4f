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
    mistake. The journals go next: what is left then is found again, by the models.

    Args:
        model_path: The folder of the training.
        savings: The folders of the models that it saved.
    """
    checkpoints = model_path / FOLDER
    first = [checkpoints] if checkpoints.is_dir() and any(checkpoints.iterdir()) else []
    journals = [path for name in JOURNALS if (path := model_path / name).exists()]
    last = list(savings)
    if not first and not last and not (journals and _was_cut_short(model_path)):
        return None
    return move_aside(model_path, [*first, *journals, *last])


def move_aside(model_path: Path, paths: Iterable[Path]) -> Path:
    """Move files and folders of a training into a new folder beside them, in this order."""
    aside = next(path for n in itertools.count(1) if not (path := model_path / f"earlier-{n}").exists())
    aside.mkdir()
    for path in paths:
        path.rename(aside / path.name)
        flush_directory(aside)
        flush_directory(model_path)
    return aside


def _was_cut_short(model_path: Path) -> bool:
    """Whether the newest folder of an earlier training has its checkpoints, and not yet its journals."""
    asides = sorted(model_path.glob("earlier-*"), key=lambda path: path.stat().st_mtime)
    newest = asides[-1] if asides else None
    return newest is not None and (newest / FOLDER).is_dir() and not any((newest / name).exists() for name in JOURNALS)
