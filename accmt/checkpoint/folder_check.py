"""A check that the files of a training can be written where they belong. Does not import torch."""

from __future__ import annotations

import errno
import glob
import os
from pathlib import Path

from accmt.checkpoint import publish
from accmt.checkpoint.archive import JOURNALS
from accmt.checkpoint.saved_models import DESCRIPTION, INDEX, KEPT
from accmt.files import durable
from accmt.rules import Rules
from accmt.rules.reserved_names import CHECKPOINTS, MANIFEST, OUTBOX, REPLACED


def check_folders(path: Path, rules: Rules, *, has_checkpoints: bool) -> None:
    """Check, before anything is changed, that everything can be written where it belongs later.

    Args:
        path: The `model_path`.
        rules: The rules of the training.
        has_checkpoints: Whether the training writes checkpoints of its own.

    Raises:
        OSError: If something cannot be written.
    """
    durable.forget_warnings()
    try:
        str(path.resolve()).encode()
    except UnicodeEncodeError:
        raise OSError(
            errno.EILSEQ, "its name is not valid text, and what is written there could not be read back"
        ) from None
    folders = [path / CHECKPOINTS] if has_checkpoints else []
    folders += [path / rule.folder for rule in rules.savings if rule.keep > 1 and rules.writes]
    for place in (path / CHECKPOINTS, path / OUTBOX, *(path / rule.folder for rule in rules.savings)):
        if place.is_symlink():
            raise OSError(
                errno.ELOOP, f"its {place.name} is a link: a training keeps all of its files in its own folder"
            )
    for folder in (path, *(folder for folder in folders if os.path.lexists(folder))):
        publish.require_writable(folder)
        durable.flush_directory(folder)  # warn before the first step if this folder cannot be flushed
    for rule in rules.savings if rules.writes else ():
        if rule.keep == 1 and _holds_other_things(path / rule.folder):
            text = f"its '{rule.folder}' was not saved by a rule, and the rule '{rule.name}' would replace it"
            raise OSError(errno.EEXIST, f"{text}: move it away, or give the rule another name", str(path / rule.folder))
    for name in JOURNALS:
        if os.path.lexists(path / name) and ((path / name).is_symlink() or not (path / name).is_file()):
            raise OSError(errno.EEXIST, f"its {name} is not a file", str(path / name))


def _holds_other_things(folder: Path) -> bool:
    """Return whether a rule's folder holds foreign files, or is itself a foreign file."""
    if folder.is_symlink() or not folder.exists():
        return False
    if not folder.is_dir():
        return True
    names = os.listdir(folder)
    is_saved = {MANIFEST, DESCRIPTION, INDEX}.intersection(names) or any(map(KEPT.fullmatch, names))
    is_hidden = all(name.startswith(".") for name in names)
    replaced = list(folder.parent.glob(f"{glob.escape(f'{REPLACED}{folder.name}-')}*"))
    return not (is_saved or is_hidden or replaced)
