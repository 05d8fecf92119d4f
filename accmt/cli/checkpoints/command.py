"""`accmt checkpoints`: list what a training left on disk, and say whether it can be trusted."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accmt.checkpoint.archive import JOURNALS
from accmt.checkpoint.checkpoints import FOLDER
from accmt.checkpoint.lock import LOCK
from accmt.cli.arguments import CommandError
from accmt.cli.checkpoints.inspection import Seen, State
from accmt.cli.checkpoints.inventory import Inventory, take_inventory
from accmt.cli.checkpoints.report import report
from accmt.cli.layout import write_lines
from accmt.cli.output import fitting, write_json
from accmt.rules.codec import to_text
from accmt.rules.printable import plain

_MOST = 12
_LONGEST = 60


def run(options: argparse.Namespace) -> int:
    """Inspect the folder of a training; the exit status is 1 if something in it is damaged.

    Raises:
        CommandError: If it is not the folder of a training.
    """
    model_path = Path(options.model_path)
    names = _names_in(model_path)
    with _telling(options.verify) as tell:
        inventory = take_inventory(model_path, names, options.verify, tell)
    if not (_is_known(names) or inventory.published):
        raise _no_training(model_path, names)
    if options.json:
        for entry in _entries(inventory):
            write_json(entry)
    else:
        write_lines(report(inventory))
    return 0 if inventory.is_well else 1


def _names_in(folder: Path) -> list[str]:
    try:
        os.stat(os.path.join(folder, "."))  # listing a folder is not enough: its entries have to be accessible
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        raise CommandError(f"{plain(folder)}: there is no such folder") from None
    except NotADirectoryError:
        raise CommandError(f"{plain(folder)} is a file: give the model_path of a training, a folder") from None
    except OSError as error:
        raise CommandError(f"{plain(folder)} cannot be read: {error.strerror}") from None
    if not _is_known(names) and (above := _training_above(folder)) is not None:
        raise CommandError(f"{plain(folder)} belongs to a training: give its model_path, {plain(above)}")
    return names


def _is_known(names: list[str]) -> bool:
    """Return whether the names include files that only a training writes."""
    return not {LOCK, FOLDER, *JOURNALS}.isdisjoint(names)


def _training_above(folder: Path) -> Path | None:
    """Return the training that a folder of checkpoints, a checkpoint or a saved model belongs to."""
    above = list(folder.absolute().parents)[:2]
    return next((path for path in above if any(os.path.lexists(path / name) for name in JOURNALS)), None)


def _no_training(folder: Path, names: list[str]) -> CommandError:
    inside = [name for name in names if any(os.path.lexists(folder / name / known) for known in (FOLDER, *JOURNALS))]
    if inside:
        why = f"there are trainings in it: {', '.join(map(plain, inside[:_MOST]))}"
    else:
        lacking = "it has neither checkpoints nor savings nor a history" if names else "it is empty"
        why = f"{lacking}; give the model_path of one"
    return CommandError(f"{plain(folder)} holds no training: {why}")


@contextmanager
def _telling(verify: bool) -> Iterator[Callable[[str], None]]:
    """Show on a terminal which folder is being read, because that may take minutes."""
    if not (verify and sys.stderr.isatty()):
        yield lambda name: None
        return

    def tell(name: str) -> None:
        sys.stderr.write(f"\r\x1b[Kreading {fitting(plain(name), sys.stderr)[:_LONGEST]}")
        sys.stderr.flush()

    try:
        yield tell
    finally:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


def _entries(inventory: Inventory) -> Iterator[dict[str, Any]]:
    """Yield the findings for scripts: one object for each item, and one for the whole."""
    folder = inventory.model_path
    for checkpoint in inventory.checkpoints:
        epoch = None if checkpoint.epoch is None else asdict(checkpoint.epoch)
        place = {"index": checkpoint.index, "step": checkpoint.step, "epoch": epoch}
        resumed = checkpoint is inventory.resumed if inventory.is_resume_known else None
        yield {"kind": "checkpoint", **_seen(checkpoint.seen), **place, "resumed": resumed}
    for rule in inventory.rules:
        for rank, model in enumerate(rule.models, 1):
            about = None if model.about is None else asdict(model.about)
            if about is not None:
                about["values"] = {name: to_text(value) for name, value in about["values"].items()}
            rank_known = rule.problem is None and model.seen.state is not State.UNLISTED
            yield {"kind": "saving", **_seen(model.seen), "rank": rank if rank_known else None, "about": about}
        if rule.problem is not None:
            yield {"kind": "problem", "path": str(folder / rule.folder), "problem": rule.problem}
    for beside in inventory.beside:
        yield {"kind": beside.kind, "path": str(folder / beside.name), "bytes": beside.size, "about": beside.text}
    for problem in inventory.problems:
        yield {"kind": "problem", "path": str(folder), "problem": problem}
    work = {"running": inventory.at_work.runs, "process": inventory.at_work.process}
    whole = {"path": str(folder), "bytes": inventory.size, "well": inventory.is_well}
    yield {"kind": "training", **whole, **work}


def _seen(seen: Seen) -> dict[str, Any]:
    state = {"state": seen.state.value, "problem": seen.problem}
    return {"path": str(seen.path), "bytes": seen.size, "written": seen.written, **state}
