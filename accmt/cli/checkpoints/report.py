"""Report of a training's folder for people: tables and conclusions."""

from __future__ import annotations

import time
from collections.abc import Iterator

from rich.text import Text

from accmt.cli.checkpoints.inspection import Epoch, SeenCheckpoint, State
from accmt.cli.checkpoints.inventory import Inventory, SeenRule
from accmt.cli.layout import Row, age_in_words, bytes_in_words, paragraph, table, terminal_width
from accmt.rules.printable import plain

_STYLES = {State.VERIFIED: "green", State.COMPLETE: "", State.UNLISTED: "yellow"}
_RESUMED = "  <- resume"
_MOST_BESIDE = 20
_SUMS = {"earlier": "put aside", "leftover": "left over", "other": "other"}
_WIDE = 100


def report(inventory: Inventory) -> list[Text]:
    """Return the tables of checkpoints, savings and other entries, and a few sentences."""
    width, now = terminal_width(), time.time()
    parts = [_checkpoints(inventory, now, width), _savings(inventory, width), _beside(inventory, width)]
    lines = [line for part in parts if part for line in (*part, Text())]
    lines += [Text(plain(problem), "red") for problem in inventory.problems]
    return [*lines, *(line for sentence in _sentences(inventory) for line in paragraph(sentence, width))]


def _checkpoints(inventory: Inventory, now: float, width: int | None) -> list[Text]:
    resumed = inventory.resumed if inventory.is_resume_known else None
    rows = [_checkpoint_row(one, one is resumed and not one.seen.is_bad, now) for one in inventory.checkpoints]
    header = Row(("checkpoint", "step", "epoch", "age", "size"), "state")
    return table(header, rows, width) if rows else []


def _checkpoint_row(one: SeenCheckpoint, is_resumed: bool, now: float) -> Row:
    seen = one.seen
    age = "" if seen.written is None else age_in_words(now - seen.written)
    cells = (plain(seen.path.name), str(one.step), _epoch(one.epoch), age, bytes_in_words(seen.size))
    mark = _RESUMED if is_resumed else ""
    return Row(cells, f"{seen.state}{mark}", plain(seen.problem or ""), _STYLES.get(seen.state, "red"))


def _savings(inventory: Inventory, width: int | None) -> list[Text]:
    """Return the table of each rule's models, best first."""
    is_narrow = width is not None and width < _WIDE
    rows = [row for rule in inventory.rules for row in _rule_rows(rule, is_narrow)]
    return table(Row(("saving", "value", "step", "epoch", "size"), "state"), rows, width) if rows else []


def _rule_rows(rule: SeenRule, is_narrow: bool) -> Iterator[Row]:
    """Yield the rows of one rule. A narrow table has no room for several values: they go on a line below."""
    if rule.keeps_several:
        yield Row((_title(rule),), note=plain(rule.problem or ""), style="red")
    for model in rule.models:
        name = f"  {plain(model.seen.path.name)}" if rule.keeps_several else _title(rule)
        about, seen = model.about, model.seen
        counters = ("", "") if about is None else (str(about.step), str(about.epoch))
        values = [] if about is None else [f"{value:.6g}" for value in about.values.values()]
        beneath = is_narrow and len(values) > 1
        cells = (name, "" if beneath else ", ".join(values), *counters, bytes_in_words(seen.size))
        yield Row(cells, str(seen.state), plain(seen.problem or ""), _STYLES.get(seen.state, "red"))
        if beneath:
            yield Row((f"    {', '.join(values)}",))


def _title(rule: SeenRule) -> str:
    """Return the folder of a rule, and the parts of its text that the folder's name lacks."""
    text = next((model.about.text for model in rule.models if model.about is not None), rule.folder)
    readable = rule.folder.replace("__", "/")
    more = text.removeprefix(readable) if text.startswith(readable) else f" ({text})"
    return plain(f"{rule.folder}{more}")


def _beside(inventory: Inventory, width: int | None) -> list[Text]:
    rows = [
        Row((plain(beside.name), bytes_in_words(beside.size)), note=plain(beside.text))
        for beside in inventory.beside[:_MOST_BESIDE]
    ]
    if left_out := len(inventory.beside) - len(rows):
        rows.append(Row((f"and {left_out} more",)))
    return table(Row(("also there", "size")), rows, width) if rows else []


def _sentences(inventory: Inventory) -> Iterator[str]:
    """Yield conclusions for the user who continues from here."""
    yield _resume(inventory)
    work = inventory.at_work
    if work.runs is None:
        yield f"whether a training is at work here is not known: {plain(work.reason)}"
    elif work.runs:
        yield "a training is at work here" + (f": process {work.process}" if work.process is not None else "")
    else:
        yield "no training is at work here"
    yield _total(inventory)
    states = {seen.state for seen in inventory.published}
    if any(checkpoint.seen.state is State.DAMAGED and not checkpoint.is_whole for checkpoint in inventory.checkpoints):
        yield "damaged: a resume passes it over, and nothing deletes it but you"
    if State.UNLISTED in states:
        yield "not listed: a training ended while it saved this one; the next save of the rule deletes it"
    if State.COMPLETE in states:
        yield "complete: every file is there and has its size; --verify reads every byte"


def _resume(inventory: Inventory) -> str:
    resumed = inventory.resumed
    if not inventory.is_resume_known:
        return "what a resume continues from is not known: not all checkpoints can be read"
    if not inventory.checkpoints:
        return "there is no checkpoint: a training starts from scratch here"
    if resumed is None:
        way_out = "give resume=False to start from scratch, or another model_path"
        return f"no checkpoint can be used, a resume is refused: {way_out}"
    name = plain(resumed.seen.path.name)
    if resumed.seen.is_bad:
        older = [one.index for one in inventory.checkpoints if one.is_whole and not one.seen.is_bad]
        instead = f"; an older one is continued from with resume={older[-1]}" if older else ""
        return f"a resume takes {name}, the newest, and is refused: {plain(resumed.seen.problem)}{instead}"
    doubt = "" if resumed.seen.state is State.VERIFIED else ", if every byte of it is right"
    return f"a resume continues from {name}{doubt}"


def _total(inventory: Inventory) -> str:
    """Return the total size in bytes and how it is divided."""
    sums = {
        "checkpoints": sum(checkpoint.seen.size for checkpoint in inventory.checkpoints),
        "savings": sum(model.seen.size for rule in inventory.rules for model in rule.models),
    }
    for beside in inventory.beside:
        sums[_SUMS[beside.kind]] = sums.get(_SUMS[beside.kind], 0) + beside.size
    parts = ", ".join(f"{name} {bytes_in_words(size)}" for name, size in sums.items() if size)
    return f"{bytes_in_words(inventory.size)} ({inventory.size:,} bytes) in all" + (f": {parts}" if parts else "")


def _epoch(epoch: Epoch | None) -> str:
    """Format completed epochs, with two decimals within an epoch, never rounded up."""
    if epoch is None:
        return ""
    if not epoch.steps:
        return str(epoch.completed)
    if not epoch.length or epoch.steps >= epoch.length:
        return f"{epoch.completed}+{epoch.steps}"  # the length of an epoch is unknown
    return f"{epoch.completed}.{100 * epoch.steps // epoch.length:02d}"
