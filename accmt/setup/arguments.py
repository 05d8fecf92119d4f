"""Validation of the constructor's arguments: reports every problem at once, before anything happens."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from accmt.callbacks import Callback
from accmt.config.errors import Problem, must_be, raise_problems
from accmt.config.kinds import COUNT, FLAG, FUNCTION, MAPPING, TEXT, Kind, is_number, is_whole
from accmt.config.rules import HELD_OUT, REPLICATES, REPLICATES_DEFAULT, RuleSection, keys_of, read_rules
from accmt.data.loaders import DataOptions
from accmt.files.paths import resolved, resolved_address
from accmt.hyperparameters import Config, ConfigError, HyperParameters, load_config
from accmt.hyperparameters.schedulers import NEEDS_METRIC, is_plateau
from accmt.loop.profiling import ProfileOptions
from accmt.loop.run import LoopOptions
from accmt.loop.step import StepOptions
from accmt.loop.timetable import StepInterval
from accmt.metrics.metric import Metric
from accmt.monitor import Monitor
from accmt.report.live import missing_libraries
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
CLIP_GRAD = float("1")  # compared by identity: a 1.0 that a user gives is another object
_PROFILED = ("record_shapes", "profile_memory", "with_stack", "with_flops", "with_modules")
PRECISIONS = ("no", "fp16", "bf16")
_SIZE = re.compile(r"(?=.*[1-9])\d+(?:\.\d+)?(?:KB|MB|GB|TB)", re.IGNORECASE)
_T = TypeVar("_T")


_COLLATES = ("collate_fn", "collate_fn_train", "collate_fn_val")
_FLAGS = (
    *("enable_checkpointing", "multiple_checkpoints", "checkpoint_async", "checkpoint_on_exception"),
    *("trust_checkpoint", "disable_model_saving", "safe_serialization", "safe_mode", "safe_steps"),
    *("gradient_checkpointing", "compile", "enable_prepare_logging", "set_to_none", "shuffle_train"),
    *("dataloader_pin_memory", "dataloader_drop_last", "batch_device_placement", "prepare_batch"),
    *("eval_when_start", "eval_when_finish", "sanity_check", "destroy_after_training", "quiet", "report"),
)
_COUNTS = ("max_checkpoints", "evaluate_every_n_steps", "cleanup_cache_every_n_steps")
_LIMIT = Kind(
    "a number of batches from 1, a fraction such as 0.1",
    lambda value: COUNT.fits(value) or (isinstance(value, float) and 0 < value <= 1),
)
_POSITIVE = Kind("a positive number", lambda value: is_number(value) and value > 0)
_MAPPINGS = ("gradient_checkpointing_kwargs", "compile_kwargs", "additional_tracker_config")
_TEXTS = ("logging_dir", "train_loss_metric_name", "val_loss_metric_name")
_KINDS = {
    **dict.fromkeys(_FLAGS, FLAG),
    **dict.fromkeys(_COUNTS, COUNT.or_none()),
    **dict.fromkeys(_MAPPINGS, MAPPING.or_none()),
    **dict.fromkeys(_TEXTS, TEXT),
    **dict.fromkeys(_COLLATES, FUNCTION.or_none()),
    "seed": Kind("a whole number from 0 to 2**32 - 1", lambda value: is_whole(value, 0) and value < 2**32).or_none(),
    "replicates": REPLICATES,
    "dataloader_num_workers": Kind("a whole number from 0", lambda value: is_whole(value, 0)).or_none(),
    "ema_decay": Kind("a number between 0 and 1", lambda value: is_number(value) and 0 < value < 1).or_none(),
    "clip_grad": _POSITIVE.or_none(),
    "clip_grad_value": _POSITIVE.or_none(),
    "grad_accumulation_steps": Kind(
        "a whole number from 1, a table such as {0: 8, 5: 2} (epoch, from 0 -> batches)",
        lambda value: COUNT.fits(value) or _is_table(value),
    ).or_none(),
    "profile": Kind(
        f'True, False, a dictionary of "steps", such as (10, 20), the first from 2, and flags: {", ".join(_PROFILED)}',
        lambda value: _is_profile(value),
    ).or_none(),
    **dict.fromkeys(("limit_train_batches", "limit_val_batches"), _LIMIT.or_none()),
    "mixed_precision": Kind(f"one of {', '.join(PRECISIONS)}", lambda value: value in PRECISIONS).or_none(),
    "monitor": Kind("a Monitor or a dictionary", lambda value: isinstance(value, Monitor | Mapping | None)),
    "restore_best": Kind("True, False, or the name of a rule", lambda value: FLAG.fits(value) or TEXT.fits(value)),
    "held_out": HELD_OUT,
    "max_shard_size": Kind(
        'a size such as "10GB" or "500MB"', lambda value: isinstance(value, str) and bool(_SIZE.fullmatch(value))
    ),
    "log_every": Kind(
        "a whole number from 1, -1 for every epoch",
        lambda value: isinstance(value, str) or is_whole(value, 1) or (is_whole(value) and value == -1),
    ).or_none(),
}


class ArgumentCheck:
    """Reads a trainer's arguments by name and collects what is wrong with them."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self._given = dict(arguments)
        self._problems: list[Problem] = []
        self._rule_errors: list[RuleError] = []

    def options(self) -> Options:
        """Return the options that the arguments describe.

        Raises:
            ConfigError: With all problems.
            RuleError: If the only problems are in rule texts.
        """
        config, given = self._config(), self._given
        self._check_kinds()
        section, monitor = self._section(config), self._monitor()
        checkpoint, saving = self._checkpoint(section), self._saving()
        evaluate = self._evaluate() or section.evaluate
        interval, cadence = self._log()
        options = Options(
            hps=config.hps,
            checkpoint=checkpoint,
            saving=saving,
            rules=self._rules(section, evaluate, cadence),
            data=self._data(config),
            model=self._model(),
            step=self._step(config, monitor),
            loop=self._loop(monitor, config, interval, evaluates_apart=evaluate is not None),
            tracking=self._tracking(section),
            accumulation=given["grad_accumulation_steps"] or 1,
            training_metrics=self._training_metrics(),
            metrics=self._metrics(),
            callbacks=self._callbacks(),
            destroy=given["destroy_after_training"],
            quiet=given["quiet"],
            report=self._report(),
            held_out=keys_of(given["held_out"]) if given["held_out"] is not None else section.held_out,
            seed=given["seed"],
            profile=_profile(given["profile"]),
            given=given,
        )
        self._raise()
        return options

    def _raise(self) -> None:
        if self._rule_errors and not self._problems:
            raise RuleError(problem for error in self._rule_errors for problem in error.problems)
        problems = self._problems + [Problem("", str(error)) for error in self._rule_errors]
        raise_problems(problems, "Trainer(...)")

    def _wrong(self, name: str, text: str) -> None:
        self._problems.append(Problem(name, text))

    def _check_kinds(self) -> None:
        """Report arguments of a wrong kind, and set them to None, so that all others can be checked too."""
        for name, value in self._given.items():
            if name in _KINDS and (problems := _KINDS[name].problems(name, value)):
                self._problems += problems
                self._given[name] = None

    def _needs(self, name: str, is_met: bool, text: str) -> None:
        """Report an argument that is given although something that it needs is not."""
        if not is_met and self._given[name] is not None and self._given[name] is not False:
            self._wrong(name, text)

    def _parsed(self, parse: Callable[[str], _T], text: Any, name: str) -> _T | None:
        if not isinstance(text, str):
            such = f' such as "{text} steps"' if name.endswith("_every") and is_whole(text, 1) else ""
            self._wrong(name, must_be(f"a string{such}", text))
            return None
        try:
            return parse(text)
        except RuleError as error:
            self._rule_errors.append(error)
            return None

    def _config(self) -> Config:
        try:
            config = load_config(self._given["hps_config"])
        except ConfigError as error:
            self._wrong_in_file(error.problems)
            return Config(HyperParameters())
        self._wrong_in_file(config.problems())
        return config

    def _wrong_in_file(self, problems: Iterable[Problem]) -> None:
        """Record problems of the configuration, with its file name if it came from a file."""
        given = self._given["hps_config"]
        place = f"{given}: " if isinstance(given, str | Path) else ""
        self._problems += [Problem(f"{place}{problem.path}".strip(": "), problem.text) for problem in problems]

    def _section(self, config: Config) -> RuleSection:
        """Return the rules of the configuration."""
        try:
            return read_rules(config.rules)
        except ConfigError as error:
            self._wrong_in_file(error.problems)
            return RuleSection()

    def _report(self) -> bool:
        if self._given["report"] and (missing := missing_libraries()):
            self._wrong("report", f"needs {' and '.join(missing)}: pip install {' '.join(missing)}")
        return bool(self._given["report"])

    def _checkpoint(self, section: RuleSection) -> CheckpointOptions:
        given, every, resume = self._given, self._given["checkpoint_every"], self._given["resume"]
        many, most = given["multiple_checkpoints"], given["max_checkpoints"]
        if every == CHECKPOINT_EVERY and section.says_checkpoint:
            cadence = section.checkpoint
        else:
            cadence = None if every is None else self._parsed(CadenceRule.parse, every, "checkpoint_every")
        if resume is not None and not isinstance(resume, bool):
            if not is_whole(resume, 1) and resume != -1:
                self._wrong("resume", must_be("True, False, None, an index from 1, or -1", resume))
            elif not many:
                self._wrong("resume", f"the index {resume} needs multiple_checkpoints=True")
        self._needs("max_checkpoints", many, "needs multiple_checkpoints=True; without it only the newest is kept")
        cadence = cadence if given["enable_checkpointing"] else None
        for name in ("checkpoint_async", "checkpoint_on_exception"):
            self._needs(name, cadence is not None, "checkpoints are disabled: leave it out, or enable them")
        return CheckpointOptions(
            every=cadence,
            keep=most if many else 1,
            resume=resume,
            in_background=given["checkpoint_async"],
            trusts=given["trust_checkpoint"],
            on_exception=given["checkpoint_on_exception"],
        )

    def _saving(self) -> SavingOptions:
        given, patience = self._given, self._given["patience"]
        by_name = patience if isinstance(patience, Mapping) else {} if patience is None else {"": patience}
        for rule, value in by_name.items():
            if not COUNT.fits(value):
                place = f"patience[{rule!r}]" if rule else "patience"
                none = "; for no patience leave it out" if value == -1 else ""
                self._wrong(place, must_be(COUNT.wanted, value) + none)
        text = "disable_model_saving is given, so that there will be no model to restore: leave one of them out"
        self._needs("restore_best", not given["disable_model_saving"], text)
        written = given["disable_model_saving"], given["safe_serialization"], given["max_shard_size"]
        return SavingOptions(*written, patience, given["restore_best"])

    def _rules(self, section: RuleSection, evaluate: CadenceRule | None, log: CadenceRule | None) -> RuleOptions:
        stops = section.stop_when
        if self._given["stop_when"] is not None:
            parsed = (
                self._parsed(StopCondition.parse, text, "stop_when") for text in as_list(self._given["stop_when"])
            )
            stops = tuple(stop for stop in parsed if stop is not None)
        given = self._given["replicates"]
        replicates = section.replicates if given == REPLICATES_DEFAULT and section.replicates else given
        return RuleOptions(section.savings, evaluate or CadenceRule.parse("epoch"), stops, log, replicates)

    def _log(self) -> tuple[StepInterval | None, CadenceRule | None]:
        """Return how often to log: the interval if it is one of whole steps or every epoch, else the cadence."""
        every = self._given["log_every"]
        if not isinstance(every, str):
            return None if every is None else StepInterval(None if every == -1 else every), None
        rule = self._parsed(partial(CadenceRule.parse, logs=True), every, "log_every")
        interval = None if rule is None else _as_interval(rule)
        return interval, rule if interval is None else None

    def _evaluate(self) -> CadenceRule | None:
        """Return the evaluation cadence, or None if the arguments do not give one."""
        steps, text = self._given["evaluate_every_n_steps"], self._given["evaluate_every"]
        if steps is not None and text is not None:
            self._wrong("evaluate_every", "is given together with evaluate_every_n_steps: give one of them")
        if text is None and steps is None:
            return None
        parse = partial(CadenceRule.parse, evaluates=True)
        return self._parsed(parse, f"{steps} steps" if text is None else text, "evaluate_every")

    def _data(self, config: Config) -> DataOptions:
        given = self._given
        collate, train, val = (given[name] for name in _COLLATES)
        for name in _COLLATES:
            self._problems += function_problems(name, given[name], ("samples",))
        for name in _COLLATES[1:]:
            self._needs(name, collate is None, "is given together with collate_fn: give collate_fn, or one for each")
        return DataOptions(
            batch_size=config.hps.train_batch_size,
            eval_batch_size=config.hps.eval_batch_size,
            shuffle=given["shuffle_train"],
            sampler=given["sampler"],
            collate_train=collate or train,
            collate_val=collate or val,
            workers=given["dataloader_num_workers"],
            pin_memory=given["dataloader_pin_memory"],
            drop_last=given["dataloader_drop_last"],
            limit_train=given["limit_train_batches"],
            limit_val=given["limit_val_batches"],
        )

    def _step(self, config: Config, monitor: Monitor) -> StepOptions:
        given, value = self._given, self._given["clip_grad_value"]
        if value is not None and given["clip_grad"] is not None and given["clip_grad"] is not CLIP_GRAD:
            self._wrong("clip_grad_value", "is given together with clip_grad: give one of them")
        return StepOptions(
            clip_grad=given["clip_grad"] if value is None else None,
            clip_value=value,
            set_to_none=given["set_to_none"],
            place_batches=given["batch_device_placement"],
            prepare_batches=given["prepare_batch"],
            scheduler_per_epoch=config.hps.step_scheduler_per_epoch,
            through_wrapper=given["safe_mode"],
            measures_norm=monitor.grad_norm,
            repeats=given["safe_steps"],
            ema_decay=given["ema_decay"],
        )

    def _model(self) -> ModelOptions:
        given = self._given
        options = {"compile": "compile_kwargs", "gradient_checkpointing": "gradient_checkpointing_kwargs"}
        for switch, name in options.items():
            self._needs(name, given[switch], f"is given, and {switch} is not: give {switch}=True")
        return ModelOptions(
            gradient_checkpointing=given["gradient_checkpointing"],
            gradient_checkpointing_kwargs=given["gradient_checkpointing_kwargs"],
            compile_kwargs=(given["compile_kwargs"] or {}) if given["compile"] else None,
            mixed_precision=given["mixed_precision"],
            logs_preparation=given["enable_prepare_logging"],
        )

    def _loop(
        self, monitor: Monitor, config: Config, log: StepInterval | None, *, evaluates_apart: bool
    ) -> LoopOptions:
        given, clean = self._given, self._given["cleanup_cache_every_n_steps"]
        return LoopOptions(
            log=log,
            eval_when_start=given["eval_when_start"],
            eval_when_finish=given["eval_when_finish"] and evaluates_apart,
            train_loss_name=given["train_loss_metric_name"],
            val_loss_name=given["val_loss_metric_name"],
            monitor=monitor,
            clean=None if clean is None else StepInterval(clean),
            sanity_check=given["sanity_check"],
            followed=self._followed(config),
        )

    def _followed(self, config: Config) -> FollowedScore | None:
        """Return the score that the scheduler follows. `fit` checks a module's own scheduler."""
        text = self._given["scheduler_metric"]
        if text is not None:
            return self._parsed(FollowedScore.parse, text, "scheduler_metric")
        if is_plateau(config.hps.scheduler):
            self._wrong("scheduler_metric", NEEDS_METRIC.format("ReduceLROnPlateau"))
        return None

    def _monitor(self) -> Monitor:
        given = self._given["monitor"]
        if isinstance(given, Monitor):
            return given
        try:
            return Monitor(**{str(name): value for name, value in (given or {}).items()})
        except ConfigError as error:
            self._problems += [replace(problem, path=f"monitor.{problem.path}") for problem in error.problems]
            return Monitor()

    def _tracking(self, section: RuleSection) -> TrackingOptions:
        own = [name for name in self._given if name != "kwargs"]
        location, folder = self._given["logging_dir"] or FOLDER, FOLDER
        trackers, problems = choose_trackers(self._given["log_with"], location, self._given["kwargs"], own)
        self._problems += problems
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
        return TrackingOptions(trackers, location, folder, name, self._given["additional_tracker_config"] or {}, names)

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
            listed = as_list(value)
            for metric in listed:
                if not isinstance(metric, Metric):
                    place = "metrics" if key is None else f"metrics[{key!r}]"
                    kind = metric.__name__ if isinstance(metric, type) else type(metric).__name__
                    self._wrong(place, f"{kind} is not a Metric object{_how_to_wrap(metric)}")
            metrics[None if key is None else str(key)] = [metric for metric in listed if isinstance(metric, Metric)]
        return metrics

    def _callbacks(self) -> tuple[Callback, ...]:
        listed = as_list(self._given["callback"])
        for callback in listed:
            if not isinstance(callback, Callback):
                hint = ": give an instance, not the class" if isinstance(callback, type) else ""
                self._wrong("callback", f"{must_be('a Callback', callback)}{hint}")
            elif sum(other is callback for other in listed) > 1:
                self._wrong("callback", f"{type(callback).__name__} is given twice, and would be called twice")
                break
        return tuple(listed)


def _profile(given: Any) -> ProfileOptions | None:
    flags = dict(given) if isinstance(given, Mapping) else {}
    first, last = flags.pop("steps", (7, 11))
    return None if given is None or given is False else ProfileOptions(first, last, flags)


def _is_profile(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return isinstance(value, bool)
    steps = value.get("steps", (7, 11))
    is_range = isinstance(steps, tuple | list) and len(steps) == 2 and all(is_whole(step, 2) for step in steps)
    flags = all(name == "steps" or (name in _PROFILED and isinstance(flag, bool)) for name, flag in value.items())
    return is_range and steps[0] <= steps[1] and flags


def _is_table(value: Any) -> bool:
    """Return whether a value says the batches per step by epoch, from epoch 0 on."""
    is_table = isinstance(value, Mapping) and 0 in value
    return is_table and all(is_whole(epoch, 0) and COUNT.fits(batches) for epoch, batches in value.items())


def _as_interval(rule: CadenceRule) -> StepInterval | None:
    """Return a cadence of whole steps, or of every epoch, as an interval; None if it is another one."""
    quantity = rule.cadence.every[0]
    if rule.cadence.after is not None or len(rule.cadence.every) > 1:
        return None
    if quantity.unit == "step":
        return StepInterval(int(quantity.value))
    return StepInterval(None) if quantity.unit == "epoch" and quantity.value == 1 else None


def as_list(given: Any) -> list[Any]:
    """Return the items of an argument that may be one, several, or None."""
    return list(given) if isinstance(given, list | tuple) else [] if given is None else [given]


def _how_to_wrap(metric: Any) -> str:
    if isinstance(metric, type) and issubclass(metric, Metric):
        return ": give an instance, not the class"
    if type(metric).__module__.startswith("torchmetrics"):
        return ': wrap it, TorchMetric("name", metric)'
    if isinstance(metric, str):
        return f": give FunctionMetric({metric!r}, function, greater_is_better=...)"
    return ': wrap it, FunctionMetric("name", function, greater_is_better=...)' if callable(metric) else ""
