"""Rules in the training of Keras 3.

    rules = Rules("model", "best_accuracy@dev/accuracy@ood", patience=3, metrics={"accuracy": "max"},
                  datasets=["dev", "ood"], validation={"ood": (ood_inputs, ood_classes)})
    model.fit(inputs, classes, validation_data=dev, callbacks=[rules])

Keras trains and evaluates. The rules choose the models that are saved, and stop.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras

from accmt.checkpoint.saved_models import SavedModel
from accmt.config.errors import Problem, raise_problems
from accmt.files.durable import replace_file
from accmt.files.json_io import as_json, read_json
from accmt.integrations import loop, processes
from accmt.integrations.arguments import Declaration
from accmt.integrations.reported import Names
from accmt.notices import warn
from accmt.rules import SavingRule, Stop
from accmt.rules.errors import listed
from accmt.rules.store import ONLY_DATASET
from accmt.tracebacks import concise

MODEL = "model.keras"
_STATES = "keras_states.json"
_KEPT = 2  # a kill may come between the state of an epoch here and the backup of Keras
_PREFIX = "val_"
_HOW = "compile(metrics=) has to name it"


class Rules(keras.callbacks.Callback):  # type: ignore[misc]  # Keras has no types
    """A callback that decides which models are saved, and when to stop.

    A saved model is `model.keras` in the folder of its rule, as `model.save` writes it. A batch counts as a step. The
    state after each of the newest two epochs is kept in `model_path`; a training that begins with a later epoch, as
    `keras.callbacks.BackupAndRestore` makes it, continues from the state of the epoch before.

    Args:
        model_path, save, stop_when, patience, metrics, config: As in `accmt.integrations.loop.Rules`.
        datasets, held_out: The names of the validation datasets, and of those for reporting only: those of
            `validation`, and one for the data of `fit(validation_data=)`, if given. None if there are only the latter.
        validation: Dataset -> what `model.evaluate` takes: (inputs, targets), or data with batches. They are evaluated
            in the epochs in which `fit` evaluates its own, or in all if it has none.
        names: Metrics that Keras names differently, as its name -> name in `metrics`. `loss` is `valid_loss`.

    Raises:
        ConfigError, RuleError: With every mistake; also for `evaluate_every` and `checkpoint_every`.
    """

    @concise
    def __init__(
        self,
        model_path: str | Path,
        save: str | SavingRule | Iterable[str | SavingRule] | None = None,
        *,
        validation: Mapping[str, Any] | None = None,
        names: Mapping[str, str] | None = None,
        **rules: Any,
    ) -> None:
        super().__init__()
        self._given = {"model_path": model_path, "save": save, **rules}
        if not validation and rules.get("datasets") is None:
            self._given["datasets"] = [ONLY_DATASET]
        self._core = loop.Rules(**self._given)
        declared = self._core.declared
        self._names = Names(names, declared, (_PREFIX,))
        self._validation = dict(validation or {})
        raise_problems(_problems(declared, self._validation), "Rules(...)")
        known = (*(declared.datasets or ()), *declared.held_out)
        self._of_fit = next((name for name in known if name not in self._validation), None)
        self._states: dict[str, Any] = {}
        self._has_trained = False

    @property
    def stop(self) -> Stop | None:
        """Why to stop, None as long as there is no reason."""
        return self._core.stop

    def best(self, rule: str) -> SavedModel | None:
        """Return the best model that a rule has saved; None if it has saved none."""
        return self._core.best(rule)

    @concise
    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Check the rules for the length of this training."""
        if self._has_trained:
            self._core.close()  # a training that failed
            self._core = loop.Rules(**self._given)
        self._core.end_interrupted()
        per_epoch = self.params.get("steps")
        total = per_epoch * self.params["epochs"] if per_epoch else None
        self._core.start(total_steps=total, steps_per_epoch=per_epoch)
        self._is_first, self._waiting = True, 0

    @concise
    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Resume the rules, if the first epoch is a later one."""
        if self._is_first:
            self._is_first, self._has_trained = False, True
            self._resume(epoch)
        self._epoch, self._began = epoch, self._core.counters.step
        self._obey()

    @concise
    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Count the batches. The last one of an epoch is counted at its end."""
        self._count_waiting()
        self._waiting = self._began + batch + 1
        steps = self.params.get("steps")
        if steps and batch + 1 < steps:
            self._count_waiting()

    @concise
    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Decide by the values of the epoch, and keep the state."""
        core, logs = self._core, dict(logs or {})
        if self._waiting:
            core.step(step=self._waiting, epoch=epoch + 1, train_loss=logs.get("loss"))
            self._waiting = 0
        if any(name.startswith(_PREFIX) for name in logs) or self._of_fit is None:
            decision = core.evaluated(self._evaluate(logs))
            core.save(decision, lambda folder: self.model.save(folder / MODEL))
            if (
                self._of_fit is None
                and core.counters.evaluation == 1
                and any(name.startswith(_PREFIX) for name in logs)
            ):
                warn("fit(validation_data=) decides nothing: name it in datasets= or held_out=")
        elif core.counters.evaluation == 0 and epoch == 0:
            warn("fit did not evaluate in epoch 1: nothing is decided before it does, by fit(validation_data=)")
        self._keep(epoch + 1)
        self._obey()

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Finish the journals and unlock the folder."""
        self._core.close()

    def _count_waiting(self) -> None:
        if self._waiting:
            steps = self.params.get("steps")
            within = min((self._waiting - self._began) / steps, 0.999999) if steps else 0
            self._core.step(step=self._waiting, epoch=self._epoch + within)
            self._waiting = 0
            self._obey()

    def _obey(self) -> None:
        if self._core.stop is not None:
            self.model.stop_training = True

    def _evaluate(self, logs: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Return dataset -> metric -> value."""
        reported = {name: value for name, value in logs.items() if name.startswith(_PREFIX)}
        found = {} if self._of_fit is None else {self._of_fit: reported}
        for dataset, data in self._validation.items():
            parts = keras.utils.unpack_x_y_sample_weight(data) if isinstance(data, tuple | list) else (data, None, None)
            given = dict(zip(("x", "y", "sample_weight"), parts, strict=True))
            found[dataset] = self.model.evaluate(**given, return_dict=True, verbose=0)
        return {dataset: self._names.values(dataset, values, _HOW) for dataset, values in found.items()}

    def _resume(self, epoch: int) -> None:
        file = self._core.model_path / _STATES
        self._states = read_json(file, dict) if epoch and file.exists() else {}
        if str(epoch) in self._states:
            self._core.load_state_dict(self._states[str(epoch)])
            self._states = {name: state for name, state in self._states.items() if int(name) <= epoch}
        elif epoch:
            warn(f"{file} has no state after epoch {epoch}: the rules start from scratch")

    def _keep(self, epoch: int) -> None:
        """Write the states of the newest epochs."""
        self._states[str(epoch)] = self._core.state_dict()
        self._states = dict(list(self._states.items())[-_KEPT:])
        if processes.is_main():
            replace_file(self._core.model_path / _STATES, as_json(self._states))


def _problems(declared: Declaration, validation: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield what cannot be done in Keras, or is not complete."""
    if declared.rules.evaluate is not None:
        yield Problem("evaluate_every", "is not possible here: give validation_freq to fit")
    if declared.rules.checkpoint is not None:
        yield Problem("checkpoint_every", "is not possible here: use keras.callbacks.BackupAndRestore")
    if declared.datasets is None:
        yield Problem("datasets", "are not known: name those of validation=, and the one of fit(validation_data=)")
        return
    known = (*declared.datasets, *declared.held_out)
    if unknown := [name for name in validation if name not in known]:
        yield Problem(f"validation[{unknown[0]!r}]", f"is not in datasets or held_out: {listed(known) or 'none'}")
    without = [name for name in known if name not in validation]
    if len(without) > 1:
        yield Problem("validation", f"must have all of {listed(without)} but the one of fit(validation_data=)")
    for name, data in validation.items():
        if isinstance(data, Iterator):
            yield Problem(f"validation[{name!r}]", "is used up by one evaluation: give arrays or a dataset")
