"""`accmt checkpoints`: list what a training left on disk, and say whether it can be trusted."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accmt.checkpoint.archive import JOURNALS
from accmt.checkpoint.checkpoints import FOLDER
from accmt.checkpoint.lock import LOCK, Holder
from accmt.cli.arguments import CommandError, path
from accmt.cli.checkpoints.inventory import Inventory, take_inventory
from accmt.cli.output import fitting, print_json, write_rich
from accmt.rules.errors import listed
from accmt.rules.printable import escaped

_MOST = 12
_LONGEST = 60


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Complete the parser of the command."""
    parser.description = (
        "List all checkpoints and saved models of a training, the checkpoint that a resume continues from, and what\n"
        "else is in the folder. The exit status is 1 if something is damaged. Nothing is written: the folder may be\n"
        "read-only, and a training may be running in it."
    )
    parser.epilog = """examples:
  accmt checkpoints runs/model
  accmt checkpoints runs/model --verify
  accmt checkpoints runs/model --json
"""
    parser.add_argument("model_path", type=path, metavar="MODEL_PATH", help="the model_path of the training")
    parser.add_argument("--verify", action="store_true", help="read every file and compare it with its hash")
    parser.add_argument("--json", action="store_true", help="write one JSON object per line")


def run(options: argparse.Namespace) -> int:
    """Inspect the folder of a training; the exit status is 1 if something in it is damaged.

    Raises:
        CommandError: If it is not the folder of a training.
    """
    model_path = Path(options.model_path)
    names = _names_in(model_path)
    with _telling(options.verify) as tell:
        inventory = take_inventory(model_path, names, options.verify, tell)
    if not (_is_known(names) or inventory.of("checkpoint", "saving")):
        raise _no_training(model_path, names)
    if options.json:
        for entry in _entries(inventory):
            print_json(entry)
    else:
        from accmt.cli.checkpoints.report import report

        write_rich(*report(inventory))
    return 0 if inventory.is_well else 1


def _names_in(folder: Path) -> list[str]:
    try:
        os.stat(os.path.join(folder, "."))  # listing a folder is not enough: its entries have to be accessible
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        raise CommandError(f"{escaped(folder)}: there is no such folder") from None
    except NotADirectoryError:
        raise CommandError(f"{escaped(folder)} is a file: give the model_path of a training, a folder") from None
    except OSError as error:
        raise CommandError(f"{escaped(folder)} cannot be read: {error.strerror}") from None
    if not _is_known(names) and (above := _training_above(folder)) is not None:
        raise CommandError(f"{escaped(folder)} belongs to a training: give its model_path, {escaped(above)}")
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
    why = ": it is empty; give a training's model_path"
    if inside:
        why = f", but these folders in it are: {escaped(listed(inside, _MOST))}"
    elif names:
        why = ": it has no checkpoints, no saved models and no history; give a training's model_path"
    return CommandError(f"{escaped(folder)} is not the folder of a training{why}")


@contextmanager
def _telling(verify: bool) -> Iterator[Callable[[str], None]]:
    """Show on a terminal which folder is being read, because that may take minutes.

    Not by rich's status, which hides the cursor: an interrupt ends the process without showing it again.
    """
    if not (verify and sys.stderr.isatty()):
        yield lambda name: None
        return

    def tell(name: str) -> None:
        sys.stderr.write(f"\r\x1b[Kreading {fitting(escaped(name), sys.stderr)[:_LONGEST]}")
        sys.stderr.flush()

    try:
        yield tell
    finally:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


def _entries(inventory: Inventory) -> Iterator[dict[str, Any]]:
    """Yield the findings for scripts: one object for each of them, and one for the whole."""
    resumed = inventory.resumed if inventory.is_resume_known else None
    for found in inventory.findings:
        known = {"path": str(found.path), "bytes": found.size, "problem": found.problem, **found.facts}
        if found.state is not None:
            known |= {"written": found.written, "state": found.state}
        if found.kind == "checkpoint":
            known["resumed"] = found is resumed if inventory.is_resume_known else None
        yield {"kind": found.kind, **known}
    holder = inventory.holder
    process = holder.process if isinstance(holder, Holder) else None
    running = None if isinstance(holder, str) else holder is not None
    whole = {"path": str(inventory.model_path), "bytes": inventory.size, "well": inventory.is_well}
    yield {"kind": "training", **whole, "running": running, "process": process}
