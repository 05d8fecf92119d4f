"""One run of a rehearsal, in its own process: the training of the script, cut short, in a temporary folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from rich.filesize import decimal
from torch import Tensor

from accmt.callbacks import Callback
from accmt.checkpoint.checkpoints import Checkpoints
from accmt.data.digest import digest_of
from accmt.data.validation import ValidationData
from accmt.display.display import Display
from accmt.distributed.collective import everywhere, from_main
from accmt.distributed.signals import Terminated
from accmt.distributed.strategy import whole_weights
from accmt.files.json_io import write_json
from accmt.loop.progress import TrainingPosition
from accmt.loop.run import Run
from accmt.notices import warn
from accmt.rehearsal.comparison import BATCHES, compare_trainings
from accmt.rehearsal.findings import Rehearsal, times
from accmt.rehearsal.runs import KILLED, RESUMED, WHOLE, Role
from accmt.rules import CadenceRule, KeptModel, Outcome, SavingRule, Verdict
from accmt.rules.store import dataset_name
from accmt.setup.fit import fit
from accmt.setup.options import Options
from accmt.setup.plan import Plan

_STEPS, _CHECKPOINT, _BATCHES = 10, 6, 2


def require_fork() -> None:
    """Check that runs can be made in forks of this process.

    Raises:
        RuntimeError: They cannot.
    """
    if not hasattr(os, "fork"):
        raise RuntimeError("a rehearsal kills a forked process by SIGKILL, and this system has neither")
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    if not on_cpu or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        what = "one of several processes" if on_cpu else "a process that uses a GPU"
        raise RuntimeError(f"{what} cannot be forked for a rehearsal: call `accmt rehearse SCRIPT`, for the script")


def perform(
    role: Role,
    options: Options,
    model_path: Path,
    make_plan: Callable[[Options, Path], Plan],
    attach: Callable[[Run], None],
) -> None:
    """Make a run of a training with these options and this folder; the run that is to be killed does not return.

    `make_plan` plans it with other options, in another folder; `attach` makes it visible to the user.

    Raises:
        RuntimeError: Several machines train, or SIGTERM came.
    """
    count = os.environ.get("WORLD_SIZE")
    if os.environ.get("LOCAL_WORLD_SIZE", count) != count:
        raise RuntimeError("a training on several machines cannot be rehearsed: rehearse it on one of them")
    place = role.place(model_path)
    probe = _Probe(role.run, place, options.checkpoint.keep)
    resume = None if role.run == WHOLE else True
    checkpoint = replace(options.checkpoint, keep=None, resume=resume, on_exception=False)
    tracking = replace(options.tracking, trackers={})
    changed = replace(options, callbacks=(*options.callbacks, probe), checkpoint=checkpoint, tracking=tracking)

    def attach_both(run: Run) -> None:
        attach(run)
        probe.run = run

    planned = partial(make_plan, changed, probe.folder)
    ended = fit(lambda: probe.cut_short(planned()), attach_both, probe.warn, destroys=False, seed=options.seed)
    if isinstance(ended, Terminated):
        raise RuntimeError("SIGTERM ended the rehearsal")
    whole = probe.findings() if role.run == WHOLE else None
    if PartialState().is_main_process and (found := whole or role.findings()) is not None:
        differing = compare_trainings(place / WHOLE, probe.folder, probe.steps) if role.run == RESUMED else None
        write_json(role.found, replace(found, differences=differing).to_json())


class FirstBatches(ValidationData):
    """The first batches of validation data; `seconds` is the estimated time for all of them, None if unknown."""

    def __init__(self, whole: ValidationData) -> None:
        vars(self).update(vars(whole))
        self._whole, self._ends = whole.length, list[float]()
        self._most = _BATCHES if self._most is None else min(_BATCHES, self._most)

    @property
    def seconds(self) -> float | None:
        whole, ends = self._whole, self._ends
        return None if whole is None else ends[1] - ends[0] + (ends[-1] - ends[-2]) * (whole - 1) if whole else 0.0

    def __iter__(self) -> Iterator[Any]:
        self._ends = [_now()]
        for batch in super().__iter__():
            yield batch
            self._ends.append(_now())


class _Probe(Callback, Display):
    """Follower of a rehearsed training: measures it, records what it reads and computes, kills its process."""

    run: Run
    plan: Plan

    def __init__(self, kind: str, place: Path, keep: int | None) -> None:
        super().__init__()
        self.folder, self.steps = place / (WHOLE if kind == WHOLE else RESUMED), _STEPS
        self._kind, self._checkpoint, self._not_tried = kind, _CHECKPOINT, ""
        self._warnings: list[str] = []
        self._begun: dict[int, float] = {}  # steps done -> when the next batch was there
        self._ended = 0.0  # the first step
        self._seen: dict[str, dict[str, str]] = {}  # batch -> its data and its loss
        self._costs: dict[str, tuple[float | None, int, int | None]] = {}
        self._keep, self._disk, self._free = keep, 0, shutil.disk_usage(place.parent).free

    def warn(self, text: str) -> None:
        self._warnings += [] if text in self._warnings else [text]

    def cut_short(self, plan: Plan) -> Plan:
        """Return a plan of few steps and validation batches, in which nothing stops the training."""
        self.plan, self.steps = plan, min(_STEPS, plan.position.total_steps or _STEPS)
        self._checkpoint = max(1, self.steps * _CHECKPOINT // _STEPS)
        self._not_tried = "" if self.steps > 1 else "the training has a single step"
        self._not_tried = self._not_tried if plan.options.checkpoint.enabled else "the training makes no checkpoints"
        every = CadenceRule.parse(f"{self._checkpoint} steps")
        savings = tuple(replace(rule, patience=None) for rule in plan.rules.savings)
        evaluate, checkpoint = plan.rules.evaluate and every, plan.rules.checkpoint and every
        rules = replace(plan.rules, savings=savings, stop_when=(), evaluate=evaluate, checkpoint=checkpoint)
        options = replace(plan.options, saving=replace(plan.options.saving, restored=False))
        position = TrainingPosition(plan.data, plan.options.hps.epochs, self.steps)
        loaders = {key: FirstBatches(loader) for key, loader in plan.loaders.items()}
        return replace(
            plan, options=options, rules=rules, position=position, loaders=loaders, held_out={}, display=self
        )

    def on_before_training_step(self, batch: Any) -> None:
        step = self.run.position.step
        if step not in self._begun:
            self._begun[step] = _now()
            self._between_steps(step)
        with suppress(ValueError):  # a batch of other objects
            self._record("data", lambda: digest_of(batch))

    def on_before_backward(self, loss: Tensor) -> None:
        self._record("loss", lambda: repr(loss.item()))

    def on_after_optimizer_step(self, optimizer: Any) -> None:
        self._ended = self._ended or _now()

    def on_fit_end(self) -> None:
        file = self.folder / BATCHES.format(PartialState().process_index)
        everywhere(lambda: file.write_text(json.dumps(self._seen), encoding="utf-8"))
        if self._kind == WHOLE:
            self._find_costs()

    def findings(self) -> Rehearsal:
        """Return the findings of the training from scratch."""
        warnings = [f"warning: {text}" for text in self._warnings]
        return Rehearsal(self._costs, [*self._rooms(), *warnings], self._not_tried)

    def _find_costs(self) -> None:
        """Find the costs of everything. Save a model for each rule, and a checkpoint, once more."""
        run, rules, length, each = self.run, self.plan.rules, self.plan.facts.length, self._seconds_per_step()
        evaluations = times(rules.evaluate or CadenceRule.parse("epoch"), length, each, None)
        self._costs["step"] = each, 0, length.total_steps
        for key, loader in run.evaluation.loaders.items():
            assert isinstance(loader, FirstBatches)
            self._costs[f"evaluation on {dataset_name(key, run.evaluation.loaders)}"] = loader.seconds, 0, evaluations
        for rule in rules.savings if run.savings is not None else ():
            began = _now()
            self._save(rule)
            seconds, size = _now() - began, _size(self.folder / rule.folder)
            self._costs[f"save {rule.name}"] = seconds, size, evaluations
            self._disk += size * (rule.keep + 1)  # a new one is complete before an old one is deleted
        if rules.checkpoint is not None:
            began = _now()
            run.checkpoint()
            seconds = _now() - began
            run.finish_checkpoint()
            size = _size(Checkpoints(self.folder).all()[-1].path)
            number = times(rules.checkpoint, length, each, evaluations)
            self._costs["checkpoint"] = seconds, size, number
            kept = min((count for count in (self._keep, number) if count is not None), default=None)
            self._disk += size * (1 + (kept or 1))
            if kept is None:
                warn("how many checkpoints will be kept is unknown: the disk space is for one of them")

    def _rooms(self) -> Iterator[str]:
        import resource  # which Windows lacks

        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        taken = torch.accelerator.max_memory_allocated() if PartialState().device.type == "cuda" else 0
        main, device = (max(peaks) for peaks in zip(*everywhere(lambda: (memory, taken)), strict=True))
        on_device = f", {decimal(device)} on its device" if device else ""
        yield f"peak memory of a process: {decimal(main)}{on_device}"
        yield f"disk: checkpoints and saved models need {decimal(self._disk)}, {decimal(self._free)} are free"
        if self._disk > self._free:
            yield "warning: the disk has too little free space"

    def _between_steps(self, step: int) -> None:
        """Do what a rehearsal does between two steps: copy what a process killed now would leave, or be killed."""
        if self._not_tried:
            return
        if self._kind == WHOLE and step == self._checkpoint:
            self.run.finish_checkpoint()
            from_main(lambda: shutil.copytree(self.folder, self.folder.with_name(RESUMED)))
        if self._kind == KILLED and step == min(self._checkpoint + 2, self.steps - 1):
            self.run.finish_checkpoint()
            self.module.accelerator.wait_for_everyone()
            os.kill(os.getpid(), signal.SIGKILL)

    def _record(self, what: str, value: Callable[[], str]) -> None:
        step, batch = self.run.position.step, self.run.state.train_step
        if step >= self._checkpoint:
            self._seen.setdefault(f"step {step + 1}, batch {batch + 1} of its epoch", {})[what] = value()

    def _seconds_per_step(self) -> float | None:
        """Return the mean of the steps between the first one and the checkpoint, or the time of the first one."""
        last = self._checkpoint - 1
        if last > 1:
            return (self._begun[last] - self._begun[1]) / (last - 1)
        return self._ended - self._begun[0] if self._ended else None

    def _save(self, rule: SavingRule) -> None:
        """Save a model for a rule, whatever the rule decided."""
        run, parts, savings = self.run, self.run.checkpointer.model, self.run.savings
        assert savings is not None
        nothing = (float("nan"),) * len(rule.saving.ranking.objectives)
        kept = KeptModel(nothing, run.position.evaluation + 1, run.position.step)
        verdict = Verdict(rule.name, nothing, None, Outcome.SAVED, "it is rehearsed", kept=(kept,))
        weights = whole_weights(parts.model, self.module.accelerator)
        beside = parts.kept.trained(run.stepper.held())
        from_main(lambda: savings.save(rule, verdict, weights, run.position.epoch, beside))


def _now() -> float:
    """Return the time in seconds at which the device has done all that it was given."""
    if PartialState().device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
