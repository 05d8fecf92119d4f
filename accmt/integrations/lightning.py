"""Rules in the Trainer of Lightning.

    rules = Rules("model", "best_accuracy@dev", patience=3, metrics={"accuracy": "max"}, datasets=["dev", "ood"])
    trainer = Trainer(callbacks=[rules], ...)
    trainer.fit(module, train, [dev, ood])
    trainer.test(module, test, ckpt_path="best")

Lightning trains and evaluates. The rules choose the models that are saved, write checkpoints to resume from, and stop.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.strategies import DeepSpeedStrategy

from accmt.checkpoint.saved_models import SavedModel
from accmt.config.errors import Problem, raise_problems
from accmt.integrations import loop, processes
from accmt.integrations.reported import Names
from accmt.notices import warn
from accmt.rules import SavingRule, Stop
from accmt.rules.errors import listed
from accmt.rules.store import ONLY_DATASET
from accmt.tracebacks import concise

MODEL = "model.ckpt"
_WRITTEN = ".writing.ckpt"
_LAST = re.compile(r"step-(\d+)\.ckpt")
_LOADER = "/dataloader_idx_"
_HOW = "validation_step has to log it: self.log(...), with sync_dist=True if there are several processes"


class Rules(Checkpoint):  # type: ignore[misc]  # Lightning is not checked here
    """A callback that decides which models are saved, when to write a checkpoint, and when to stop.

    A saved model is `model.ckpt` in the folder of its rule, as Lightning writes it with `weights_only=True`.

    Args:
        model_path: The folder for the journals and for the models that rules save.
        save: Saving rules, as texts or `accmt.rules.SavingRule`; by default `best_valid_loss`.
        stop_when: Conditions that stop the training.
        checkpoint_every: How often to write a checkpoint of the whole training, of which the newest is kept.
        patience: Evaluations without improvement after which to stop: of all rules, or by the name of a rule.
        metrics: Metric -> "max" or "min", or ("max", ["dev"]) if not all datasets have it. `valid_loss` is known.
        datasets: The names of the validation loaders, in their order; None if there is one, [] if there is none.
        held_out: The names of further loaders, after these, for reporting only: no rule can use them.
        config: A YAML file with the section `rules`; arguments replace its entries.
        names: Logged name -> name in `metrics`. The prefixes `val_` and `val/` need none; `val_loss` is `valid_loss`.

    Attributes:
        best_model_path: The best model of the first rule, "" before it saves one; for `ckpt_path="best"`.
        best_model_score: The value of its first objective.

    Raises:
        ConfigError, RuleError: With every mistake.
    """

    @concise
    def __init__(  # noqa: PLR0913  (the arguments are the interface)
        self,
        model_path: str | Path,
        save: str | SavingRule | Iterable[str | SavingRule] | None = None,
        *,
        stop_when: str | Iterable[str] | None = None,
        checkpoint_every: str | None = None,
        patience: int | Mapping[str, int] | None = None,
        metrics: Mapping[str, Any] | None = None,
        datasets: Iterable[str] | None = None,
        held_out: Iterable[str] | None = None,
        config: str | Path | None = None,
        names: Mapping[str, str] | None = None,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "names", "__class__")}
        given["datasets"] = [ONLY_DATASET] if datasets is None else datasets
        self._core = loop.Rules(**given)
        declared = self._core.declared
        self._given = given | {"datasets": declared.datasets, "held_out": declared.held_out}
        self._names = Names(names, declared, ("val_", "val/"))
        self._evaluated = (*(declared.datasets or ()), *declared.held_out)
        self._restored: dict[str, Any] = {}
        self._is_training = self._has_trained = self._is_checkpoint_due = False
        self.best_model_path = ""
        self.best_model_score: float | None = None

    @property
    def stop(self) -> Stop | None:
        """Why to stop, None as long as there is no reason."""
        return self._core.stop

    @property
    def last_model_path(self) -> str | None:
        """The newest checkpoint of the whole training, for `fit(ckpt_path=...)`; None if there is none."""
        found = {int(match[1]): path for path in self._core.model_path.glob("step-*") if (match := _step_of(path))}
        return str(found[max(found)]) if found else None

    def best(self, rule: str) -> SavedModel | None:
        """Return the best model that a rule has saved; None if it has saved none."""
        return self._core.best(rule)

    def state_dict(self) -> dict[str, Any]:
        """Return what Lightning writes into a checkpoint."""
        return self._core.state_dict() if self._is_training else dict(self._restored)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state of a checkpoint until the training starts."""
        self._restored = state_dict

    @concise
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse settings that contradict the rules."""
        if stage == "fit":
            raise_problems(self._contradictions(trainer), "Trainer")

    @concise
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check the rules for the length of this training, and resume them if it is resumed."""
        if trainer.limit_val_batches == 0 and self._evaluated:
            raise ValueError("limit_val_batches=0 means that nothing is validated: leave it out, or give datasets=[]")
        if trainer.val_dataloaders is not None or not trainer.enable_validation:
            self._check_loaders(trainer.val_dataloaders)  # otherwise after the first validation, which loads them
        if trainer.fast_dev_run:
            return  # a try, which writes no model: only names are checked
        if self._has_trained:
            self._core, self.best_model_path, self.best_model_score = loop.Rules(**self._given), "", None
        total, batches = trainer.estimated_stepping_batches, trainer.num_training_batches
        per_epoch = -(-batches // trainer.accumulate_grad_batches) if isinstance(batches, int) else None
        self._core.start(total_steps=total if isinstance(total, int) else None, steps_per_epoch=per_epoch or None)
        restored, self._restored = self._restored, {}
        if trainer.global_step and restored and restored["counters"]["step"] == trainer.global_step:
            self._core.load_state_dict(restored)
            self._set_best()
        elif trainer.global_step:
            warn(f"the checkpoint of step {trainer.global_step} was written without rules: they start from scratch")
        self._is_training = self._has_trained = True

    @concise
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ask what is due at this step."""
        if not self._is_training:
            return
        self._write_checkpoint(trainer)
        core, step = self._core, trainer.global_step
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if loss is not None:
            loss = loss * trainer.accumulate_grad_batches  # Lightning has divided it
        if step == core.counters.step:
            return
        batches = trainer.num_training_batches
        ended = trainer.is_last_batch
        within = (batch_idx + 1) / batches if isinstance(batches, int) else 0
        due = core.step(
            step=step, epoch=trainer.current_epoch + (1 if ended else min(within, 0.999999)), train_loss=loss
        )
        trainer.should_stop |= due.stop is not None
        self._is_checkpoint_due = due.checkpoint
        evaluates = self._evaluated and (batch_idx + 1) % trainer.val_check_batch == 0
        if not evaluates and not ended:  # otherwise after the evaluation, which a resume would leave out
            self._write_checkpoint(trainer)

    @concise
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Decide by what was logged. A further validation of the same weights decides nothing."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or not self._evaluated:
            return
        self._check_loaders(trainer.val_dataloaders)
        values = {name: self._values(name, trainer.callback_metrics) for name in self._evaluated}
        if self._is_training and self._core.counters.step != self._core.counters.evaluated:
            self._decide(trainer, values)

    @concise
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Decide by the training loss if there are no validation data."""
        if not self._evaluated and self._is_training:
            self._decide(trainer, {})
        self._write_checkpoint(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Finish the journals and unlock the folder."""
        self._write_checkpoint(trainer)
        self._leave()
        self._core.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Record that the training failed, and unlock the folder."""
        if self._is_training:
            self._leave()
            self._core.__exit__(type(exception), exception, exception.__traceback__)

    def _leave(self) -> None:
        """Keep the state for checkpoints that are written after the training, and for `fit` that continues it."""
        with suppress(RuntimeError):  # the training failed between a decision and its models
            self._restored = self.state_dict()
        self._is_training = False

    def _decide(self, trainer: pl.Trainer, values: Mapping[str, Mapping[str, Any]]) -> None:
        decision = self._core.evaluated(values)
        if decision.saved:
            with _written(trainer, self._core.model_path, weights_only=True) as file:
                self._core.save(decision, lambda folder: _copy(file, folder / MODEL))
            self._set_best()
        trainer.should_stop |= decision.stop is not None
        self._is_checkpoint_due |= decision.checkpoint or decision.stop is not None
        self._write_checkpoint(trainer)

    def _write_checkpoint(self, trainer: pl.Trainer) -> None:
        """Write a checkpoint of the whole training if one is due, then delete the former."""
        is_due, self._is_checkpoint_due = self._is_checkpoint_due, False
        if not is_due or self._core.declared.rules.checkpoint is None:
            return
        folder = self._core.model_path
        with _written(trainer, folder) as file:
            if trainer.is_global_zero:
                newest = folder / f"step-{trainer.global_step}.ckpt"
                os.replace(file, newest)
                for path in folder.glob("step-*"):
                    if _step_of(path) and path != newest:
                        _delete(path)

    def _set_best(self) -> None:
        assert self._core.engine is not None
        first = self._core.engine.rules.savings[0]
        kept = self._core.engine.states[first.name].kept
        best = processes.from_main(lambda: self._core.best(first.name)) if kept else None
        if best is not None:
            self.best_model_path, self.best_model_score = str(best.folder / MODEL), next(iter(best.values.values()))

    def _values(self, dataset: str, reported: Mapping[str, Any]) -> dict[str, Any]:
        if len(self._evaluated) > 1:
            end = f"{_LOADER}{self._evaluated.index(dataset)}"
            reported = {name.removesuffix(end): value for name, value in reported.items() if name.endswith(end)}
        return self._names.values(dataset, reported, _HOW)

    def _contradictions(self, trainer: pl.Trainer) -> Iterator[Problem]:
        rules = self._core.declared.rules
        if rules.evaluate is not None:
            text = "is not possible here: give val_check_interval or check_val_every_n_epoch to Lightning's Trainer"
            yield Problem("evaluate_every", text)
        if isinstance(trainer.strategy, DeepSpeedStrategy):
            yield Problem("strategy", "is DeepSpeed, which writes folders that rules cannot publish: use DDP or FSDP")
        earlier = trainer.callbacks[: trainer.callbacks.index(self)]
        if any(isinstance(callback, ModelCheckpoint) for callback in earlier):
            text = "has ModelCheckpoint before Rules, so that its checkpoints miss the decision: put Rules before it"
            yield Problem("callbacks", text)

    def _check_loaders(self, loaders: Any) -> None:
        """Raise an error if the validation loaders do not match the datasets of the rules."""
        found = [] if loaders is None else list(loaders) if isinstance(loaders, list | tuple | Mapping) else [loaders]
        if len(found) != len(self._evaluated):
            text = (
                "datasets=[] says that there are none" if not self._evaluated else f"they are {listed(self._evaluated)}"
            )
            raise ValueError(
                f"fit was given {len(found)} validation loaders, and to Rules(datasets=, held_out=) {text}"
            )
        if isinstance(loaders, Mapping) and self._evaluated != (ONLY_DATASET,) and tuple(found) != self._evaluated:
            raise ValueError(f"the validation loaders are {listed(found)}, and Rules knows {listed(self._evaluated)}")


class _written:
    """A file that Lightning writes on all processes, for the time of a block."""

    def __init__(self, trainer: pl.Trainer, folder: Path, *, weights_only: bool = False) -> None:
        self._trainer, self._file, self._weights_only = trainer, folder / _WRITTEN, weights_only

    def __enter__(self) -> Path:
        self._trainer.save_checkpoint(self._file, weights_only=self._weights_only)
        return self._file

    def __exit__(self, *_: object) -> None:
        if self._trainer.is_global_zero:
            _delete(self._file)
        self._trainer.strategy.barrier("rules")


def _copy(file: Path, target: Path) -> None:
    if file.is_dir():
        raise ValueError("Lightning wrote a folder of shards: use FSDPStrategy(state_dict_type='full')")
    shutil.copyfile(file, target)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _step_of(path: Path) -> re.Match[str] | None:
    return _LAST.fullmatch(path.name)
