"""Archiving of an earlier training, so that a new one in the same folder neither resumes nor overwrites it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from accmt.checkpoint.checkpoints import FOLDER, Checkpoints
from accmt.checkpoint.publish import move
from accmt.files.durable import flush_directory
from accmt.rules.reserved_names import DECISIONS, EARLIER, HISTORY, LOG, REPLICATES, REPORT, RUN, TRAINING

JOURNALS = (HISTORY, REPLICATES, DECISIONS, TRAINING, RUN, LOG, REPORT)
_NAME = re.compile(rf"{EARLIER}([0-9]{{1,9}})")


def archive_training(model_path: Path, savings: Iterable[Path]) -> Path | None:
    """Move the files of an earlier training into `earlier-N`; None if it has neither checkpoints nor models.

    The checkpoints are moved first, in one step, so that an interruption never leaves an earlier training to resume
    by mistake. The journals follow; after an interruption there, the next call finds the rest by its models.

    Args:
        model_path: The folder of the training.
        savings: The folders of the models that the earlier training saved.
    """
    first = [model_path / FOLDER] if Checkpoints(model_path).all() else []
    journals = [path for name in JOURNALS if (path := model_path / name).exists()]
    last = list(savings)
    if not first and not last and not _were_forgotten(model_path, journals):
        return None
    return move_to_archive(model_path, [*first, *journals, *last])


def move_to_archive(model_path: Path, paths: Iterable[Path]) -> Path:
    """Move files and folders of a training into a new `earlier-N` folder next to them, in the given order."""
    aside = model_path / f"{EARLIER}{max(_numbers(model_path), default=0) + 1}"
    aside.mkdir()
    for path in paths:
        move(path, aside / path.name)
        flush_directory(aside)
        flush_directory(model_path)
    return aside


def _were_forgotten(model_path: Path, journals: Iterable[Path]) -> bool:
    """Return whether a process died after it archived the checkpoints and before it archived their journals."""
    newest = model_path / f"{EARLIER}{max(_numbers(model_path), default=0)}"
    return (newest / FOLDER).is_dir() and any(not (newest / journal.name).exists() for journal in journals)


def _numbers(model_path: Path) -> list[int]:
    """Return the numbers of the existing `earlier-N` folders; the highest is the newest, regardless of the clock."""
    return [int(match[1]) for path in model_path.iterdir() if (match := _NAME.fullmatch(path.name))]
