"""Making a checkpoint of a run, and putting a run into the state of one."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from accmt.checkpoint import contents, publish
from accmt.checkpoint.checkpoints import Checkpoints
from accmt.checkpoint.contents import Own, Parts
from accmt.checkpoint.packing import pack, unpack
from accmt.checkpoint.rng import random_state
from accmt.checkpoint.together import Failed, everywhere, on_main
from accmt.loop.run import Run
from accmt.rules import Decision
from accmt.states import TrainingState
from accmt.tracking import journal


@dataclass(slots=True)
class DiskCheckpointer:
    """Makes checkpoints on the disk.

    Attributes:
        checkpoints: The folder of checkpoints.
        parts: The live objects that are saved.
        keep: How many to keep; None for all.
    """

    checkpoints: Checkpoints
    parts: Parts
    keep: int | None
    _failed: bool = False

    def save(self, run: Run) -> None:
        """Make a checkpoint. One that cannot be made is a warning, and the training goes on until the next.

        Raises:
            Failed: It is the second in a row that could not be made.
        """
        run.state.num_checkpoints_made += 1
        try:
            self._write(run)
        except Failed as failure:
            run.state.num_checkpoints_made -= 1
            if self._failed:
                raise
            self._failed = True
            if PartialState().is_main_process:
                warnings.warn(f"no checkpoint at step {run.position.step}: {failure}", stacklevel=2)
            return
        self._failed = False
        run.checkpointed_at = run.position.step
        if run.options.monitor.checkpoint:
            run.tracker.log({"checkpoint": float(run.state.num_checkpoints_made)}, run.position.step)
        run.hooks.on_save_checkpoint()

    def _write(self, run: Run) -> None:
        state = PartialState()
        target, temporary = on_main(lambda: self._prepare(run))
        trainer = _trainer(run)

        def write() -> dict[Path, publish.FileEntry]:
            files = contents.write_own(temporary, state.process_index, _own(run))
            if state.is_main_process:
                files += contents.write_shared(temporary, self.parts, trainer)
            return publish.describe(files)

        try:
            entries = {path: entry for part in everywhere(write) for path, entry in part.items()}
            on_main(lambda: publish.publish(temporary, target, entries))
        except Failed:
            if state.is_main_process:
                shutil.rmtree(temporary, ignore_errors=True)
            raise
        try:
            on_main(lambda: self.checkpoints.prune(self.keep))
        except Failed as failure:
            run.display.warn(f"older checkpoints could not be deleted: {failure}")

    def _prepare(self, run: Run) -> tuple[Path, Path]:
        target = self.checkpoints.next(run.position.step)
        return target, publish.temporary_for(target)


def restore(run: Run, folder: Path, parts: Parts) -> tuple[list[str], list[str]]:
    """Put a run into the state of a verified checkpoint.

    Returns:
        What has changed in the rules, and what else is not as it was then, one line each.

    Raises:
        Mismatch: The checkpoint belongs to another training; nothing was touched.
    """
    trainer = contents.read_trainer(folder)
    own = contents.read_own(folder, PartialState().process_index)
    contents.load_parts(folder, parts, trainer)
    run.position.restore(trainer["position"])
    run.position.stopwatch.set(trainer["elapsed"])
    run.data.seed = trainer["data_seed"]
    changes = run.engine.restore(trainer["engine"])
    notes: list[str] = []
    _restore_state(run.state, trainer["state"])
    run.state.patience_left = run.engine.patience_left()
    run.evaluated_at = trainer["evaluated_at"]
    run.checkpointed_at = run.position.step
    run.nan_reported = set(trainer["nan_reported"])
    run.history.cut(trainer["history"])
    run.decision_log.cut(trainer["decisions"])
    run.decisions[:] = _decisions(run)
    run.resumed = True
    if own is not None:
        run.stepper.losses.restore(own.process["losses"])
        run.epoch_random = _prefixed("epoch.", own.random)
        run.resumed_random = _prefixed("now.", own.random)
        run.stepper.take_up(_prefixed("gradient.", own.random))
    if run.history.lines < trainer["history"]:
        notes.append(f"the history holds {run.history.lines} evaluations of {trainer['history']}: the rest is lost")
    processes, length = PartialState().num_processes, run.data.steps_per_epoch
    if trainer["steps_per_epoch"] != length:
        notes.append(f"an epoch had {trainer['steps_per_epoch']} steps and has {length} now: steps are counted on")
    if trainer["processes"] != processes:
        notes.append(
            f"the checkpoint was made by {trainer['processes']} process(es) and {processes} continue: "
            f"from the same sample on, but not bit by bit"
        )
    return changes, notes


def tracker_state(folder: Path) -> dict[str, Any]:
    """What the tracker of a checkpoint needs to continue its run."""
    state: dict[str, Any] = contents.read_trainer(folder)["tracker"]
    return state


def _trainer(run: Run) -> dict[str, Any]:
    return {
        "position": run.position.to_json(),
        "elapsed": run.position.stopwatch.elapsed(),
        "engine": run.engine.state(),
        "state": pack(asdict(run.state))[0],
        "evaluated_at": run.evaluated_at,
        "nan_reported": sorted(run.nan_reported),
        "history": run.history.lines,
        "decisions": run.decision_log.lines,
        "tracker": run.tracker.state(),
        "data_seed": run.data.seed,
        "processes": PartialState().num_processes,
        "steps_per_epoch": run.data.steps_per_epoch,
        "versions": {"torch": str(torch.__version__)},
    }


def _own(run: Run) -> Own:
    now = random_state(run.device)
    epoch = {} if run.position.ended_epoch else run.epoch_random
    random = {f"now.{name}": value for name, value in now.items()}
    random |= {f"epoch.{name}": value for name, value in epoch.items()}
    random |= {f"gradient.{name}": value for name, value in run.stepper.gradients().items()}
    return Own({"losses": run.stepper.losses.to_json()}, random)


def _restore_state(state: TrainingState, packed: Any) -> None:
    data: Mapping[str, Any] = unpack(packed, {})
    for entry in fields(state):
        setattr(state, entry.name, data[entry.name])
    state.finished = False


def _decisions(run: Run) -> list[Decision]:
    # Another process may be cutting the file at this moment: count the lines here as well.
    return [Decision.from_json(entry) for entry in journal.read(run.decision_log.path)[: run.decision_log.lines]]


def _prefixed(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
