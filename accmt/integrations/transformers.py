"""Rules in the Trainer of transformers, and in those built on it: Seq2SeqTrainer, TRL's and sentence-transformers'.

    rules = Rules("model", "best_accuracy@dev", patience=3, metrics={"accuracy": "max"}, datasets=["dev", "test"])
    Trainer(..., callbacks=[rules]).train()

The Trainer trains, evaluates and writes checkpoints. The rules say when, and write the models that they choose
themselves: what the Trainer writes is always named after the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState
from accelerate.utils import extract_model_from_parallel
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from accmt.checkpoint.saved_models import SavedModel
from accmt.config.errors import Problem, raise_problems
from accmt.distributed.strategy import shards_model, whole_weights
from accmt.integrations import loop
from accmt.integrations.arguments import Declaration
from accmt.integrations.reported import Names
from accmt.integrations.writers import state_dict_of
from accmt.notices import warn
from accmt.rules import SavingRule, Stop
from accmt.rules.errors import listed
from accmt.rules.store import ONLY_DATASET
from accmt.tracebacks import concise

_PREFIX, _TIME = "eval_", "_runtime"  # of the names of metrics, and of the one that each evaluation reports
_COPY = {"from_checkpoint": True}
_ALWAYS = ("epoch", "runtime", "model_preparation_time")
_PER_SECOND = "_per_second"
_HOW = "compute_metrics has to return it"
_PLATEAU = ("reduce_lr_on_plateau", "greedy")  # schedules that need metric_for_best_model


class Rules(TrainerCallback, ExportableState):  # type: ignore[misc]  # transformers has no types here
    """A callback that decides which models are saved, when to evaluate and to checkpoint, and when to stop.

    Args:
        model_path: The folder for the journals and for the models that rules save.
        save: Saving rules, as texts or `accmt.rules.SavingRule`; by default `best_valid_loss`.
        stop_when: Conditions that stop the training.
        checkpoint_every: How often the Trainer writes a checkpoint; None if its `save_strategy` says it.
        evaluate_every: How often the Trainer evaluates; None if its `eval_strategy` says it.
        patience: Evaluations without improvement after which to stop: of all rules, or by the name of a rule.
        metrics: Metric -> "max" or "min", or ("max", ["dev"]) if not all datasets have it. `valid_loss` is known.
        datasets: The keys of `eval_dataset` if it is a dictionary; None if it is one dataset, [] if there is none.
        held_out: Further keys of `eval_dataset`, for reporting only: no rule can use them.
        config: A YAML file with the section `rules`; arguments replace its entries.
        names: Name of a metric as reported -> its name in `metrics`, such as {"f1-macro": "f1"}.

    Raises:
        ConfigError, RuleError: With every mistake.
    """

    def __new__(cls, *arguments: Any, **given: Any) -> Any:
        # With `restore_callback_states_from_checkpoint`, the Trainer makes a callback of what the checkpoint says, and
        # removes those of the same class. It gets one of another class, so that the one of the script stays.
        return _Copy() if given == _COPY else super().__new__(cls)

    @concise
    def __init__(  # noqa: PLR0913  (the arguments are the interface)
        self,
        model_path: str | Path,
        save: str | SavingRule | Iterable[str | SavingRule] | None = None,
        *,
        stop_when: str | Iterable[str] | None = None,
        checkpoint_every: str | None = None,
        evaluate_every: str | None = None,
        patience: int | Mapping[str, int] | None = None,
        metrics: Mapping[str, Any] | None = None,
        datasets: Iterable[str] | None = None,
        held_out: Iterable[str] | None = None,
        config: str | Path | None = None,
        names: Mapping[str, str] | None = None,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "names")}
        given["datasets"] = [ONLY_DATASET] if datasets is None else datasets
        self._core = loop.Rules(**given)
        self._declared = self._core.declared
        self._given = given | {"datasets": self._declared.datasets, "held_out": self._declared.held_out}
        self._names = Names(names, self._declared, (_PREFIX,))
        self._evaluated = (*(self._declared.datasets or ()), *self._declared.held_out)
        self._found: dict[str, dict[str, Any]] = {}  # of the datasets of an evaluation that are done
        self._is_training = self._has_trained = False
        self._is_checkpoint_due = False
        self._logged_step, self._quiet_until = 0, 0.0
        self._epoch = _Epoch()

    @property
    def stop(self) -> Stop | None:
        """Why to stop, None as long as there is no reason."""
        return self._core.stop

    def best(self, rule: str) -> SavedModel | None:
        """Return the best model that a rule has saved, whose `folder` can be loaded; None if it has saved none."""
        return self._core.best(rule)

    def state(self) -> dict[str, Any]:
        """Return what the Trainer writes into a checkpoint."""
        return {"args": _COPY, "attributes": {}} | ({"rules": self._core.state_dict()} if self._is_training else {})

    @concise
    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Refuse settings that contradict the rules."""
        self._check(args)

    @concise
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        """Check the rules for the length of this training, and resume them if it is resumed."""
        self._check(args)
        name = type(self).__name__
        entry = state.stateful_callbacks.get(name, {})
        _refuse_unsupported(entry, state, parts["model"])
        if self._has_trained:
            self._core.close()
            self._core, self._found, self._is_checkpoint_due = loop.Rules(**self._given), {}, False
        self._has_trained, self._logged_step, self._quiet_until = True, state.global_step, 0
        self._core.end_interrupted()
        self._epoch = _Epoch.of(args, state, parts["train_dataloader"])
        self._core.start(total_steps=state.max_steps, steps_per_epoch=self._epoch.steps)
        if state.global_step and "rules" in entry:
            self._core.load_state_dict(entry["rules"])
        elif state.global_step:
            warn(f"the checkpoint of step {state.global_step} was written without rules: they start from scratch")
        self._is_training = True
        state.stateful_callbacks.setdefault(name, {})  # the Trainer replaces it
        if self.stop is not None:
            warn(f"this training has stopped already, as {self.stop.reason}: the Trainer ends it after one more step")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Ask what is due at this step."""
        ends_epoch, is_asked = _ends_epoch(state), control.should_evaluate or control.should_save
        if state.global_step < self._quiet_until and not (ends_epoch or is_asked or control.should_training_stop):
            return control
        if self._found:
            raise ValueError(self._incomplete())
        due = self._core.step(**self._counters(state))
        self._quiet_until = self._next_step(state)
        stops = due.stop is not None
        control.should_training_stop |= stops
        control.should_evaluate |= due.evaluate or (stops and args.eval_strategy == "steps")
        control.should_save |= due.checkpoint or (stops and args.save_strategy != "no")
        if (args.eval_strategy == "epoch" or not self._evaluated) and (ends_epoch or control.should_training_stop):
            # The evaluation is still to come. A training that resumes from a checkpoint before it would leave it out.
            self._is_checkpoint_due, control.should_save, control.should_log = control.should_save, False, True
        control.should_log |= control.should_evaluate or control.should_save
        return control

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Mapping[str, Any], **_: Any
    ) -> None:
        """Take the training loss, which the Trainer reads from the device only when it logs."""
        if self._is_training and "loss" in logs:
            self._core.counters.add_loss(logs["loss"], state.global_step - self._logged_step)
            self._logged_step = state.global_step

    @concise
    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, Any],
        **parts: Any,
    ) -> TrainerControl:
        """Decide as soon as all datasets are evaluated."""
        dataset = self._dataset_of(metrics)
        if not self._is_training or dataset is None:
            return control
        if dataset not in self._evaluated:
            raise ValueError(self._unexpected(dataset))
        self._found[dataset] = self._values(dataset, metrics)
        self._quiet_until = 0
        if len(self._found) == len(self._evaluated):
            self._decide(args, state, control, parts)
        return control

    @concise
    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> TrainerControl:
        """Decide by the training loss if there are no validation data; let a checkpoint follow the evaluation."""
        control.should_save |= self._is_checkpoint_due
        self._is_checkpoint_due = False
        if not self._evaluated and _ends_epoch(state):
            self._decide(args, state, control, parts)
        return control

    @concise
    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Finish the journals and unlock the folder."""
        if self._found:
            raise ValueError(self._incomplete())
        self._is_training = False
        self._core.close()

    def _counters(self, state: TrainerState) -> dict[str, Any]:
        step, epoch = state.global_step, math.ceil(state.epoch) if _ends_epoch(state) else state.epoch
        return {"step": step, "epoch": epoch, "samples": self._epoch.samples_at(step, int(state.epoch))}

    def _next_step(self, state: TrainerState) -> float:
        """Return the step before which nothing can be due, unless an epoch ends or the Trainer evaluates or saves."""
        engine = self._core.engine
        assert engine is not None
        if self.stop is not None or engine.watches or engine.next_elapsed != math.inf:
            return 0
        return min(int(state.max_steps), engine.next_step or math.inf)

    def _decide(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, parts: Mapping[str, Any]
    ) -> None:
        values, self._found = self._found, {}
        decision = self._core.evaluated(values, **(self._counters(state) if state.global_step else {}))
        if decision.saved:
            self._core.save(decision, _writer(parts["model"], parts["processing_class"]))
        stops = decision.stop is not None
        control.should_training_stop |= stops
        has_checkpoints = args.save_strategy != "no" or self._declared.rules.checkpoint is not None
        control.should_save |= decision.checkpoint or (stops and has_checkpoints)

    def _dataset_of(self, metrics: Mapping[str, Any]) -> str | None:
        """Return the dataset of an evaluation, by what each of them reports; None if the script gave another prefix."""
        if f"{_PREFIX}runtime" in metrics:
            return ONLY_DATASET
        timed = [key for key in metrics if key.startswith(_PREFIX) and key.endswith(_TIME)]
        names = [key[len(_PREFIX) : -len(_TIME)] for key in timed]
        return min(names, key=lambda name: (name not in self._evaluated, len(name)), default=None)

    def _values(self, dataset: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of the declared metrics, by their names in rules.

        Raises:
            ValueError: One is missing.
        """
        prefix = f"{_PREFIX}{dataset}_"
        skipped = {f"{start}{name}" for start in ("", _PREFIX, prefix) for name in _ALWAYS}
        reported = {
            name.removeprefix(prefix): value
            for name, value in metrics.items()
            if name not in skipped and not name.endswith(_PER_SECOND)
        }
        return self._names.values(dataset, reported, _HOW)

    def _unexpected(self, dataset: str) -> str:
        if self._evaluated == (ONLY_DATASET,):
            return "eval_dataset is a dictionary: give its keys to Rules(datasets=[...], held_out=[...])"
        if dataset == ONLY_DATASET:
            return f"eval_dataset is one dataset, and Rules(...) names {listed(self._evaluated)}: leave datasets out"
        known = listed(self._evaluated) or "none"
        return f"'{dataset}' is not among the datasets and held_out of Rules(...), which are: {known}"

    def _incomplete(self) -> str:
        missing = [name for name in self._evaluated if name not in self._found]
        return f"the evaluation left out {listed(missing)}, named in Rules(...): eval_dataset has no such key"

    def _check(self, args: TrainingArguments) -> None:
        """Raise a ConfigError with all settings that contradict the rules."""
        raise_problems(_contradictions(args, self._declared), "TrainingArguments")


class _Copy(TrainerCallback):  # type: ignore[misc]
    """A callback that does nothing."""


def _contradictions(args: TrainingArguments, declared: Declaration) -> Iterator[Problem]:
    """Yield a problem for each setting that decides what the rules decide, or keeps them from deciding."""
    evaluates, checkpoints = declared.rules.evaluate is not None, declared.rules.checkpoint is not None
    if args.load_best_model_at_end:
        text = "loads a checkpoint that no rule chose: leave it out, and load the folder of a rule after the training"
        yield Problem("load_best_model_at_end", text)
    elif args.metric_for_best_model is not None and args.lr_scheduler_type not in _PLATEAU:
        text = "chooses beside the rules: leave it out, and EarlyStoppingCallback with it (save= and patience= do both)"
        yield Problem("metric_for_best_model", text)
    if args.save_strategy == "best":
        text = (
            'is "best", which the rules decide: "epoch", "steps" or "no" say when to write a checkpoint to resume from'
        )
        yield Problem("save_strategy", text)
    elif checkpoints and args.save_strategy != "no":
        text = f'is "{_text(args.save_strategy)}", and checkpoint_every says when to write checkpoints: set it to "no"'
        yield Problem("save_strategy", text)
    if not declared.datasets and args.eval_strategy != "no":
        yield Problem("eval_strategy", f'is "{_text(args.eval_strategy)}", and datasets=[] says that there are none')
    elif evaluates and args.eval_strategy != "no":
        text = f'is "{_text(args.eval_strategy)}", and evaluate_every says when to evaluate: set it to "no"'
        yield Problem("eval_strategy", text)
    elif declared.datasets and not evaluates and args.eval_strategy == "no":
        text = (
            'is "no": set it to "epoch" or "steps", or give evaluate_every to Rules(...), or datasets=[] to decide by '
        )
        yield Problem("eval_strategy", text + "train_loss")
    if evaluates and args.eval_delay:
        yield Problem("eval_delay", "has no effect on evaluate_every: write it as '1 epoch after 2 epochs'")


def _refuse_unsupported(entry: Any, state: TrainerState, model: nn.Module) -> None:
    """Raise an error for a training in which rules would not work."""
    if isinstance(entry, list):
        raise ValueError("there are several Rules among the callbacks: give all saving rules to one of them")
    if state.is_hyper_param_search:
        raise ValueError("hyperparameter_search trains several times, and all trials would share one folder of Rules")
    sharded = any(hasattr(parameter, "device_mesh") for parameter in model.parameters())
    if sharded and not shards_model(AcceleratorState()):
        raise ValueError("this model is sharded as it was loaded, which Rules cannot save: use FSDP or DeepSpeed")


def _text(strategy: Any) -> str:
    return str(getattr(strategy, "value", strategy))


@dataclass(frozen=True, slots=True)
class _Epoch:
    """The length of an epoch: its steps and samples, if known, and the most samples of a step."""

    steps: int | None = None
    samples: int | None = None
    samples_of_step: int = 1

    @classmethod
    def of(cls, args: TrainingArguments, state: TrainerState, loader: Any) -> _Epoch:
        per_device = state.train_batch_size or args.train_batch_size
        of_step = per_device * args.world_size * args.gradient_accumulation_steps
        try:
            return cls(math.ceil(len(loader) / args.gradient_accumulation_steps), len(loader.dataset), of_step)
        except TypeError:  # streams have no length
            return cls(samples_of_step=of_step)

    def samples_at(self, step: int, epochs: int) -> int:
        """Return the samples seen, without padding, at a step after so many epochs."""
        if self.steps is None or self.samples is None:
            return step * self.samples_of_step
        return epochs * self.samples + min((step - epochs * self.steps) * self.samples_of_step, self.samples)


def _ends_epoch(state: TrainerState) -> bool:
    """Return whether the step just done ends an epoch; the last step of a training does."""
    return state.global_step >= state.max_steps or float(state.epoch).is_integer()


def _writer(model: nn.Module, processing_class: Any) -> Callable[[Path], None]:
    """Return a function for the main process that writes the model into a folder. Call this on all processes."""
    state = AcceleratorState()
    weights = whole_weights(model, state) if shards_model(state) else None
    whole = extract_model_from_parallel(model, keep_torch_compile=False)

    def write(folder: Path) -> None:
        if hasattr(whole, "save_pretrained"):
            # A copy, because transformers empties what it is given.
            whole.save_pretrained(folder, **({} if weights is None else {"state_dict": dict(weights)}))
        else:
            state_dict_of(whole if weights is None else weights)(folder)
        if processing_class is not None:
            processing_class.save_pretrained(folder)

    return write
