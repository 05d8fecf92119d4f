"""Contents of a training's folder, as values. Nothing is written or locked, and a training may be running there.

What the training removes during the inspection is left out, and what it replaces is inspected again.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from accmt.checkpoint import lock, publish
from accmt.checkpoint.checkpoints import FOLDER, SCHEMA, TRAINER, Checkpoints
from accmt.checkpoint.saved_models import DESCRIPTION, INDEX, KEPT, KeptList, ModelDescription
from accmt.files.json_io import DamagedFile, read_json
from accmt.rules.codec import Count
from accmt.rules.reserved_names import EARLIER, TRAINING
from accmt.tracking.training_file import read_description

COMPLETE, VERIFIED, UNLISTED = "complete", "verified", "not listed"
DAMAGED, UNREADABLE, TOO_NEW, MISSING = "damaged", "unreadable", "too new", "missing"

_ODD = (OSError, ValueError)
_UNFINISHED = (publish.TEMPORARY, publish.TRASH, publish.REPLACED)
_EARLIER = re.compile(rf"{EARLIER}[0-9]+")
_KINDS = ("checkpoint", "saving", "earlier", "leftover", "other", "problem")
_TRIES = 5

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Versioned:
    schema: Count


@dataclass(frozen=True, slots=True)
class _Position:
    epoch: Count
    step_in_epoch: Count


@dataclass(frozen=True, slots=True)
class _Trainer:
    position: _Position
    steps_per_epoch: Count | None


@dataclass(frozen=True, slots=True)
class Finding:
    """Something in the folder of a training.

    Attributes:
        kind: "checkpoint", "saving" (a saved model), "earlier" (a training), "leftover", "other" or "problem".
        path: Its path.
        size: The size of its files, in bytes.
        written: When it was published, in seconds since 1970; None if unknown.
        state: The state of a checkpoint or saved model, one of the names above; "complete" means that its files have
            the right names, kinds and sizes.
        problem: What is wrong with it; None if nothing is.
        facts: Its other properties, as JSON.
        is_intact: Whether its files are as they were written, so that a resume would choose this checkpoint.
    """

    kind: str
    path: Path
    size: int = 0
    written: float | None = None
    state: str | None = None
    problem: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    is_intact: bool = False


@dataclass(frozen=True, slots=True)
class Inventory:
    """All findings: checkpoints, oldest first; saved models by rule, best first; then others.

    Attributes:
        model_path: The folder of the training.
        findings: What is in it.
        holder: The running training; None if none runs; a text if that is unknown, with the reason.
        is_resume_known: False if a checkpoint that cannot be read might be the newest.
    """

    model_path: Path
    findings: tuple[Finding, ...]
    holder: lock.Holder | str | None
    is_resume_known: bool

    def of(self, *kinds: str) -> list[Finding]:
        """Return the findings of these kinds."""
        return [found for found in self.findings if found.kind in kinds]

    @property
    def resumed(self) -> Finding | None:
        """Checkpoint that a resume would choose: the newest that is intact, as far as was checked."""
        return next((found for found in reversed(self.of("checkpoint")) if found.is_intact), None)

    @property
    def is_well(self) -> bool:
        """True if nothing is damaged."""
        return not any(found.problem for found in self.findings)

    @property
    def size(self) -> int:
        """Total size in bytes."""
        return sum(found.size for found in self.findings)


def take_inventory(model_path: Path, names: Sequence[str], verify: bool, tell: Callable[[str], None]) -> Inventory:
    """Inspect everything in the folder of a training.

    Args:
        model_path: The folder.
        names: The names of its entries, sorted.
        verify: Whether to read every byte.
        tell: Called with the name of each checkpoint or saved model before it is inspected.
    """
    try:
        holder: lock.Holder | str | None = lock.holder_of(model_path)  # without taking the lock even for a moment
    except OSError as error:
        holder = f"{lock.LOCK} cannot be read: {error.strerror or error}"
    inspect = partial(_inspect, verify=verify, tell=tell)
    found = [*_in_checkpoints(model_path, inspect)]
    for name in names:
        place = model_path / name
        if name.startswith(_UNFINISHED):
            found.append(_leftover(place))
        elif name == FOLDER or not os.path.isdir(place):
            continue
        elif place.is_symlink():
            found.append(_beside("other", place, "a link, which is not followed"))
        elif _EARLIER.fullmatch(name):
            found.append(_beside("earlier", place, _earlier(place)))
        else:
            found += _unchanged(partial(_rule_identity, place), partial(_in_rule, place, inspect)) or []
    if isinstance(holder, lock.Holder):
        in_use = {"about": "in use: the running training is writing or deleting it"}
        found = [replace(one, facts=in_use) if one.kind == "leftover" else one for one in found]
    found.sort(key=lambda one: _KINDS.index(one.kind))  # keeps the order within each kind
    decisive = [one for one in found if one.kind == "checkpoint" and (one.is_intact or one.state == UNREADABLE)]
    is_listed = not any(one.path == model_path / FOLDER for one in found)
    is_known = is_listed and not (decisive and decisive[-1].state == UNREADABLE)
    return Inventory(model_path, tuple(found), holder, is_known)


def _in_checkpoints(model_path: Path, inspect: Callable[..., Finding | None]) -> Iterator[Finding]:
    """Yield the checkpoints, by their names, and the other entries of their folder; or what is wrong with it."""
    folder = model_path / FOLDER
    try:
        if folder.is_symlink():
            raise OSError(0, "it is a link, with which no training can start")
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return
    except OSError as error:
        yield Finding("problem", folder, problem=f"{FOLDER} cannot be used: {error.strerror}")
        return
    for one in Checkpoints(model_path).all():
        found = inspect("checkpoint", one.path, TRAINER, _checkpoint_facts)
        if found is not None:
            yield replace(found, facts={"index": one.index, "step": one.step, "epoch": found.facts.get("epoch")})
        names = [name for name in names if name != one.path.name]
    for name in names:
        if name.startswith(_UNFINISHED):
            yield _leftover(folder / name)
        elif os.path.lexists(folder / name):
            yield _beside("other", folder / name, "not the name of a checkpoint: trainings ignore it")


def _in_rule(folder: Path, inspect: Callable[..., Finding | None]) -> list[Finding]:
    """Return what a rule has saved, and what a process left there, even if nothing was saved yet."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        is_told = not isinstance(error, FileNotFoundError) and _may_be_of_rule(folder)
        return [Finding("problem", folder, problem=f"{folder.name} cannot be read: {error.strerror}")] * is_told
    models = list(_models_in(folder, names, inspect))
    begins = _UNFINISHED if models else (f"{publish.TEMPORARY}evaluation-",)
    return [*models, *(_leftover(folder / name) for name in names if name.startswith(begins))]


def _models_in(folder: Path, names: Sequence[str], inspect: Callable[..., Finding | None]) -> Iterator[Finding]:
    """Yield the models that a rule has saved, best first, and what is wrong with their list; none if no rule does."""

    def inspect_model(path: Path, rank: int | None) -> Finding | None:
        found = inspect("saving", path, DESCRIPTION, _model_facts)
        return None if found is None else replace(found, facts={"rank": rank, "about": found.facts or None})

    if INDEX not in names and (DESCRIPTION in names or _was_model(folder)):
        yield from filter(None, [inspect_model(folder, 1)])
        return
    listed, unlisted = [], UNLISTED
    try:
        listed = _best_first(folder) if INDEX in names else []
    except _ODD as error:
        unlisted = COMPLETE  # it is not known which ones are listed
        yield Finding("problem", folder, problem=f"{folder.name}/{INDEX} cannot be read: {_reason(error)}")
    for rank, name in enumerate(listed, 1):
        missing = Finding("saving", folder / name, state=MISSING, problem=f"{INDEX} lists it, but it does not exist")
        yield inspect_model(folder / name, rank) or replace(missing, facts={"rank": rank, "about": None})
    for name in sorted({name for name in names if KEPT.fullmatch(name)} - {*listed}):
        if (found := inspect_model(folder / name, None)) is not None:
            yield found if found.problem or unlisted == COMPLETE else replace(found, state=unlisted)


def _best_first(folder: Path) -> list[str]:
    names = list(dict.fromkeys(read_json(folder / INDEX, KeptList).best_first))
    if not all(map(KEPT.fullmatch, names)):
        raise ValueError("a name in it is not that of a saved model")
    return names


def _was_model(folder: Path) -> bool:
    """Return whether a manifest says that a saved model was written here."""
    try:
        return DESCRIPTION in read_json(folder / publish.MANIFEST, publish.Manifest).files
    except _ODD:
        return False


def _inspect(
    kind: str,
    path: Path,
    description: str,
    facts_in: Callable[[Path], Mapping[str, Any]],
    verify: bool,
    tell: Callable[[str], None],
) -> Finding | None:
    """Inspect a published folder; None if it does not exist, or is removed meanwhile."""

    def inspect() -> Finding:
        tell(path.name)
        state = VERIFIED if verify else COMPLETE
        facts: Mapping[str, Any] = {}
        try:
            problem = publish.folder_problem(path, read=verify)
        except OSError as error:
            problem = f"it cannot be read: {error.strerror}"
        is_intact = problem is None
        try:
            facts = facts_in(path / description)
        except _ODD as error:
            problem = problem or f"its {description} cannot be read: {_reason(error)}"
        if problem is not None:
            state = DAMAGED
        elif facts.get("schema", 0) > SCHEMA:
            state = TOO_NEW
            problem = f"it was written by a newer accmt (schema {facts['schema']}): update accmt to resume from it"
        if problem is not None and not _may_be_read(path):
            state, problem = UNREADABLE, "you have no permission to read all of it"
        return Finding(kind, path, _size_of(path), _written(path), state, problem, facts, is_intact)

    return _unchanged(partial(_identity, path), inspect)


def _reason(error: Exception) -> object:
    return getattr(error, "reason", None) or getattr(error, "strerror", None) or error


def _checkpoint_facts(path: Path) -> Mapping[str, Any]:
    """Return schema and epoch: the completed epochs, the steps done in the next one, and its length, if known."""
    schema: int = read_json(path, _Versioned).schema
    if schema > SCHEMA:
        return {"schema": schema}
    trainer = read_json(path, _Trainer)
    epoch = {"completed": trainer.position.epoch, "steps": trainer.position.step_in_epoch}
    return {"schema": schema, "epoch": {**epoch, "length": trainer.steps_per_epoch}}


def _model_facts(path: Path) -> Mapping[str, Any]:
    about = read_json(path, ModelDescription).to_json()
    return {name: value for name, value in about.items() if name != "schema"}


def _unchanged(identity: Callable[[], object], inspect: Callable[[], _T]) -> _T | None:
    """Inspect something until it does not change in between; None if it does not exist or is removed."""
    result, now = None, identity()
    for _ in range(_TRIES):
        if now is None:
            return None
        before, result = now, inspect()
        now = identity()
        if now == before:
            break
    return result


def _identity(path: Path) -> tuple[int, ...] | None:
    """Return a value that changes when a file or folder is replaced or written; None if it does not exist."""
    try:
        info = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return (error.errno or 0,)
    return info.st_dev, info.st_ino, info.st_mtime_ns


def _rule_identity(folder: Path) -> object:
    """Return a value that changes when the contents of a rule's folder are replaced, but not when models are added."""
    own = _identity(folder)
    return None if own is None else (own[:2], _identity(folder / INDEX))


def _size_of(path: Path) -> int:
    """Return the size in bytes of a file, or of all files below a folder; unreadable ones count as 0."""
    total = 0
    for file in [path, *(Path(place, name) for place, _, names in os.walk(path) for name in names)]:
        with suppress(OSError):
            info = os.lstat(file)
            total += info.st_size if stat.S_ISREG(info.st_mode) else 0
    return total


def _written(path: Path) -> float | None:
    """Return when a folder was published: its manifest is written last."""
    for place in (path / publish.MANIFEST, path):
        with suppress(OSError):
            return os.lstat(place).st_mtime
    return None


def _may_be_read(path: Path) -> bool:
    """Return whether this user may read a folder and its files: otherwise nothing is known about them."""

    def may_read(path: Path) -> bool:
        mode = os.R_OK | os.X_OK if os.path.isdir(path) else os.R_OK
        return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)

    return may_read(path) and all(may_read(entry) for entry in path.glob("*") if not entry.is_symlink())


def _may_be_of_rule(folder: Path) -> bool:
    """Return whether an unreadable folder may hold saved models: not if the rules are known and do not use it."""
    try:
        description = read_description(folder.parent)
    except (DamagedFile, OSError):
        return True
    return description is None or folder.name in [rule.folder for rule in description.rules.savings]


def _beside(kind: str, path: Path, about: str) -> Finding:
    return Finding(kind, path, _size_of(path), facts={"about": about})


def _leftover(path: Path) -> Finding:
    """Describe what a process left that died while it wrote, deleted or replaced a folder."""
    if path.name.startswith(publish.REPLACED):
        former = path.name.removeprefix(publish.REPLACED).rpartition("-")[0]
        is_replaced = os.path.lexists(path.with_name(former))
        about = "replaced: the next training deletes it" if is_replaced else f"the next training renames it to {former}"
    else:
        done = "written" if path.name.startswith(publish.TEMPORARY) else "deleted"
        about = f"half-{done}: the next training deletes it"
    return _beside("leftover", path, about)


def _earlier(folder: Path) -> str:
    """Describe an earlier training, whose checkpoints are here if only they were moved, or damaged files of this."""
    checkpoints = len([*folder.glob("checkpoint-*"), *folder.glob(f"{FOLDER}/checkpoint-*")])
    rules = len({path.parent for name in (DESCRIPTION, INDEX) for path in folder.glob(f"*/{name}")})
    parts = [f"{checkpoints} checkpoint{'s' * (checkpoints != 1)}"] * (checkpoints > 0)
    parts += [f"saved models of {rules} rule{'s' * (rules != 1)}"] * (rules > 0)
    if not parts and (files := sorted(os.listdir(folder))) and TRAINING not in files:
        return f"not a training, only what was moved aside: {', '.join(files[:12])}"
    return f"an earlier training: {', '.join(parts) or 'no checkpoints, no saved models'}"
