"""The checkpoints of a training: which exist, which is the newest intact one, which are kept."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from accmt.checkpoint import publish
from accmt.rules import reserved_names as names

FOLDER = names.CHECKPOINTS
TRAINER, MODEL = "trainer.json", "model.safetensors"  # files of a checkpoint
SCHEMA = 2  # of the checkpoint format; defined here because the command line reads it without torch
_NAME = re.compile(r"checkpoint-([0-9]{4,})-step-([0-9]+)")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint on the disk. `index` counts from 1 over the whole training."""

    index: int
    step: int
    path: Path


class NoCheckpoint(RuntimeError):
    """No checkpoint to resume from exists, or none is intact."""


class Checkpoints:
    """The folder of checkpoints below a `model_path`. Names are scanned each time; no file points to the newest.

    Attributes:
        folder: The folder.
        refused: Why `newest` skipped newer checkpoints, one line each.
    """

    def __init__(self, model_path: Path) -> None:
        self.folder = model_path / FOLDER
        self.refused: list[str] = []

    def all(self) -> list[Checkpoint]:
        """List all checkpoints by name, oldest first, verified or not."""
        found = []
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if match := _NAME.fullmatch(path.name):
                found.append(Checkpoint(int(match[1]), int(match[2]), path))
        return sorted(found, key=lambda checkpoint: (checkpoint.index, checkpoint.step))

    def newest(self) -> Checkpoint | None:
        """Return the newest intact checkpoint, every byte verified; None if there are no checkpoints.

        Raises:
            NoCheckpoint: There are checkpoints, and none is intact.
        """
        refused: list[str] = []
        for checkpoint in reversed(self.all()):
            problem = publish.folder_problem(checkpoint.path)
            if problem is None:
                self.refused = [f"{line}; continuing from {checkpoint.path.name}" for line in refused]
                return checkpoint
            refused.append(f"{checkpoint.path.name} cannot be used: {problem}")
        if refused:
            listed = "\n  ".join(refused)
            raise NoCheckpoint(
                f"no checkpoint in {self.folder} can be used:\n  {listed}\n"
                f"Nothing was changed. Start from scratch with resume=False, or with another model_path."
            )
        return None

    def at(self, index: int) -> Checkpoint:
        """Return the checkpoint with an index, every byte verified.

        Raises:
            NoCheckpoint: It does not exist, or is damaged.
        """
        found = self.all()
        for checkpoint in found:
            if checkpoint.index == index:
                problem = publish.folder_problem(checkpoint.path)
                if problem is not None:
                    raise NoCheckpoint(f"{checkpoint.path} cannot be used: {problem}")
                return checkpoint
        there = ", ".join(str(checkpoint.index) for checkpoint in found) or "none"
        raise NoCheckpoint(f"there is no checkpoint {index} in {self.folder}; the checkpoints are: {there}")

    def next(self, step: int) -> Path:
        """Return the path for the next checkpoint."""
        last = max((checkpoint.index for checkpoint in self.all()), default=0)
        return self.folder / f"checkpoint-{last + 1:04d}-step-{step}"

    def prune(self, keep: int | None) -> None:
        """Delete all but the newest `keep` complete checkpoints; None keeps all. Damaged ones stay for inspection."""
        if keep is None:
            return
        complete = [c for c in self.all() if publish.folder_problem(c.path, read=False) is None]
        for checkpoint in complete[: -max(1, keep)]:
            publish.remove(checkpoint.path)
