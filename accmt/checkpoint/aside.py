"""Putting an earlier training aside, so that a new one in the same folder is never taken for it."""

from __future__ import annotations

import itertools
from pathlib import Path

from accmt.checkpoint.checkpoints import FOLDER
from accmt.checkpoint.publish import flush_directory

JOURNALS = ("history.jsonl", "decisions.jsonl")


def put_aside(model_path: Path) -> Path | None:
    """Move the checkpoints and journals of an earlier training into `earlier-N`; None if it left no checkpoint.

    The checkpoints go first, in one step: whenever this is cut short, nothing of the earlier training is continued by
    mistake. Saved models stay where they are until the new training replaces them.
    """
    checkpoints = model_path / FOLDER
    if not checkpoints.is_dir() or not any(checkpoints.iterdir()):
        return None
    aside = next(path for n in itertools.count(1) if not (path := model_path / f"earlier-{n}").exists())
    aside.mkdir()
    checkpoints.rename(aside / FOLDER)
    flush_directory(model_path)
    for name in JOURNALS:
        if (model_path / name).exists():
            (model_path / name).rename(aside / name)
    return aside
