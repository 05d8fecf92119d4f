"""Values on held-out datasets, added to the description of a saved model after the training."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from accmt.checkpoint import publish
from accmt.checkpoint.publish import MANIFEST, Manifest
from accmt.checkpoint.saved_models import DESCRIPTION, ModelDescription
from accmt.files.json_io import read_json, write_json


def add_held_out(folder: Path, values: Mapping[str, Mapping[str, float]]) -> None:
    """Add values (dataset -> metric -> value) to the description of a saved model.

    The folder is replaced by one with the same files: it is complete at any moment, whatever interrupts this.

    Raises:
        OSError: It could not be written.
        ValueError: The folder is damaged.
    """
    if (problem := publish.folder_problem(folder, read=False)) is not None:
        raise ValueError(f"{folder} cannot be used: {problem}")
    about: ModelDescription = read_json(folder / DESCRIPTION, ModelDescription)
    kept = {name: entry for name, entry in read_json(folder / MANIFEST, Manifest).files.items() if name != DESCRIPTION}
    temporary = publish.temporary_for(folder)
    try:
        copies = [temporary / name for name in kept if not _link(folder / name, temporary / name)]
        write_json(temporary / DESCRIPTION, replace(about, held_out={**about.held_out, **values}).to_json())
        new = publish.describe([*copies, temporary / DESCRIPTION])
        publish.publish(temporary, folder, {temporary / name: entry for name, entry in kept.items()} | new)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _link(source: Path, target: Path) -> bool:
    """Make another name for a file; where the file system cannot do that, copy it, and return False."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):
        os.link(source, target)
        return True
    shutil.copyfile(source, target)
    return False
