"""Making checkpoints of a training's stateful parts, and restoring the parts from one.

It knows nothing else of the training: what follows a checkpoint, such as hooks and warnings, is up to its caller,
which gets a `CheckpointResult`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from threading import Thread
from typing import Any

from accelerate import PartialState

from accmt.checkpoint import format as contents
from accmt.checkpoint import publish
from accmt.checkpoint.checkpoints import Checkpoint, Checkpoints
from accmt.checkpoint.disk_space import require_space
from accmt.checkpoint.format import ModelParts, ModelState, understood
from accmt.checkpoint.host_copy import Staging
from accmt.checkpoint.stateful import StatefulParts
from accmt.checkpoint.tensor_files import Files, size_of, write_files
from accmt.distributed.collective import Failed, everywhere, from_each, on_main
from accmt.distributed.process_group import side_group

_FOR_NEW_PROCESSES = ("objects",)
"""Parts that a process copies from the first one if the checkpoint, of fewer processes, has none for it."""


@dataclass(slots=True)
class CheckpointResult:
    """Outcome of making a checkpoint.

    Attributes:
        step: Its step.
        failure: Why it could not be made; None if it was made.
        warning: What failed besides, such as deleting older ones; empty if nothing.
        ends_training: The failure is the second in a row, or one that must not be ignored.
    """

    step: int
    failure: Exception | None = None
    warning: str = ""
    ends_training: bool = False


@dataclass(frozen=True, slots=True)
class Saved:
    """Checkpoint that was read, and from which every part can be restored.

    Attributes:
        checkpoint: The checkpoint.
        model: The state of the model.
        shared, ranked: Name -> state of a part.
    """

    checkpoint: Checkpoint
    model: ModelState
    shared: Mapping[str, Any]
    ranked: Mapping[str, Any]


class Checkpointer:
    """Maker and reader of checkpoints.

    When writing in the background, the caller waits only until the state is copied. A thread writes one checkpoint at a
    time; its outcome is available from `finish`.

    Args:
        checkpoints: The folder of checkpoints.
        model: The model, and what is saved with it.
        parts: The other parts.
        keep: Number of checkpoints to keep; None for all.
        in_background: Write while training continues.

    Attributes:
        model, parts: What is saved and restored.
        last_step: The step of the newest checkpoint that was made or restored; None if there is none.
        resumed_from: The step of the checkpoint that was restored; None for a training from scratch.
    """

    writes = True
    """Checkpoints are made; otherwise they are only read."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        model: ModelParts,
        parts: StatefulParts,
        keep: int | None,
        *,
        in_background: bool,
    ) -> None:
        self.model = model
        self.parts = parts
        self.last_step: int | None = None
        self.resumed_from: int | None = None
        self._checkpoints = checkpoints
        self._keep = keep
        self._staging = Staging() if in_background else None
        self._group = side_group() if in_background else None
        self._writing: tuple[CheckpointResult, Thread] | None = None
        self._begun = 0
        self._failed = False

    def save(self, step: int) -> CheckpointResult | None:
        """Make a checkpoint. No other one may be in progress: call `finish` first.

        Returns:
            The outcome; None if the checkpoint is being written in the background.
        """
        assert self._writing is None
        outcome = CheckpointResult(step)
        files: dict[str, Any] = {}
        try:
            everywhere(lambda: files.update(self._collect()))
            target, temporary = on_main(lambda: self._prepare(step, size_of(files)))
        except Failed as failure:
            outcome.failure = failure
            return self._concluded(outcome)
        if self._staging is None:
            self._write(outcome, files, target, temporary)
            return self._concluded(outcome)
        write = partial(self._write, outcome, self._staging.copy(files), target, temporary)
        thread = Thread(target=write, name="checkpoint", daemon=True)
        thread.start()
        self._writing = outcome, thread
        self._begun += 1
        return None

    @property
    def has_news(self) -> bool:
        """True if a background write has finished since the last `finish`."""
        return self._writing is not None and not self.is_writing

    @property
    def is_writing(self) -> bool:
        """True while a checkpoint is being written in the background."""
        return self._writing is not None and self._writing[1].is_alive()

    @property
    def ended(self) -> int:
        """Number of background writes that have finished."""
        return self._begun - self.is_writing

    def finish(self) -> CheckpointResult | None:
        """Wait for the background write to complete, and return its outcome; None if there was none."""
        if self._writing is None:
            return None
        outcome, thread = self._writing
        thread.join()
        self._writing = None
        return self._concluded(outcome)

    def close(self) -> None:
        """Release buffers and group, unless a thread still writes (not waited for after a second Ctrl-C)."""
        if not self.is_writing:
            self._staging = self._group = None

    def read(self, checkpoint: Checkpoint) -> Saved:
        """Read a verified checkpoint, and check that every part can be restored from it; nothing is changed.

        Raises:
            Mismatch: The checkpoint belongs to another training.
            NoCheckpoint: Its contents are not those of a checkpoint.
            Failed: One of these, on another process.
        """
        found: list[Saved] = []
        from_each(lambda: found.append(self._read(checkpoint)))
        return found[0]

    def _read(self, checkpoint: Checkpoint) -> Saved:
        folder, rank = checkpoint.path, PartialState().process_index
        with understood(folder):
            trainer = contents.read_trainer(folder)
            written, own = contents.shared_states(trainer), contents.read_ranked(folder, rank)
            names = self.parts.ranked if own is not None else _FOR_NEW_PROCESSES
            own = contents.read_ranked(folder, 0) if own is None else own
            shared, ranked = _states(written, self.parts.shared), _states(own or {}, names)
            for parts, states in ((self.parts.shared, shared), (self.parts.ranked, ranked)):
                for name, state in states.items():
                    parts[name].check(state)
            return Saved(checkpoint, contents.read_model(folder, self.model, trainer), shared, ranked)

    def load(self, saved: Saved) -> dict[str, Sequence[str]]:
        """Restore every part.

        Returns:
            Name of a part, or "model" -> what differs from the time of the checkpoint, one line each.

        Raises:
            NoCheckpoint: The optimizer nevertheless rejected its state; neither model nor folder was changed.
        """
        notes: dict[str, Sequence[str]] = {}
        with understood(saved.checkpoint.path):
            contents.load_model(self.model, saved.model)  # first: an optimizer can still reject a state
            for parts, states in ((self.parts.shared, saved.shared), (self.parts.ranked, saved.ranked)):
                notes |= {name: parts[name].load_state_dict(state) for name, state in states.items()}
        self.last_step = self.resumed_from = saved.checkpoint.step
        return {**notes, "model": saved.model.notes}

    def _collect(self) -> Files:
        """Collect the files that this process writes."""
        rank = PartialState().process_index
        shared = {name: part.state_dict() for name, part in self.parts.shared.items()}
        ranked = {name: part.state_dict() for name, part in self.parts.ranked.items()}
        return {**contents.ranked_files(rank, ranked), **contents.shared_files(rank, self.model, shared)}

    def _prepare(self, step: int, size: int) -> tuple[Path, Path]:
        target = self._checkpoints.next(step)
        target.parent.mkdir(parents=True, exist_ok=True)
        require_space(target.parent, size)
        return target, publish.temporary_for(target)

    def _write(self, outcome: CheckpointResult, files: Files, target: Path, temporary: Path) -> None:
        """Write and publish together with the other processes, and record any failure."""

        # The main process flushes its files together with the manifest.
        flushes: list[Future[None]] | None = [] if PartialState().is_main_process else None

        def write() -> dict[Path, publish.FileEntry]:
            if self._staging is not None:
                self._staging.wait()
            engine = self.model.engine
            written = chain(write_files(temporary, files), engine.write(temporary) if engine else ())
            return publish.describe(written, flushes)

        try:
            try:
                entries = {path: entry for part in everywhere(write, self._group) for path, entry in part.items()}
                on_main(lambda: publish.publish(temporary, target, entries, flushes or ()), self._group)
            except BaseException:
                if PartialState().is_main_process:
                    shutil.rmtree(temporary, ignore_errors=True)
                raise
        except Exception as error:
            outcome.failure = error
            return
        try:
            on_main(lambda: self._checkpoints.prune(self._keep), self._group)
        except Failed as failure:
            outcome.warning = f"older checkpoints could not be deleted: {failure}"

    def _concluded(self, outcome: CheckpointResult) -> CheckpointResult:
        """Remember an outcome: one failure can be followed by a success, two in a row are an error."""
        if outcome.failure is None:
            self.last_step = outcome.step
        else:
            outcome.ends_training = self._failed or not isinstance(outcome.failure, Failed)
        self._failed = outcome.failure is not None
        return outcome


def _states(written: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return the states of parts.

    Raises:
        ValueError: One is missing.
    """
    for name in names:
        if name not in written:
            raise ValueError(f"{name} is missing")
    return {name: written[name] for name in names}


class CheckpointReader(Checkpointer):
    """Reader of checkpoints, for a training that makes none itself."""

    writes = False

    def save(self, step: int) -> CheckpointResult | None:
        """Do nothing."""
