"""The seed of a process that `accmt seeds` started, and how its trainings tell their folders. Does not import torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SEED = "ACCMT_SEED"
FOLDERS = "ACCMT_SEED_FOLDERS"
LARGEST = 2**31 - 1


def seed_of_run() -> int | None:
    """Return the seed that the environment gives to every training of this process; None if it gives none.

    Raises:
        ValueError: It is not a seed.
    """
    text = os.environ.get(SEED)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and int(text) <= LARGEST):
        raise ValueError(f"the environment variable {SEED} is '{text}': it must be a whole number from 0 to 2**31 - 1")
    return int(text)


def for_seed_run(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a trainer: in a run of `accmt seeds`, with its seed, and a folder of its own."""
    given, seed = dict(arguments), seed_of_run()
    if seed is not None:
        given["seed"] = seed
        if isinstance(path := given["model_path"], str | os.PathLike):
            given["model_path"] = Path(path, f"seed-{seed}")
    return given


def tell_folder(model_path: Path) -> None:
    """Tell `accmt seeds`, if it started this process, where a training lies."""
    if (file := os.environ.get(FOLDERS)) is not None:
        with open(file, "a", encoding="utf-8", errors="surrogateescape") as told:
            told.write(f"{model_path}\n")
