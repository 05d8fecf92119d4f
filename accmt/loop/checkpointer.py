"""Making checkpoints of a run, and restoring a run from one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from functools import partial
from itertools import chain
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from accelerate import PartialState

from accmt.checkpoint import format as contents
from accmt.checkpoint import publish
from accmt.checkpoint import state_types as written
from accmt.checkpoint.checkpoints import Checkpoints
from accmt.checkpoint.disk_space import require_space
from accmt.checkpoint.format import Own, Parts
from accmt.checkpoint.host_copy import Staging
from accmt.checkpoint.rng import check_random_state, random_state
from accmt.checkpoint.serialization import pack, unpack
from accmt.checkpoint.tensor_files import Files, size_of, write_files
from accmt.distributed.collective import Failed, everywhere, on_main
from accmt.distributed.process_group import side_group
from accmt.loop.changes import compare, finished_on, other_data
from accmt.loop.progress import Position
from accmt.loop.run import Run
from accmt.notices import warn
from accmt.rules import Decision
from accmt.states import TrainingState
from accmt.tracking import journal
from accmt.tracking.tracker import check_state


class DiskCheckpointer:
    """Maker of checkpoints on disk.

    When writing in the background, the loop waits only until the state is copied. A thread writes one checkpoint at a
    time; its success or failure is reported at the next step, checkpoint or end of the training.

    Args:
        checkpoints: The folder of checkpoints.
        parts: The live objects that are saved.
        keep: Number of checkpoints to keep; None for all.
        in_background: Write while training continues.
    """

    def __init__(self, checkpoints: Checkpoints, parts: Parts, keep: int | None, *, in_background: bool) -> None:
        self._checkpoints = checkpoints
        self._parts = parts
        self._keep = keep
        self._staging = Staging() if in_background else None
        self._group = side_group() if in_background else None
        self._writing: _Writing | None = None
        self._begun = 0
        self._failed = False

    def save(self, run: Run) -> None:
        """Make a checkpoint, once the one being written is complete.

        Raises:
            Failed: Two checkpoints in a row could not be made.
        """
        self.finish(run)
        run.state.num_checkpoints_made += 1
        writing = _Writing(run.position.step, run.state.num_checkpoints_made)
        files: dict[str, Any] = {}
        try:
            everywhere(lambda: files.update(self._collect(run)))
            target, temporary = on_main(lambda: self._prepare(run, size_of(files)))
        except Failed as failure:
            self._conclude(run, writing, failure)
            return
        if self._staging is None:
            self._write(writing, files, target, temporary)
            self._conclude(run, writing, writing.failure)
            return
        copies = self._staging.copy(files)
        write = partial(self._write, writing, copies, target, temporary)
        writing.thread = Thread(target=write, name="checkpoint", daemon=True)
        writing.thread.start()
        self._writing = writing
        self._begun += 1

    @property
    def has_news(self) -> bool:
        """True if a background write has finished since the last `finish`."""
        return self._writing is not None and not self.is_writing

    @property
    def is_writing(self) -> bool:
        """True while a checkpoint is being written in the background."""
        writing = self._writing
        return writing is not None and writing.thread is not None and writing.thread.is_alive()

    @property
    def ended(self) -> int:
        """Number of background writes that have finished."""
        return self._begun - self.is_writing

    def finish(self, run: Run) -> None:
        """Wait for the background write to complete.

        Raises:
            Failed: Two checkpoints in a row could not be made.
        """
        writing = self._writing
        if writing is None or writing.thread is None:
            return
        writing.thread.join()
        self._writing = None
        self._conclude(run, writing, writing.failure)

    def close(self) -> None:
        """Release buffers and group, unless a thread still writes (not waited for after a second Ctrl-C)."""
        if not self.is_writing:
            self._staging = self._group = None

    def _collect(self, run: Run) -> Files:
        """Collect the files that this process writes."""
        rank = PartialState().process_index
        own, trainer = contents.own_files(rank, _own(run)), _trainer(run)
        return {**own, **contents.state_files(rank, self._parts, trainer)}

    def _prepare(self, run: Run, size: int) -> tuple[Path, Path]:
        target = self._checkpoints.next(run.position.step)
        target.parent.mkdir(parents=True, exist_ok=True)
        require_space(target.parent, size)
        run.flush_journals()  # the checkpoint records their number of lines
        return target, publish.temporary_for(target)

    def _write(self, writing: _Writing, files: Files, target: Path, temporary: Path) -> None:
        """Write and publish together with the other processes, and record any failure."""

        def write() -> dict[Path, publish.FileEntry]:
            if self._staging is not None:
                self._staging.wait()
            engine = self._parts.engine
            return publish.describe(chain(write_files(temporary, files), engine.write(temporary) if engine else ()))

        try:
            try:
                entries = {path: entry for part in everywhere(write, self._group) for path, entry in part.items()}
                on_main(lambda: publish.publish(temporary, target, entries), self._group)
            except BaseException:
                if PartialState().is_main_process:
                    shutil.rmtree(temporary, ignore_errors=True)
                raise
        except Exception as error:
            writing.failure = error
            return
        try:
            on_main(lambda: self._checkpoints.prune(self._keep), self._group)
        except Failed as failure:
            writing.warning = f"older checkpoints could not be deleted: {failure}"

    def _conclude(self, run: Run, writing: _Writing, failure: Exception | None) -> None:
        """Report the outcome of a checkpoint. One failure is a warning, and training continues until the next
        checkpoint; two in a row are an error."""
        if failure is not None:
            run.state.num_checkpoints_made -= 1
            if self._failed or not isinstance(failure, Failed):
                raise failure
            self._failed = True
            warn(f"no checkpoint at step {writing.step}: {failure}")
            return
        self._failed = False
        run.checkpointed_at = writing.step
        if writing.warning:
            warn(writing.warning)
        if run.options.monitor.checkpoint:
            run.tracker.log({"checkpoint": float(writing.number)}, writing.step)
        run.hooks.on_save_checkpoint()


@dataclass(slots=True)
class _Writing:
    """A checkpoint being written: its step, its number, and the outcome."""

    step: int
    number: int
    thread: Thread | None = None
    failure: Exception | None = None
    warning: str = ""


def restore(run: Run, folder: Path) -> tuple[list[str], list[str]]:
    """Restore a run from a verified checkpoint.

    Returns:
        Changes in the rules, and other differences from the checkpoint, one line each.

    Raises:
        Mismatch: The checkpoint belongs to another training; nothing was changed.
        ConfigError: It is the end of a training on other data, or the current settings cannot continue from it.
        NoCheckpoint: Its contents are not those of a checkpoint; neither model nor folder was changed.
    """
    with contents.understood(folder):
        trainer = contents.read_trainer(folder)
        _check(trainer)
        own = contents.read_own(folder, PartialState().process_index)
        changes, notes = _take_up(run, trainer, own, contents.read_own(folder, 0))
        notes += compare(run, trainer)
        with run.schedule.applied():
            notes += contents.load_parts(folder, run.parts, trainer)
    run.history.cut(trainer["history"])
    run.decision_log.cut(trainer["decisions"])
    run.decisions[:] = _decisions(run)
    run.resumed = True
    return changes, [*notes, *_notes(run, trainer)]


def check_data(record: Mapping[str, Any], position: Position, folder: Path) -> None:
    """Refuse a checkpoint of a finished training on other data, before anything is sent to a tracker.

    Raises:
        ConfigError: It is such a checkpoint.
        Mismatch, NoCheckpoint: Training cannot continue from it.
    """
    with contents.understood(folder):
        trainer = contents.read_trainer(folder)
        _check(trainer)
        position.restore(trainer["position"], trainer["processes"])
        other = other_data(record, trainer)
    if other and position.is_finished:
        raise finished_on(other)


def tracker_state(folder: Path) -> dict[str, Any]:
    """Return the state that the tracker of a checkpoint needs to continue its run.

    Raises:
        NoCheckpoint: The contents are not those of a checkpoint.
    """
    with contents.understood(folder):
        trainer = contents.read_trainer(folder)
        _check(trainer)
    state: dict[str, Any] = trainer["tracker"]
    return state


def _check(trainer: Mapping[str, Any]) -> None:
    """Check that the state shared by all processes has the types that `_trainer` writes.

    Raises:
        ValueError: Something is missing or has another type.
    """
    written.check_written(written.TrainerFile, trainer)
    check_state(trainer["tracker"])


def _take_up_objects(run: Run, own: Own | None, first: Own | None) -> None:
    """Restore the states of callbacks and other objects on this process; a new process uses those of the first."""
    one = own or first
    if run.parts.kept is not None and one is not None and "objects" in one.process:
        run.parts.kept.restore_own(unpack(one.process["objects"], _prefixed("object.", one.random)))


def _take_up(run: Run, trainer: Mapping[str, Any], own: Own | None, first: Own | None) -> tuple[list[str], list[str]]:
    """Restore what a run keeps in memory, and return what has changed in the rules and in the data."""
    notes: list[str] = []
    for one in (own, first):
        if one is not None:
            written.check_written(written.Process, one.process)
    run.position.restore(trainer["position"], trainer["processes"])
    run.position.stopwatch.set(trainer["elapsed"])
    run.is_settled = trainer.get("settled", True)
    run.data.seed = trainer["data_seed"]
    changes = run.engine.restore(trainer["engine"])
    _restore_state(run.state, trainer["state"])
    run.state.patience_left = run.engine.patience_left()
    run.checkpointed_at = run.position.step
    run.nan_reported = set(trainer["nan_reported"])
    if own is not None:
        run.stepper.losses.restore(own.process["losses"], run.data.batch_size)
        run.training_metrics.restore(own.process.get("training", {}))
        run.epoch_random = _prefixed("epoch.", own.random)
        run.resumed_random = _prefixed("now.", own.random)
        check_random_state(run.resumed_random, run.device)
        if run.epoch_random:
            check_random_state(run.epoch_random, run.device)
        run.stepper.take_up(_prefixed("gradient.", own.random))
        if own.process["data"] is not None:
            data = unpack(own.process["data"], _prefixed("data.", own.random))
            notes += run.data.restore(data["reading"], moved=run.position.moved)
            run.generators.restore(data["generators"])
    _take_up_objects(run, own, first)
    return changes, notes


def _notes(run: Run, trainer: Mapping[str, Any]) -> list[str]:
    """Describe what differs from the time of the checkpoint, one line each."""
    notes: list[str] = []
    if run.history.lines < trainer["history"]:
        notes.append(f"the history holds {run.history.lines} evaluations of {trainer['history']}: the rest is lost")
    if len(run.decisions) < trainer["decisions"]:
        notes.append(f"{len(run.decisions)} of {trainer['decisions']} decisions can be read: the rest is lost")
    processes, length = PartialState().num_processes, run.data.steps_per_epoch
    if trainer["steps_per_epoch"] != length:
        notes.append(
            f"an epoch had {trainer['steps_per_epoch']} steps and has {length} now: the count of steps continues"
        )
    if trainer["processes"] != processes:
        notes.append(
            f"the number of processes was {trainer['processes']} and is {processes}: "
            f"the training continues from the same sample, but not bit by bit"
        )
    return notes


def _trainer(run: Run) -> dict[str, Any]:
    return {
        "position": run.position.to_json() if run.is_settled else run.position.counters(),
        "settled": run.is_settled,
        "elapsed": run.position.stopwatch.elapsed(),
        "engine": run.engine.state(),
        "state": pack(asdict(run.state))[0],
        "nan_reported": sorted(run.nan_reported),
        "history": run.history.lines,
        "decisions": run.decision_log.lines,
        "tracker": run.tracker.state(),
        "data_seed": run.data.seed,
        "processes": PartialState().num_processes,
        "steps_per_epoch": run.data.steps_per_epoch,
        "configuration": {**run.record, **run.schedule.record()},
        "versions": {"torch": str(torch.__version__)},
    }


def _own(run: Run) -> Own:
    now = random_state(run.device)
    epoch = {} if run.position.ended_epoch else run.epoch_random
    random = {f"now.{name}": value for name, value in now.items()}
    random |= {f"epoch.{name}": value for name, value in epoch.items()}
    random |= {f"gradient.{name}": value for name, value in run.stepper.gradients().items()}
    data, tensors = _packed(run)
    random |= {f"data.{name}": value for name, value in tensors.items()}
    objects, tensors = pack({} if run.parts.kept is None else run.parts.kept.own())
    random |= {f"object.{name}": value for name, value in tensors.items()}
    losses, training = run.stepper.losses.to_json(), run.training_metrics.to_json()
    return Own({"losses": losses, "training": training, "data": data, "objects": objects}, random)


def _packed(run: Run) -> tuple[Any, dict[str, torch.Tensor]]:
    """Pack the state of the training data and of generators kept by objects; None, with one warning, if it is not plain
    data."""
    try:
        return pack({"reading": run.data.state(), "generators": run.generators.states()})
    except TypeError as error:
        if not run.data_state_refused:
            run.data_state_refused = True
            warn(f"the state of the training data {error}: a continued training will not be exactly the same")
        return None, {}


def _restore_state(state: TrainingState, packed: Any) -> None:
    data: Mapping[str, Any] = unpack(packed, {})
    for entry in fields(state):
        value = data[entry.name]
        if type(value) is not type(getattr(state, entry.name)):
            raise ValueError(f"{entry.name} is {value!r:.100}")
        setattr(state, entry.name, value)
    state.finished = False


def _decisions(run: Run) -> list[Decision]:
    """Read the decisions up to the checkpoint, skipping lines damaged since: nothing is decided from their content."""
    decisions: list[Decision] = []
    path = run.decision_log.path
    # Another process may be truncating the file at this moment, so count the lines here as well.
    for line in (journal.read_lines(path) if path.is_file() else [])[: run.decision_log.lines]:
        with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
            decisions.append(Decision.from_json(json.loads(line)))
    return decisions


def _prefixed(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
