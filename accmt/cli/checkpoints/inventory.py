"""Contents of a training's folder, as values: checkpoints, savings, and other files. Nothing is written."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from accmt.checkpoint import publish
from accmt.checkpoint.checkpoints import FOLDER, Checkpoint, Checkpoints
from accmt.checkpoint.saved_models import DESCRIPTION, INDEX, KEPT, is_saving
from accmt.cli.checkpoints.inspection import (
    UNREADABLE,
    Look,
    Seen,
    SeenCheckpoint,
    SeenModel,
    State,
    identity,
    read,
    see_checkpoint,
    see_model,
    size_of,
    steadily,
)
from accmt.cli.checkpoints.running import AtWork, at_work
from accmt.rules.reserved_names import EARLIER
from accmt.tracking.training_file import DamagedDescription, read_description

_EARLIER = re.compile(rf"{EARLIER}[0-9]+")
_KINDS = ("earlier", "leftover", "other")
_LEFT = (publish.TEMPORARY, publish.TRASH, publish.REPLACED)


@dataclass(frozen=True, slots=True)
class SeenRule:
    """The folder of a rule. If it `keeps_several` models, they are listed best first."""

    folder: str
    models: tuple[SeenModel, ...]
    keeps_several: bool
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Beside:
    """Anything else below the `model_path`, by its name: an earlier training, a leftover, or a foreign file."""

    kind: str
    name: str
    size: int
    text: str


@dataclass(frozen=True, slots=True)
class Inventory:
    """All findings, checkpoints oldest first. `is_resume_known` is False if an unreadable one might be the newest."""

    model_path: Path
    checkpoints: tuple[SeenCheckpoint, ...]
    rules: tuple[SeenRule, ...]
    beside: tuple[Beside, ...]
    at_work: AtWork
    problems: tuple[str, ...]
    is_resume_known: bool

    @property
    def published(self) -> list[Seen]:
        """All checkpoints and saved models."""
        models = (model for rule in self.rules for model in rule.models)
        return [*(checkpoint.seen for checkpoint in self.checkpoints), *(model.seen for model in models)]

    @property
    def resumed(self) -> SeenCheckpoint | None:
        """Checkpoint that a resume would use: the newest that can be trusted, as far as was checked."""
        return next((checkpoint for checkpoint in reversed(self.checkpoints) if checkpoint.is_whole), None)

    @property
    def is_well(self) -> bool:
        """True if nothing is damaged."""
        return not (self.problems or any(x.is_bad for x in self.published) or any(rule.problem for rule in self.rules))

    @property
    def size(self) -> int:
        """Total size of all findings, in bytes."""
        return sum(seen.size for seen in self.published) + sum(beside.size for beside in self.beside)


def take_inventory(model_path: Path, names: Sequence[str], verify: bool, tell: Callable[[str], None]) -> Inventory:
    """Inspect everything in the folder of a training.

    Args:
        model_path: The folder.
        names: The names of its entries.
        verify: Whether to read every byte.
        tell: Called with the name of each folder before it is inspected.
    """
    look, problems = Look(verify, tell), list[str]()
    training = at_work(model_path)
    by_name, others = _scan(model_path, problems)
    checkpoints = [seen for one in by_name or () if (seen := see_checkpoint(one, look)) is not None]
    rules: list[SeenRule] = []
    paths = [Path(name) for name in names if name.startswith(_LEFT) or _is_aside(model_path / name)]
    for name in names:
        if name == FOLDER or Path(name) in paths or not os.path.isdir(model_path / name):
            continue
        if os.path.islink(model_path / name):
            paths.append(Path(name))
            continue
        folder = model_path / name
        rule = steadily(partial(_rule_identity, folder), partial(_see_rule, folder, look))
        rules += [] if rule is None else [rule]
        paths += _leftovers(model_path, name, rule is not None, problems)
    beside = [_beside(model_path, path, training.runs is True) for path in sorted([*paths, *others])]
    beside.sort(key=lambda one: _KINDS.index(one.kind))
    is_known = by_name is not None and _is_newest_known(checkpoints)
    return Inventory(model_path, tuple(checkpoints), tuple(rules), tuple(beside), training, tuple(problems), is_known)


def _is_newest_known(checkpoints: Sequence[SeenCheckpoint]) -> bool:
    """Return whether no unreadable checkpoint is newer than the newest that can be trusted."""
    newest = next((one for one in reversed(checkpoints) if one.is_whole or one.seen.state is State.UNREADABLE), None)
    return newest is None or newest.seen.state is not State.UNREADABLE


def _scan(model_path: Path, problems: list[str]) -> tuple[list[Checkpoint] | None, list[Path]]:
    """Return the checkpoints by their names, None if they are unknown, and other entries of their folder."""
    folder = model_path / FOLDER
    if folder.is_symlink() and folder.is_dir():
        problems.append(f"{FOLDER} is a link: put the folder in its place, or a training is refused here")
        return None, []
    try:
        names = os.listdir(folder)
        found = Checkpoints(model_path).all()
    except FileNotFoundError:
        if folder.is_symlink():
            problems.append(f"{FOLDER} is a link to a folder that is not there: no checkpoint can be written")
        return [], []
    except NotADirectoryError:
        problems.append(f"{FOLDER} is not a folder: move it away, or no checkpoint can be written")
        return [], []
    except OSError as error:
        problems.append(f"{FOLDER} cannot be read: {error.strerror}")
        return None, []
    others = sorted(set(names) - {checkpoint.path.name for checkpoint in found})
    return found, [Path(FOLDER, name) for name in others if os.path.lexists(folder / name)]


def _see_rule(folder: Path, look: Look) -> SeenRule | None:
    """Inspect what a rule has saved; None if no rule saves here."""
    try:
        names = os.listdir(folder)
    except OSError:
        return None  # the reason is reported with the leftovers
    kept = sorted(name for name in names if KEPT.fullmatch(name))
    if INDEX not in names:
        if DESCRIPTION in names or _was_saving(folder):
            model = see_model(folder, look)
            return None if model is None else SeenRule(folder.name, (model,), keeps_several=False)
        if not kept:
            return None
    listed, problem = _listed(folder) if INDEX in names else ([], None)
    if problem is not None:
        listed = kept
    models = [see_model(folder / name, look) or _missing(folder / name) for name in listed]
    unlisted = [see_model(folder / name, look) for name in kept if name not in listed]
    models += [_as_unlisted(model) for model in unlisted if model is not None]
    return SeenRule(folder.name, tuple(models), True, problem)


def _listed(folder: Path) -> tuple[list[str], str | None]:
    """Return the names of the models that a rule keeps, best first, or why they are unknown."""
    try:
        names = list(dict.fromkeys(str(name) for name in read(folder / INDEX)["best_first"]))
        if not all(KEPT.fullmatch(name) for name in names):
            raise ValueError
    except UNREADABLE as error:
        return [], f"its {INDEX} cannot be read: {type(error).__name__}"
    return names, None


def _as_unlisted(model: SeenModel) -> SeenModel:
    """Mark a model missing from its rule's list: a training was cut short, or is running right now."""
    return model if model.seen.is_bad else replace(model, seen=replace(model.seen, state=State.UNLISTED))


def _missing(place: Path) -> SeenModel:
    return SeenModel(Seen(place, 0, None, State.MISSING, f"{INDEX} lists it, and it is not there"), None)


def _was_saving(folder: Path) -> bool:
    """Return whether a manifest says that a saved model was written here."""
    try:
        return DESCRIPTION in read(folder / publish.MANIFEST)["files"]
    except UNREADABLE:
        return False


def _rule_identity(folder: Path) -> object:
    """Return a value that changes when the contents of a rule's folder are replaced, but not when models are added."""
    own = identity(folder)
    return None if own is None else (own[:2], identity(folder / INDEX))


def _leftovers(model_path: Path, name: str, is_rule: bool, problems: list[str]) -> list[Path]:
    """Return what a process left in the folder of a rule, even if nothing was saved there yet."""
    try:
        names = sorted(os.listdir(model_path / name))
    except FileNotFoundError:
        return []
    except OSError as error:
        if _may_be_of_rule(model_path, name):
            problems.append(f"{name} cannot be read: {error.strerror}")
        return []
    begins = _LEFT if is_rule else (f"{publish.TEMPORARY}evaluation-",)
    return [Path(name, entry) for entry in names if entry.startswith(begins)]


def _may_be_of_rule(model_path: Path, name: str) -> bool:
    """Return whether an unreadable folder may hold savings: not if the training's rules are known and do not use it."""
    try:
        description = read_description(model_path)
    except (DamagedDescription, OSError):
        return True
    return description is None or name in [rule.folder for rule in description.rules.savings]


def _beside(model_path: Path, path: Path, is_running: bool) -> Beside:
    """Classify a path below the `model_path` that is neither a checkpoint nor a saving."""
    size, name = size_of(model_path / path), path.name
    if str(path) == name and os.path.islink(model_path / path):
        return Beside("other", name, size, "a link: what is behind it is not looked at")
    if str(path) == name and _is_aside(model_path / path):
        return Beside("earlier", str(path), size, _put_aside(model_path / path))
    if not name.startswith(_LEFT):
        return Beside("other", str(path), size, "no checkpoint has such a name: it is left alone")
    if is_running:
        text = "in use: the training writes or deletes it"
    elif name.startswith(publish.REPLACED):
        former = name.removeprefix(publish.REPLACED).rpartition("-")[0]
        is_replaced = os.path.lexists(model_path / path.parent / former)
        text = "replaced: the next training deletes it" if is_replaced else f"the next training names it {former} again"
    else:
        half = "half-written" if name.startswith(publish.TEMPORARY) else "half-deleted"
        text = f"{half}: the next training deletes it"
    return Beside("leftover", str(path), size, text)


def _is_aside(path: Path) -> bool:
    return _EARLIER.fullmatch(path.name) is not None and os.path.isdir(path) and not os.path.islink(path)


def _put_aside(folder: Path) -> str:
    """Describe an earlier training. Its checkpoints are in their folder, or here if only they were moved."""
    names = _names_in(folder)
    count = sum(name.startswith("checkpoint-") for name in [*names, *_names_in(folder / FOLDER)])
    rules = sum(_is_saving(folder / name) for name in names)
    parts = [f"{count} checkpoint{'s' * (count != 1)}"] * (count > 0)
    parts += [f"savings of {rules} rule{'s' * (rules != 1)}"] * (rules > 0)
    return f"put aside: {', '.join(parts) or 'no checkpoints, no savings'}"


def _names_in(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _is_saving(folder: Path) -> bool:
    try:
        return is_saving(folder)
    except OSError:
        return False
