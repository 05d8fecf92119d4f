"""The trainer: its documented constructor, and `fit`, which assembles the parts and runs the loop."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from torch import nn
from torch.utils.data import Dataset

from accmt.callbacks import Callback
from accmt.checkpoint.saved_models import SavedModel, best_in
from accmt.config.errors import names_missing, suggests
from accmt.config.rules import REPLICATES_DEFAULT
from accmt.data.workers import refuse_run_again
from accmt.display.display import display_of
from accmt.display.notebook import Decisions
from accmt.distributed.heartbeat import Heartbeat
from accmt.distributed.signals import Terminated, end_by_signal
from accmt.files.paths import resolved, shortened
from accmt.html_tables import html_table
from accmt.hyperparameters import HyperParameters
from accmt.loop.evaluate import evaluate
from accmt.loop.exclusive import exclusive, lend
from accmt.loop.predict import predict
from accmt.loop.run import Run
from accmt.loop.sanity_check import try_out
from accmt.metrics.metric import Metric
from accmt.module import AcceleratorModule, TrainerLink
from accmt.monitor import Monitor
from accmt.notices import heard_by, warn
from accmt.rehearsal.findings import Rehearsal
from accmt.rehearsal.rehearsed import perform, require_fork
from accmt.rehearsal.runs import Role, end_process, make_runs, role_in_rehearsal, run_fork
from accmt.report.live import Report, write_report
from accmt.report.training import read_training
from accmt.rules import Decision, RuleError, SavingRule
from accmt.rules.checker import meetings
from accmt.rules.reserved_names import REPORT
from accmt.seed_run import for_seed_run, tell_folder
from accmt.setup.arguments import CLIP_GRAD, ArgumentCheck
from accmt.setup.best import recorded_rules, rule_folders, rule_named
from accmt.setup.build import assemble_evaluation
from accmt.setup.fit import fit
from accmt.setup.inputs import check_evaluation, check_fit, check_prediction
from accmt.setup.lr_range_test import LearningRateCurve, find_rates, rates_between
from accmt.setup.model import left_in_place, lent, returned
from accmt.setup.options import Options
from accmt.setup.plain_module import as_module
from accmt.setup.plan import Plan, plan
from accmt.setup.prediction import as_predicting, prediction_step
from accmt.states import TrainingState
from accmt.tracebacks import concise
from accmt.tracking.history import TrainingHistory
from accmt.tracking.tracker import NoTracker, Tracker


class Trainer:
    """Trains a module; rules declare when to save, checkpoint, evaluate and stop.

    All arguments are checked at once, here; `fit` checks what depends on the data, before the first step. The
    configuration may have a section `rules`: its saving rules come before registered ones; for other settings, an
    argument that differs from its default overrides the file.

    Args:
        hps_config: Hyperparameters, as an object, a dictionary, or the path of a YAML file.
        model_path: The folder for everything that is written: savings, checkpoints, history. In all paths `~` is the
            user's home, and a relative path is resolved against the current folder when it is given.
        track_name: The name of the experiment in the tracker; by default the name of the model's folder.
        enable_checkpointing: Make checkpoints.
        multiple_checkpoints: Keep several checkpoints instead of only the newest.
        max_checkpoints: How many to keep with `multiple_checkpoints`; None for all.
        resume: What to resume from. None: the newest checkpoint, if there is one. True or -1: the newest, which must
            exist. A number from 1: the checkpoint with this index (needs `multiple_checkpoints`). False: from scratch.
        disable_model_saving: Save no models; the rules still decide patience and stopping.
        patience: Evaluations without improvement after which a rule asks to stop, for all rules, or by the rule's name.
            The training stops when all rules with a patience ask for it.
        evaluate_every_n_steps: Evaluate every N optimizer steps instead of at the end of every epoch.
        checkpoint_every: How often to checkpoint, such as "epoch", "500 steps", "2 evaluations"; None for never.
        logging_dir: Where the tracker writes: a folder, a URL, or a link.
        log_with: The tracker, or a list of trackers: "mlflow", or one that Accelerate supports, such as "tensorboard".
        log_every: Log the training loss every N optimizer steps; -1 at the end of every epoch; None never. Or a text,
            such as "100 steps", "0.5 epochs", "10 seconds".
        grad_accumulation_steps: Batches per optimizer step; or a table by epoch, such as {0: 8, 5: 2}: 8 in the epochs
            0 to 4, and 2 from epoch 5 on.
        gradient_checkpointing: Recompute activations in the backward pass instead of storing them; the model needs a
            method `gradient_checkpointing_enable`, as models of transformers have.
        gradient_checkpointing_kwargs: Arguments of that method.
        clip_grad: Clip the norm of all gradients to this value; None for no clipping.
        set_to_none: Reset gradients to None instead of zero.
        shuffle_train: Shuffle the training data, unless a sampler is given.
        sampler: A sampler for the training data, or several that are used one after another in every epoch.
        collate_fn: Makes a batch from samples, in training and validation.
        collate_fn_train: The same for training only.
        collate_fn_val: The same for validation only.
        max_shard_size: The maximum size of a file of a saved model, such as "10GB"; larger models are split.
        safe_serialization: Save models as safetensors instead of `pytorch_model.bin`.
        compile: Compile the calls of the model (and of the teacher) with torch.compile.
        compile_kwargs: Arguments of torch.compile.
        safe_mode: The module calls the model through the engine's wrapper. False calls the bare model: a little faster,
            but without what the wrapper does in a forward pass. With replicated processes the gradients are then
            averaged before each optimizer step, all at once.
        train_loss_metric_name: The name of the training loss in trackers.
        val_loss_metric_name: The name of the validation loss in trackers.
        dataloader_pin_memory: Load batches into pinned memory if a GPU is used.
        dataloader_num_workers: Worker processes per loader; None for as many as there are training processes, but none
            for streams, for data in memory (tensors, lists and the like), and where a worker would rerun the script.
            They outlive epochs and evaluations, unless the data change in between.
        dataloader_drop_last: Drop an incomplete last batch of the training data.
        eval_when_finish: Evaluate at the end of the training, unless evaluations are at the end of epochs anyway.
        eval_when_start: Evaluate before the first step; no rule decides on it.
        monitor: Which values are sent to the tracker.
        metrics: Metrics for all validation datasets (one or a list), or by dataset (a dictionary of these).
        cleanup_cache_every_n_steps: Clear the caches of main memory and device every N optimizer steps, in addition
            to every evaluation and end of an epoch.
        callback: One callback or several.
        additional_tracker_config: More parameters for the tracker, in addition to the hyperparameters.
        batch_device_placement: Move batches to the device.
        prepare_batch: With DeepSpeed and mixed precision, convert floating point tensors of batches to the precision of
            the model; otherwise it has no effect.
        safe_steps: If a training or validation step runs out of memory, free its memory and try it once more. If it
            fails again, show the processes that use the GPUs, and raise the error.
        destroy_after_training: Destroy the process group after the training; False to train again in the same script.
        enable_prepare_logging: Let libraries log while they prepare the model.
        evaluate_every: How often to evaluate, such as "500 steps or 10 minutes"; not with `evaluate_every_n_steps`.
        stop_when: One or several conditions that stop the training as soon as one holds, such as "valid_loss < 0.1".
            They are evaluated after every evaluation; those on counters and the clock also at every step, and those on
            training losses and metrics about once a second.
        training_metrics: Values logged by the module's `self.log` that rules may use: name -> "min" or "max", the
            better direction. Like `train_loss`, each is the mean since the previous evaluation.
        mixed_precision: "bf16", "fp16" or "no"; None for the launcher's setting.
        checkpoint_async: Write checkpoints in the background: the training waits only until its state is copied, which
            needs as much main memory as the state. A checkpoint still being written is waited for before the next one
            and at the end.
        checkpoint_on_exception: When an exception (or Ctrl-C) ends the training, make a checkpoint of the last complete
            step. None is made, with a message, if the failed step had begun to change the weights, or if not all
            processes failed in the same step. This keeps a few numbers and copies of the model's buffers at each step.
        trust_checkpoint: With DeepSpeed, which unpickles its part of a checkpoint: load it even if it names objects
            that DeepSpeed does not write. Other checkpoints contain nothing executable.
        quiet: Print warnings only.
        sanity_check: Before the first step, try one batch of each validation dataset: `validation_step`, and the
            metrics with its result. No hook is called, and all state is left unchanged. False skips this.
        scheduler_metric: The score for a scheduler that follows a metric, such as ReduceLROnPlateau: "valid_loss", or a
            rule with one objective, such as "best_accuracy@dev". The scheduler steps after each evaluation.
        seed: Seed Python, NumPy and torch on all processes at the start of `fit`, as `accmt.set_seed` does; None leaves
            them as they are. A resumed training continues with the random states of its checkpoint. A module that was
            constructed before `fit` already has its initial weights: call `accmt.set_seed` before to determine these.
        restore_best: After the training, load the best model of the only rule (True), or of the rule with this name,
            into the module, instead of leaving the weights of the last step in it. Not with a sharded model (FSDP) or
            DeepSpeed.
        clip_grad_value: Clip each element of the gradients to this absolute value, instead of their norm: `clip_grad`
            is left out, or None.
        limit_train_batches: Train in each epoch on so many batches of each process only, or on this fraction of them (a
            float; rounded down, at least one): the first ones of the order of that epoch. A stream then has epochs
            of known length, and must not end before.
        limit_val_batches: Evaluate on so many batches of each dataset only, of all processes together, or on this
            fraction of them: always the first ones.
        profile: True to profile 5 optimizer steps after 6 others with `torch.profiler`; or a dictionary with the first
            and the last step of this run, such as {"steps": (10, 20)}, and arguments of the profiler such as
            `record_shapes`. The main process prints a table, each process writes a trace into `model_path/profile`.
        report: After each evaluation, write a page about the training, `model_path/report.html`, and send it to the
            trackers at the end. It is written less often where that would take over 5 % of the time.
        held_out: The keys of validation datasets, such as "test", that are for reporting only. No rule, patience or
            `stop_when` may name them, metrics without a dataset leave them out, and no evaluation of the training uses
            them. After the training, each saved model is evaluated on them once: see `SavedModel.held_out`.
        ema_decay: Keep an exponential moving average of the trained weights, such as 0.999: after each optimizer step
            `ema_decay * average + (1 - ema_decay) * weights`. Evaluations and saved models use it, with the buffers of
            the model, such as the statistics of batch normalization; the module keeps the trained weights. Not with
            FSDP or DeepSpeed, nor with an `ExtendedAcceleratorModule`.
        replicates: The number of resamples of each validation dataset from which rules with `by 2 se` estimate standard
            errors, from 20 to 10,000; more are more exact, and take longer. Nothing is resampled without such a rule.
        **kwargs: Arguments of the trackers' runs: `run_name`, `tags` and whatever else they accept; a dictionary under
            the name of a tracker is for that tracker only.

    Raises:
        ConfigError: With all problems of the arguments.
        RuleError: If the only problems are in rule texts.
    """

    @names_missing
    def __init__(  # noqa: PLR0913  (the documented constructor)
        self,
        hps_config: str | dict[str, Any] | HyperParameters,
        model_path: str | Path,
        track_name: str | None = None,
        enable_checkpointing: bool = True,
        multiple_checkpoints: bool = False,
        max_checkpoints: int | None = None,
        resume: bool | int | None = None,
        disable_model_saving: bool = False,
        patience: int | dict[str, Any] | None = None,
        evaluate_every_n_steps: int | None = None,
        checkpoint_every: str | None = "epoch",
        logging_dir: str = "logs",
        log_with: str | list[str] | None = None,
        log_every: int | str | None = -1,
        grad_accumulation_steps: int | dict[int, int] | None = None,
        gradient_checkpointing: bool = False,
        gradient_checkpointing_kwargs: dict[str, Any] | None = None,
        clip_grad: float | None = CLIP_GRAD,
        set_to_none: bool = True,
        shuffle_train: bool = True,
        sampler: Any | list[Any] | None = None,
        collate_fn: Callable[..., Any] | None = None,
        collate_fn_train: Callable[..., Any] | None = None,
        collate_fn_val: Callable[..., Any] | None = None,
        max_shard_size: str = "10GB",
        safe_serialization: bool = False,
        compile: bool = False,  # noqa: A002  (the documented name)
        compile_kwargs: dict[str, Any] | None = None,
        safe_mode: bool = True,
        train_loss_metric_name: str = "train_loss",
        val_loss_metric_name: str = "val_loss",
        dataloader_pin_memory: bool = True,
        dataloader_num_workers: int | None = None,
        dataloader_drop_last: bool = False,
        eval_when_finish: bool = True,
        eval_when_start: bool = False,
        monitor: Monitor | dict[str, bool] | None = None,
        metrics: Metric | list[Metric] | dict[Any, Metric | list[Metric]] | None = None,
        cleanup_cache_every_n_steps: int | None = None,
        callback: Callback | list[Callback] | None = None,
        additional_tracker_config: dict[str, Any] | None = None,
        batch_device_placement: bool = True,
        prepare_batch: bool = True,
        safe_steps: bool = True,
        destroy_after_training: bool = True,
        enable_prepare_logging: bool = False,
        *,
        evaluate_every: str | None = None,
        stop_when: str | list[str] | None = None,
        training_metrics: dict[str, str] | None = None,
        mixed_precision: str | None = None,
        checkpoint_async: bool = False,
        checkpoint_on_exception: bool = False,
        trust_checkpoint: bool = False,
        quiet: bool = False,
        sanity_check: bool = True,
        scheduler_metric: str | None = None,
        seed: int | None = None,
        restore_best: bool | str = False,
        clip_grad_value: float | None = None,
        limit_train_batches: int | float | None = None,
        limit_val_batches: int | float | None = None,
        profile: bool | dict[str, Any] | None = None,
        report: bool = False,
        held_out: str | int | list[str | int] | None = None,
        ema_decay: float | None = None,
        replicates: int = REPLICATES_DEFAULT,
        **kwargs: Any,
    ) -> None:
        arguments = dict(locals())
        del arguments["self"]
        arguments = for_seed_run(arguments)
        self._options = ArgumentCheck(arguments).options()
        self.model_path = resolved(arguments["model_path"])
        self.state = TrainingState()
        self.decisions: list[Decision] = Decisions()
        self._savings = list(self._options.rules.savings)
        self._fitted: tuple[SavingRule, ...] = ()
        self._tracker: Tracker = NoTracker()
        self._heartbeat: Heartbeat | None = None

    @suggests("register_model_saving(...)")
    def register_model_saving(
        self,
        model_saving: str,
        saving_below: float | None = None,
        saving_above: float | None = None,
        *,
        name: str | None = None,
        patience: int | None = None,
    ) -> None:
        """Register a rule that says when to save the model, in addition to those of the configuration.

        Args:
            model_saving: The rule, such as `best_valid_loss`, `best_accuracy@dev`, `best_accuracy@dev/f1@ood`.
            saving_below: Save only if all values of the rule are below this.
            saving_above: Save only if all values of the rule are above this.
            name: A name for the rule and its folder, instead of the rule's text.
            patience: Evaluations without improvement after which the rule asks to stop.

        Raises:
            RuleError: With every mistake in the text. `fit` checks what depends on the training.
            ConfigError: If an argument is unknown.
        """
        rule = SavingRule.parse(
            model_saving, name=name, patience=patience, saving_below=saving_below, saving_above=saving_above
        )
        if problems := list(meetings([rule], self._options.tracking.names)):
            raise RuleError(problems)
        self._savings.append(rule)

    @concise
    def fit(
        self,
        module: AcceleratorModule | nn.Module | str | tuple[Any, Any] | Any,
        train_dataset: Dataset[Any] | None = None,
        val_dataset: Dataset[Any] | list[Dataset[Any]] | dict[str, Dataset[Any]] | None = None,
        *,
        loss_fn: Callable[[Any, Any], Any] | None = None,
        metrics: str | Metric | list[str | Metric] | None = None,
        **kwargs: Any,
    ) -> TrainingHistory:
        """Train a module.

        Args:
            module: The module. Or a transformers model, which computes its own loss, while metrics get its logits and
                the labels: the model itself; its name or path; or its configuration, for a new model. Name, path and
                configuration alone mean the class that they record, or `("path", "AutoModelForSequenceClassification")`
                gives it. Or a plain `torch.nn.Module` with `loss_fn`, whose batches are (input, target),
                (input, ..., target), or dictionaries of arguments of its `forward` and one more entry, the target.
            train_dataset: The training data; None if the module's `get_train_dataloader` needs no dataset.
            val_dataset: The validation data: a dataset, a list (keys "0", "1", ...), or a dictionary of datasets.
            loss_fn: The loss of a plain `torch.nn.Module`: a function of (output, target), or a module.
            metrics: Metrics of a plain `torch.nn.Module`, besides the trainer's: "accuracy", "mae", "mse", a `Metric`
                of (output, target), or a list of these. By default, if the trainer has none, accuracy for integer
                targets and losses for classes, mae and mse for other numbers.
            **kwargs: Arguments of `from_pretrained`, if a model is given by its name or path.

        Returns:
            The values of all evaluations, including those before a resume; the same on every process.

        SIGTERM ends the training between two steps, with a checkpoint to resume from, and then the process; SIGUSR1
        requests a checkpoint, and the training continues. Neither is handled if the process ignores it, or outside of
        the main thread.

        Raises:
            ConfigError, RuleError: With all problems that can be found before the first step.
            Busy: Another training, evaluation or search runs in this process; nothing was touched. A RuntimeError.
            Terminated: SIGTERM ended the training, and a handler of the script kept the process alive.
            PeerFailed: Another process failed before this one, and shows its error.
        """
        refuse_run_again()
        given = (module, loss_fn, metrics, kwargs), train_dataset, val_dataset
        self._play(role_in_rehearsal(), *given)
        tell_folder(self.model_path)
        with exclusive("fit"):
            try:
                ended = fit(
                    lambda: self._planned(self._options, *given),
                    self._attach,
                    self._warn,
                    destroys=self._options.destroy,
                    seed=self._options.seed,
                )
            finally:
                self._heartbeat = None
        if isinstance(ended, Terminated):
            end_by_signal(ended)
        return ended

    @suggests("find_lr(...)")
    def find_lr(
        self,
        module: AcceleratorModule | nn.Module | str | tuple[Any, Any] | Any,
        train_dataset: Dataset[Any] | None = None,
        *,
        loss_fn: Callable[[Any, Any], Any] | None = None,
        min_lr: float = 1e-7,
        max_lr: float = 1.0,
        steps: int = 100,
    ) -> LearningRateCurve:
        """Test a range of learning rates (Smith, arXiv:1506.01186): train with the rate growing from step to step.

        Batches, accumulation, clipping and optimizer are those of `fit`, without scheduler and callbacks. The test ends
        early when the smoothed loss exceeds 4 times its minimum. Then module, optimizer, random states and data are as
        before; nothing is written. The rate is that of the first parameter group; others keep their ratio to it.

        Args:
            module, train_dataset, loss_fn: As for `fit`.
            min_lr, max_lr: The first and the last rate; each is the previous one times the same factor.
            steps: Optimizer steps.

        Returns:
            The curve: `rates`, `losses`, `suggestion` (where the loss falls most steeply) and `plot(path)`.

        Raises:
            ConfigError, ValueError: If something cannot work; also with FSDP or DeepSpeed.
        """
        refuse_run_again()
        with exclusive("find_lr"), heard_by(self._warn):
            module, options = as_module(module, self._options, {}, loss_fn, None, "find_lr(...)")
            return find_rates(options, module, train_dataset, rates_between(min_lr, max_lr, steps))

    @concise
    def rehearse(
        self,
        module: AcceleratorModule | nn.Module | str | tuple[Any, Any] | Any,
        train_dataset: Dataset[Any] | None = None,
        val_dataset: Dataset[Any] | list[Dataset[Any]] | dict[str, Dataset[Any]] | None = None,
        *,
        loss_fn: Callable[[Any, Any], Any] | None = None,
        metrics: str | Metric | list[str | Metric] | None = None,
        **kwargs: Any,
    ) -> Rehearsal:
        """Try a training before `fit`: a few steps, two batches of each validation dataset, all savings, a checkpoint,
        SIGKILL and a resume, in forks of this process; print what the training will cost, and whether it resumes
        exactly. The arguments are those of `fit`. Nothing is changed here, left in `model_path` or sent to trackers.

        Returns:
            What was found: `costs` (seconds and bytes), `seconds` (of the whole training), `notes`, `differences`.

        Raises:
            RehearsalFailed: A run failed, such as by an error of the module. A RuntimeError, with what it printed.
            RuntimeError: This process cannot be forked, because several processes train, or there is a GPU.
            Busy: A training, evaluation or search runs in this process.
        """
        refuse_run_again()
        given = (module, loss_fn, metrics, kwargs), train_dataset, val_dataset
        self._play(role_in_rehearsal(), *given)
        require_fork()
        with exclusive("rehearse"):
            display = display_of(is_main=True, quiet=self._options.quiet)
            found = make_runs(partial(run_fork, lambda role: self._perform(role, *given)), display.show)
            display.show(str(found))
            return found

    def _play(self, role: Role | None, *given: Any) -> None:
        """Make the run of a rehearsal that this process was started for, if it was, and end the process."""
        if role is not None:
            end_process(lambda: self._perform(role, *given))

    def _perform(self, role: Role, *given: Any) -> None:
        def planned(options: Options, model_path: Path) -> Plan:
            self._options, self.model_path = options, model_path
            return self._planned(options, *given)

        with exclusive("fit"):
            perform(role, self._options, self.model_path, planned, self._attach)

    @suggests("evaluate(...)")
    def evaluate(
        self,
        module: AcceleratorModule | nn.Module | str | tuple[Any, Any] | Any,
        datasets: Dataset[Any] | list[Dataset[Any]] | dict[str, Dataset[Any]],
        *,
        loss_fn: Callable[[Any, Any], Any] | None = None,
        metrics: str | Metric | list[str | Metric] | None = None,
    ) -> dict[str, dict[str, float]]:
        """Evaluate a module; nothing is decided, recorded or written.

        A callback of a training may call it, on all processes, outside of the training's own evaluations. The training
        continues unaffected.

        Args:
            module: The module, with the weights to evaluate (see `accmt.load_saving`),
                or anything else that `fit` takes.
            datasets: Like `val_dataset` of `fit`.
            loss_fn, metrics: As in `fit`.

        Returns:
            Dataset -> metric -> value, including `valid_loss`; the same on every process. The key of a dataset that is
            given alone is "0".

        Raises:
            ConfigError: With all problems of the arguments. With several processes, call it before the training, during
                it, or after one with `destroy_after_training=False`.
            Busy: A training or evaluation runs in another thread, or is at a point where this would change it.
        """
        refuse_run_again()
        with exclusive("evaluate") as outer:
            module, options = as_module(module, self._options, {}, loss_fn, metrics, "evaluate(...)")
            named = check_evaluation(options, module, datasets)
            around = None if outer is None else outer.evaluation
            with returned(module, self._options.callbacks, is_due=around is not None), lent(module):
                state = TrainingState()
                with heard_by(self._warn) if around is None else nullcontext():
                    evaluation = assemble_evaluation(options, module, named, state, around)
                self._introduce(module, state)
                evaluation.hooks.on_evaluation_start()
                try:
                    if around is None and any(data.is_limited for data in evaluation.loaders.values()):
                        self._warn("limit_val_batches: only the first batches of each dataset are evaluated")
                    if self._options.loop.sanity_check and around is None:
                        with heard_by(self._warn):
                            for warning in try_out(evaluation):
                                warn(warning)
                    state.additional_metrics = values = evaluate(evaluation).values
                finally:
                    evaluation.close()
                evaluation.hooks.on_evaluation_end()
                return values

    @suggests("predict(...)")
    def predict(self, module: AcceleratorModule | nn.Module | str | tuple[Any, Any], dataset: Dataset[Any]) -> Any:
        """Predict a dataset in batches, as evaluations read it: each process its share, without gradients.

        A callback of a training may call it, on all processes. Modes and devices of all networks are restored.

        Args:
            module: The module, with the weights to use (see `accmt.load_best`), or anything else that `fit` takes. Its
                `predict_step(batch)` predicts a batch. Without one, `forward` gets a tensor, or a dictionary by names;
                a batch of several parts, or with a name that it does not take, is refused, as it may hold a target. Of
                a plain `torch.nn.Module` the target is left out: the last part, or the one other name. A transformers
                model predicts logits.
            dataset: The dataset; batches are those of `val_dataset` in `fit` (`collate_fn_val`, batch size).

        Returns:
            On the main process the predictions for all samples, in order; None on the others. Tensors are joined by
            their first dimension, in main memory; dictionaries and tuples by field; lists, with one item for each
            sample, are joined too. Other values become a list with one item for each batch.

        Raises:
            ConfigError: With all problems of the arguments.
            TypeError: The batch may hold a target, or the predictions for two batches cannot be joined.
            Busy: As in `evaluate`.
        """
        refuse_run_again()
        with exclusive("predict") as outer:
            used: AcceleratorModule = as_predicting(module, self._options)
            check_prediction(used, dataset)
            around = None if outer is None else outer.evaluation
            with returned(used, (), is_due=True), left_in_place(used), lent(used):
                options = replace(self._options, data=replace(self._options.data, limit_val=None))
                evaluation = assemble_evaluation(options, used, {"predict": dataset}, TrainingState(), around)
                used._trainer = TrainerLink(self)
                try:
                    return predict(evaluation, prediction_step(used))
                finally:
                    evaluation.close()

    def _warn(self, text: str) -> None:
        """Print a warning before a training exists that could show it."""
        display_of(is_main=PartialState().is_main_process, quiet=self._options.quiet).warn(text)

    def _planned(self, options: Options, given: tuple[Any, ...], train_dataset: Any, val_dataset: Any) -> Plan:
        """Plan a training of the module of `given`: the arguments of `fit` that say what it is."""
        kind, loss_fn, metrics, kwargs = given
        module, options = as_module(kind, options, kwargs, loss_fn, metrics)
        datasets = check_fit(options, module, train_dataset, val_dataset)
        return plan(options, self.model_path, self._savings, module, train_dataset, datasets)

    @concise
    def best(self, rule: str | None = None) -> SavedModel | None:
        """Return the best model that a rule of the last `fit` saved. Before any `fit`, an earlier process's in
        `model_path`.

        Args:
            rule: The name or text of the rule; None for the only one.

        Returns:
            The description of the model: rule, values, step, epoch, folder; None if the rule has saved none.

        Raises:
            ValueError: If no such rule exists, or there are several and none is given.
        """
        folders = {known.name: self.model_path / known.folder for known in self._fitted}
        folders = folders or rule_folders(self.model_path, (*self._savings, *recorded_rules(self.model_path)))
        name = rule_named(rule, folders)
        if self._fitted and name not in self.state.model_savings:
            return None
        return best_in(folders[name])

    def report(self, path: str | Path | None = None) -> Report:
        """Write a page about the training in `model_path`, which may still run; a notebook shows it.

        Args:
            path: The file to write; None for `report.html` in `model_path`.

        Returns:
            The report, whose `path` is the file.

        Raises:
            ModuleNotFoundError: jinja2 or plotly is not installed.
            FileNotFoundError, ValueError: Nothing was trained in `model_path` yet, or a file of it is damaged.
        """
        place = self.model_path / REPORT if path is None else resolved(path)
        return write_report([read_training(self.model_path)], place)

    @concise
    def stop(self, reason: str = "the script asked for it") -> None:
        """Stop the current training between two steps, as a rule would: with a last evaluation and checkpoint and
        `on_fit_end`, then `fit` returns. The reason is recorded with the decisions.

        Callbacks and modules call it as `self.trainer.stop(...)`; any thread may. With several processes one call is
        enough: all stop at the same step, within about a second. Called from a hook at an evaluation or the end of an
        epoch, it stops before the next step. Running the training again resumes it.

        Raises:
            TypeError, ValueError: If the reason is not a text, or is empty.
            RuntimeError: If no training is running.
        """
        if not isinstance(reason, str):
            raise TypeError(f"the reason of stop must be a string, not {type(reason).__name__}")
        if not reason.strip():
            raise ValueError("the reason of stop is empty: say why the training stops")
        heartbeat = self._heartbeat
        if heartbeat is None:
            raise RuntimeError("nothing is being trained: stop(...) can only be called while fit(...) runs")
        heartbeat.ask_to_stop(reason)

    def log_artifact(self, path: str | Path) -> None:
        """Send a file to the current run of the tracker; do nothing without a tracker."""
        self._tracker.log_artifact(resolved(path))

    def log_artifacts(self, path: str | Path) -> None:
        """Send all files of a folder to the current run of the tracker; do nothing without a tracker."""
        self._tracker.log_artifacts(resolved(path))

    def __repr__(self) -> str:
        rules = ", ".join(rule.name for rule in self._fitted or self._savings) or "by default"
        return f"Trainer({str(shortened(self.model_path))!r}, rules: {rules}, step {self.state.global_step})"

    def _repr_html_(self) -> str:
        hps, rows = self._options.hps, [("writes to", str(shortened(self.model_path)))]
        rows.append(("epochs", str(hps.epochs)) if hps.max_steps is None else ("max_steps", str(hps.max_steps)))
        rows.append(("step", str(self.state.global_step)))
        for rule in self._fitted or self._savings:
            best = ", ".join(f"{value:.6g}" for value in self.state.model_savings.get(rule.name, ()))
            rows.append((rule.name, best or "nothing saved yet"))
        return html_table("Trainer", (), rows)

    def _attach(self, run: Run) -> None:
        """Make the run visible to callbacks and the user."""
        self.state, self.decisions = run.state, run.records.decisions
        self._fitted = run.engine.rules.savings
        self._tracker, self._heartbeat = run.tracker, run.heartbeat
        self._introduce(run.module, run.state)
        lend(run.evaluation)

    def _introduce(self, module: AcceleratorModule, state: TrainingState) -> None:
        for callback in self._options.callbacks:
            callback.module, callback.trainer, callback.state = module, self, state
        module._trainer = TrainerLink(self)
