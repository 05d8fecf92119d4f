"""Validation of the constructor's arguments: reports every problem at once, before anything happens."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from accmt.callbacks import Callback
from accmt.config.errors import Problem, did_you_mean, must_be
from accmt.config.rules import RuleSection, read_rules
from accmt.data.loaders import DataOptions
from accmt.files.paths import resolved, resolved_address
from accmt.hyperparameters import Config, ConfigError, load_config
from accmt.hyperparameters.schedulers import NEEDS_METRIC, is_plateau
from accmt.loop.run import LoopOptions
from accmt.loop.step import StepOptions
from accmt.loop.timetable import StepInterval
from accmt.metrics.metric import Metric
from accmt.monitor import Monitor
from accmt.rules import CadenceRule, FollowedScore, RuleError, StopCondition
from accmt.rules.checker import meetings
from accmt.rules.reserved_names import is_taken
from accmt.rules.store import TRAIN_LOSS, VALID_LOSS
from accmt.setup.method_check import function_problems
from accmt.setup.options import CheckpointOptions, ModelOptions, Options, RuleOptions, SavingOptions, TrackingOptions
from accmt.tracking.accelerate_trackers import FOLDER
from accmt.tracking.mlflow import is_address
from accmt.tracking.tracker_arguments import choose_trackers, name_problems, names_in, places_of

CHECKPOINT_EVERY = "epoch"
PRECISIONS = ("no", "fp16", "bf16")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)(?:KB|MB|GB|TB)", re.IGNORECASE)
_T = TypeVar("_T")


class ArgumentCheck:
    """Reads a trainer's arguments by name and collects what is wrong with them."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self._given = arguments
        self._problems: list[Problem] = []
        self._rule_errors: list[RuleError] = []

    def options(self) -> Options:
        """Return the options that the arguments describe.

        Raises:
            ConfigError: With all problems.
            RuleError: If the only problems are in rule texts.
        """
        config = self._config()
        section, monitor = self._section(config), self._monitor()
        parts: dict[str, Any] = {
            "checkpoint": self._checkpoint(section),
            "saving": self._saving(),
            "rules": self._rules(section),
            "data": self._data(config),
            "model": self._model(),
            "step": self._step(config, monitor),
            "loop": self._loop(monitor, section, config),
            "tracking": self._tracking(section),
            "accumulation": self._whole("grad_accumulation_steps", none=True) or 1,
            "training_metrics": self._training_metrics(),
            "metrics": self._metrics(),
            "callbacks": self._callbacks(),
            "destroy": self._flag("destroy_after_training"),
            "quiet": self._flag("quiet"),
        }
        self._raise()
        assert config is not None
        return Options(hps=config.hps, given=self._given, **parts)

    def _raise(self) -> None:
        if self._rule_errors and not self._problems:
            raise RuleError(problem for error in self._rule_errors for problem in error.problems)
        problems = self._problems + [Problem("", str(error)) for error in self._rule_errors]
        if problems:
            raise ConfigError(problems, "Trainer(...)")

    def _wrong(self, name: str, text: str) -> None:
        self._problems.append(Problem(name, text))

    def _whole(self, name: str, *, none: bool = False, least: int = 1) -> int | None:
        value = self._given[name]
        if value is None and none:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            self._wrong(name, must_be(f"a whole number from {least}" + (", or None" if none else ""), value))
            return None
        return value

    def _flag(self, name: str) -> bool:
        value = self._given[name]
        if not isinstance(value, bool):
            self._wrong(name, must_be("True or False", value))
        return bool(value)

    def _text(self, name: str) -> str:
        value = self._given[name]
        if not isinstance(value, str) or not value:
            self._wrong(name, must_be("a string", value))
        return str(value)

    def _callable(self, name: str) -> Callable[..., Any] | None:
        value = self._given[name]
        if value is not None and not callable(value):
            self._wrong(name, must_be("a function, or None", value))
        elif value is not None:
            self._problems += function_problems(name, value, ("samples",))
        return value  # type: ignore[no-any-return]

    def _parsed(self, parse: Callable[[str], _T], text: Any, name: str) -> _T | None:
        if not isinstance(text, str):
            self._wrong(name, must_be("a string", text))
            return None
        try:
            return parse(text)
        except RuleError as error:
            self._rule_errors.append(error)
            return None

    def _config(self) -> Config | None:
        try:
            config = load_config(self._given["hps_config"])
        except ConfigError as error:
            self._wrong_in_file(error.problems)
            return None
        self._wrong_in_file(config.problems())
        return config

    def _wrong_in_file(self, problems: Iterable[Problem]) -> None:
        """Record problems of the configuration, with its file name if it came from a file."""
        given = self._given["hps_config"]
        place = f"{given}: " if isinstance(given, str | Path) else ""
        self._problems += [Problem(f"{place}{problem.path}".strip(": "), problem.text) for problem in problems]

    def _section(self, config: Config | None) -> RuleSection:
        """Return the rules of the configuration."""
        try:
            return read_rules(config.rules) if config is not None else RuleSection()
        except ConfigError as error:
            self._wrong_in_file(error.problems)
            return RuleSection()

    def _checkpoint(self, section: RuleSection) -> CheckpointOptions:
        many, most = self._flag("multiple_checkpoints"), self._whole("max_checkpoints", none=True)
        every = self._given["checkpoint_every"]
        if every == CHECKPOINT_EVERY and section.says_checkpoint:
            cadence = section.checkpoint
        else:
            cadence = None if every is None else self._parsed(CadenceRule.parse, every, "checkpoint_every")
        resume = self._given["resume"]
        if resume is not None and not isinstance(resume, bool):
            if not isinstance(resume, int) or (resume < 1 and resume != -1):
                self._wrong("resume", must_be("True, False, None, an index from 1, or -1", resume))
            elif not many:
                self._wrong("resume", f"the index {resume} needs multiple_checkpoints=True")
        if most is not None and not many:
            self._wrong("max_checkpoints", "needs multiple_checkpoints=True; without it only the newest is kept")
        cadence = cadence if self._flag("enable_checkpointing") else None
        in_background, on_exception = self._flag("checkpoint_async"), self._flag("checkpoint_on_exception")
        if in_background and cadence is None:
            self._wrong("checkpoint_async", "checkpoints are disabled: leave it out, or enable them")
        if on_exception and cadence is None:
            self._wrong("checkpoint_on_exception", "checkpoints are disabled: leave it out, or enable them")
        trusts = self._flag("trust_checkpoint")
        return CheckpointOptions(cadence, most if many else 1, resume, in_background, trusts, on_exception)

    def _saving(self) -> SavingOptions:
        patience = self._given["patience"]
        by_name = patience if isinstance(patience, Mapping) else {} if patience is None else {"": patience}
        for rule, value in by_name.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                place = f"patience[{rule!r}]" if rule else "patience"
                none = "; for no patience leave it out" if value == -1 else ""
                self._wrong(place, must_be("a whole number from 1", value) + none)
        disabled, safe = self._flag("disable_model_saving"), self._flag("safe_serialization")
        return SavingOptions(disabled, safe, self._shard_size(), patience)

    def _shard_size(self) -> str:
        size = self._given["max_shard_size"]
        match = _SIZE.fullmatch(size) if isinstance(size, str) else None
        if match is None or float(match[1]) == 0:
            self._wrong("max_shard_size", must_be('a size such as "10GB" or "500MB"', size))
        return str(size)

    def _rules(self, section: RuleSection) -> RuleOptions:
        every = self._evaluate() or section.evaluate or CadenceRule.parse("epoch")
        stop_when, log = self._given["stop_when"], self._log_cadence()
        if stop_when is None:
            return RuleOptions(section.savings, every, section.stop_when, log)
        texts = stop_when if isinstance(stop_when, list | tuple) else [stop_when]
        conditions = [self._parsed(StopCondition.parse, text, "stop_when") for text in texts]
        return RuleOptions(section.savings, every, tuple(filter(None, conditions)), log)

    def _log_cadence(self) -> CadenceRule | None:
        """Return the logging cadence, if `log_every` is a text that is not a plain number of steps or epochs."""
        text = self._given["log_every"]
        parse = partial(CadenceRule.parse, logs=True)
        rule = self._parsed(parse, text, "log_every") if isinstance(text, str) else None
        return None if rule is None or _as_interval(rule) is not None else rule

    def _evaluate(self) -> CadenceRule | None:
        """Return the evaluation cadence, or None if the arguments do not give one."""
        steps, text = self._whole("evaluate_every_n_steps", none=True), self._given["evaluate_every"]
        if steps is not None and text is not None:
            self._wrong("evaluate_every", "is given together with evaluate_every_n_steps: give one of them")
        if text is None and steps is None:
            return None
        parse = partial(CadenceRule.parse, evaluates=True)
        return self._parsed(parse, f"{steps} steps" if text is None else text, "evaluate_every")

    def _data(self, config: Config | None) -> DataOptions:
        collate, train, val = map(self._callable, ("collate_fn", "collate_fn_train", "collate_fn_val"))
        for name, given in (("collate_fn_train", train), ("collate_fn_val", val)):
            if collate is not None and given is not None:
                self._wrong(name, "is given together with collate_fn: give collate_fn, or one for each")
        return DataOptions(
            batch_size=config.hps.train_batch_size if config else 1,
            eval_batch_size=config.hps.eval_batch_size if config else 1,
            shuffle=self._flag("shuffle_train"),
            sampler=self._given["sampler"],
            collate_train=collate or train,
            collate_val=collate or val,
            workers=self._whole("dataloader_num_workers", none=True, least=0),
            pin_memory=self._flag("dataloader_pin_memory"),
            drop_last=self._flag("dataloader_drop_last"),
        )

    def _step(self, config: Config | None, monitor: Monitor) -> StepOptions:
        clip = self._given["clip_grad"]
        if clip is not None and (isinstance(clip, bool) or not isinstance(clip, int | float) or not clip > 0):
            self._wrong("clip_grad", must_be("a positive number, or None", clip))
        return StepOptions(
            clip_grad=clip,
            set_to_none=self._flag("set_to_none"),
            place_batches=self._flag("batch_device_placement"),
            prepare_batches=self._flag("prepare_batch"),
            scheduler_per_epoch=config.hps.step_scheduler_per_epoch if config else False,
            through_wrapper=self._flag("safe_mode"),
            measures_norm=monitor.grad_norm,
            repeats=self._flag("safe_steps"),
        )

    def _model(self) -> ModelOptions:
        checkpointing, compiles = self._flag("gradient_checkpointing"), self._flag("compile")
        precision = self._given["mixed_precision"]
        if precision is not None and precision not in PRECISIONS:
            self._wrong("mixed_precision", must_be(f"one of {', '.join(PRECISIONS)}, or None", precision))
        compile_kwargs = self._kwargs("compile_kwargs", "compile", compiles)
        return ModelOptions(
            gradient_checkpointing=checkpointing,
            gradient_checkpointing_kwargs=self._kwargs(
                "gradient_checkpointing_kwargs", "gradient_checkpointing", checkpointing
            ),
            compile_kwargs=(compile_kwargs or {}) if compiles else None,
            mixed_precision=precision,
            logs_preparation=self._flag("enable_prepare_logging"),
        )

    def _kwargs(self, name: str, switch: str, is_on: bool) -> dict[str, Any] | None:
        """Return the keyword arguments of a feature that another argument switches on."""
        value = self._given[name]
        if value is not None and not isinstance(value, Mapping):
            self._wrong(name, must_be("a dictionary, or None", value))
            return None
        if value is not None and not is_on:
            self._wrong(name, f"is given, and {switch} is not: give {switch}=True")
        return None if value is None else dict(value)

    def _loop(self, monitor: Monitor, section: RuleSection, config: Config | None) -> LoopOptions:
        every = self._given["log_every"]
        counted = isinstance(every, int) and not isinstance(every, bool) and (every == -1 or every >= 1)
        if every is not None and not counted and not isinstance(every, str):
            self._wrong("log_every", must_be("a whole number from 1, -1 for every epoch, or None", every))
        names = self._text("train_loss_metric_name"), self._text("val_loss_metric_name")
        apart = any(self._given[name] is not None for name in ("evaluate_every_n_steps", "evaluate_every"))
        apart = apart or section.evaluate is not None
        clean = self._whole("cleanup_cache_every_n_steps", none=True)
        return LoopOptions(
            log=_log_interval(every),
            eval_when_start=self._flag("eval_when_start"),
            eval_when_finish=self._flag("eval_when_finish") and apart,
            train_loss_name=names[0],
            val_loss_name=names[1],
            monitor=monitor,
            clean=None if clean is None else StepInterval(clean),
            sanity_check=self._flag("sanity_check"),
            followed=self._followed(config),
        )

    def _followed(self, config: Config | None) -> FollowedScore | None:
        """Return the score that the scheduler follows. `fit` checks a module's own scheduler."""
        text = self._given["scheduler_metric"]
        if text is not None:
            return self._parsed(FollowedScore.parse, text, "scheduler_metric")
        if config is not None and is_plateau(config.hps.scheduler):
            self._wrong("scheduler_metric", NEEDS_METRIC.format("ReduceLROnPlateau"))
        return None

    def _monitor(self) -> Monitor:
        monitor = self._given["monitor"]
        if isinstance(monitor, Monitor):
            return monitor
        fields = tuple(inspect.signature(Monitor).parameters)
        if not isinstance(monitor, Mapping | None):
            self._wrong("monitor", must_be("a Monitor or a dictionary", monitor))
            return Monitor()
        known = {}
        for name, value in (monitor or {}).items():
            if name in fields:
                known[name] = bool(value)
            else:
                self._wrong(
                    f"monitor.{name}", f"unknown{did_you_mean(str(name), fields)} Allowed are {', '.join(fields)}"
                )
        return Monitor(**known)

    def _tracking(self, section: RuleSection) -> TrackingOptions:
        own = [name for name in self._given if name != "kwargs"]
        location, folder = self._text("logging_dir"), FOLDER
        trackers, problems = choose_trackers(self._given["log_with"], location, self._given["kwargs"], own)
        self._problems += problems
        config = self._given["additional_tracker_config"]
        if config is not None and not isinstance(config, Mapping):
            self._wrong("additional_tracker_config", must_be("a dictionary, or None", config))
        if trackers:
            folder = str(self._resolved("logging_dir", FOLDER, resolved))
            resolve = resolved_address if is_address(location) else resolved
            location = str(self._resolved("logging_dir", location, resolve))
        model_path = self._model_path()
        name = self._given["track_name"] or model_path.resolve().name
        self._problems += (found := name_problems(trackers, name))
        names = frozenset[str]() if found else names_in(model_path, places_of(trackers, location, folder, name))
        for taken in filter(is_taken, sorted(names)):
            text = f"a tracker would write to '{taken}' in model_path, which the training itself writes to"
            self._wrong("logging_dir", f"{text}: give another logging_dir, track_name or run_name")
        if meeting := list(meetings(section.savings, names)):
            self._rule_errors.append(RuleError(meeting))
        return TrackingOptions(trackers, location, folder, name, config or {}, names)

    def _model_path(self) -> Path:
        given = self._given["model_path"]
        if not isinstance(given, str | Path) or not str(given):
            self._wrong("model_path", must_be("a path", given))
            return Path("model")
        path = self._resolved("model_path", given, resolved)
        if path.exists() and not path.is_dir():
            self._wrong("model_path", f"'{given}' is a file: give a folder")
        return path

    def _resolved(self, name: str, given: str | Path, resolve: Callable[[Any], _T]) -> _T:
        """Resolve a path argument, and record a problem if that fails."""
        try:
            return resolve(given)
        except ValueError as error:
            self._wrong(name, str(error))
            return resolve("/")

    def _training_metrics(self) -> dict[str, bool]:
        """Return training metric -> whether greater is better."""
        given = self._given["training_metrics"]
        if not isinstance(given, Mapping | None):
            self._wrong("training_metrics", must_be('a dictionary such as {"kl": "min"}', given))
            return {}
        for name, direction in (given or {}).items():
            place = f"training_metrics[{name!r}]"
            if not isinstance(name, str) or not name.strip():
                self._wrong(place, "its name must be a string, as it is passed to self.log")
            elif name in (TRAIN_LOSS, VALID_LOSS):
                self._wrong(place, "the name is reserved for a loss, which rules know anyway")
            if direction not in ("min", "max"):
                self._wrong(place, must_be('"min" or "max", for which way is better', direction))
        return {str(name): direction == "max" for name, direction in (given or {}).items()}

    def _metrics(self) -> dict[str | None, list[Metric]]:
        """Return dataset -> metrics; the key None means all datasets."""
        given = self._given["metrics"]
        by_dataset = given if isinstance(given, Mapping) else {None: given}
        metrics: dict[str | None, list[Metric]] = {}
        for key, value in by_dataset.items():
            listed = list(value) if isinstance(value, list | tuple) else [] if value is None else [value]
            for metric in listed:
                if not isinstance(metric, Metric):
                    place = "metrics" if key is None else f"metrics[{key!r}]"
                    kind = metric.__name__ if isinstance(metric, type) else type(metric).__name__
                    self._wrong(place, f"{kind} is not a Metric object{_how_to_wrap(metric)}")
            metrics[None if key is None else str(key)] = [metric for metric in listed if isinstance(metric, Metric)]
        return metrics

    def _callbacks(self) -> tuple[Callback, ...]:
        given = self._given["callback"]
        listed = list(given) if isinstance(given, list | tuple) else [] if given is None else [given]
        for callback in listed:
            if not isinstance(callback, Callback):
                hint = ": give an instance, not the class" if isinstance(callback, type) else ""
                self._wrong("callback", f"{must_be('a Callback', callback)}{hint}")
            elif sum(other is callback for other in listed) > 1:
                self._wrong("callback", f"{type(callback).__name__} is given twice, and would be called twice")
                break
        return tuple(listed)


def _as_interval(rule: CadenceRule) -> StepInterval | None:
    """Return a cadence of whole steps, or of every epoch, as an interval; None if it is another one."""
    quantity = rule.cadence.every[0]
    if rule.cadence.after is not None or len(rule.cadence.every) > 1:
        return None
    if quantity.unit == "step":
        return StepInterval(int(quantity.value))
    return StepInterval(None) if quantity.unit == "epoch" and quantity.value == 1 else None


def _log_interval(given: Any) -> StepInterval | None:
    """Return the interval between two logs that `log_every` describes; None if a cadence decides."""
    if not isinstance(given, str):
        return StepInterval(None if given == -1 else given) if isinstance(given, int) else None
    try:
        return _as_interval(CadenceRule.parse(given))
    except RuleError:  # reported where cadences are read
        return None


def _how_to_wrap(metric: Any) -> str:
    if isinstance(metric, type) and issubclass(metric, Metric):
        return ": give an instance, not the class"
    if type(metric).__module__.startswith("torchmetrics"):
        return ': wrap it, TorchMetric("name", metric)'
    return ': wrap it, FunctionMetric("name", function, greater_is_better=...)' if callable(metric) else ""
