"""Report of a training's folder for people: tables and conclusions."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from accmt.checkpoint.saved_models import measured
from accmt.cli.checkpoints.inventory import COMPLETE, DAMAGED, UNLISTED, VERIFIED, Finding, Inventory
from accmt.cli.output import table
from accmt.rules.printable import shown

_STYLES = {VERIFIED: "green", COMPLETE: "", UNLISTED: "yellow"}
_MOST_OTHERS = 20
_SUMS = {
    "checkpoints": "checkpoint",
    "saved models": "saving",
    "earlier trainings": "earlier",
    "leftovers": "leftover",
    "other": "other",
}
_UNITS = ((2 * 86400, 86400, "days"), (3600, 3600, "h"), (60, 60, "min"), (0, 1, "s"))


def report(inventory: Inventory) -> Iterator[Table | str]:
    """Yield the tables of checkpoints, saved models and other entries, and a few sentences."""
    for part in (_checkpoints(inventory), _models(inventory), _others(inventory)):
        if part.rows:
            yield part
            yield ""
    yield from (str(found.problem) for found in inventory.of("problem"))
    yield from _conclusions(inventory)


def age_in_words(seconds: float) -> str:
    """Format an age, such as 5 min."""
    if seconds < -1:
        return "future"
    return next(f"{int(seconds // size)} {unit}" for least, size, unit in _UNITS if max(0.0, seconds) >= least)


def _checkpoints(inventory: Inventory) -> Table:
    result = table("checkpoint", "step", "epoch", "age", "size", "state")
    resumed = inventory.resumed if inventory.is_resume_known else None
    for found in inventory.of("checkpoint"):
        age = "" if found.written is None else age_in_words(time.time() - found.written)
        mark = "  <- resume" if found is resumed and found.problem is None else ""
        cells = (found.path.name, str(found.facts["step"]), _epoch(found.facts["epoch"]), age, decimal(found.size))
        result.add_row(*map(shown, cells), _state(found, mark))
    return result


def _models(inventory: Inventory) -> Table:
    """Return the table of saved models; those of a rule that keeps several are below its name, best first."""
    result = table("saved model", "values", "step", "epoch", "size", "state")
    for folder, group in groupby(inventory.of("saving"), lambda found: _rule_folder(found, inventory.model_path)):
        models = list(group)
        title = _title(folder, models)
        if folder != models[0].path:
            result.add_row(title)
            title = ""
        for model in models:
            about = model.facts["about"] or {"values": {}, "step": "", "epoch": ""}
            values = ", ".join(f"{float(value):.6g}" for value in about["values"].values())
            held_out = measured(about.get("held_out", {})).items()
            values += "; held out: " * bool(held_out) + ", ".join(f"{name} {float(v):.6g}" for name, v in held_out)
            cells = (values, str(about["step"]), str(about["epoch"]), decimal(model.size))
            result.add_row(title or f"  {shown(model.path.name)}", *cells, _state(model))
    return result


def _rule_folder(model: Finding, model_path: Path) -> Path:
    return model.path if model.path.parent == model_path else model.path.parent


def _title(folder: Path, models: list[Finding]) -> str:
    """Return the folder of a rule, and the rule where the folder's name does not say it."""
    text = next((model.facts["about"]["text"] for model in models if model.facts["about"]), folder.name)
    return shown(folder.name if text == folder.name.replace("__", "/") else f"{folder.name} ({text})")


def _others(inventory: Inventory) -> Table:
    result = table("also there", "size", "what it is")
    others = inventory.of("earlier", "leftover", "other")
    for other in others[:_MOST_OTHERS]:
        name = str(other.path.relative_to(inventory.model_path))
        result.add_row(shown(name), decimal(other.size), shown(other.facts["about"]))
    if left_out := len(others) - len(result.rows):
        result.add_row(f"and {left_out} more")
    return result


def _state(found: Finding, mark: str = "") -> Text:
    problem = f": {found.problem}" if found.problem else ""
    return Text(shown(f"{found.state}{problem}{mark}"), _STYLES.get(str(found.state), "red"))


def _conclusions(inventory: Inventory) -> Iterator[str]:
    """Yield conclusions for the user who continues from here."""
    yield _resume(inventory)
    holder = inventory.holder
    if isinstance(holder, str):
        yield f"cannot tell whether a training is running here: {holder}"
    elif holder is None:
        yield "no training is running here"
    else:
        yield "a training is running here" + ("" if holder.process is None else f": process {holder.process}")
    sums = {name: sum(found.size for found in inventory.of(kind)) for name, kind in _SUMS.items()}
    parts = ", ".join(f"{name} {decimal(size)}" for name, size in sums.items() if size)
    yield f"total size: {inventory.size:,} bytes" + (f" ({parts})" if parts else "")
    states = {found.state for found in inventory.findings}
    if any(found.state == DAMAGED and not found.is_intact for found in inventory.of("checkpoint")):
        yield "damaged: a resume skips such a checkpoint, and it stays until you delete it"
    if UNLISTED in states:
        yield "not listed: the training ended while it saved this model; the next save of the rule deletes it"
    if COMPLETE in states:
        yield "complete: all files are there, with the right sizes; use --verify to check their contents as well"


def _resume(inventory: Inventory) -> str:
    checkpoints, resumed = inventory.of("checkpoint"), inventory.resumed
    if not inventory.is_resume_known:
        return "cannot tell which checkpoint a resume continues from: not all of them can be read"
    if not checkpoints:
        return "there is no checkpoint: a training here starts from scratch"
    if resumed is None:
        way_out = "start from scratch with resume=False, or use another model_path"
        return f"no checkpoint can be used, so a resume is refused: {way_out}"
    name = resumed.path.name
    if resumed.problem is not None:
        older = [found.facts["index"] for found in checkpoints if found.problem is None]
        instead = f"; resume={older[-1]} continues from an older one" if older else ""
        return f"a resume chooses {name}, the newest, and is refused: {resumed.problem}{instead}"
    doubt = "" if resumed.state == VERIFIED else ", unless its contents turn out to be damaged"
    return f"a resume continues from {name}{doubt}"


def _epoch(epoch: Mapping[str, Any] | None) -> str:
    """Format completed epochs, with two decimals within an epoch, never rounded up."""
    if epoch is None:
        return ""
    completed, steps, length = epoch["completed"], epoch["steps"], epoch["length"]
    if not steps:
        return str(completed)
    if not length or steps >= length:
        return f"{completed}+{steps}"  # the length of an epoch is unknown
    return f"{completed}.{100 * steps // length:02d}"
