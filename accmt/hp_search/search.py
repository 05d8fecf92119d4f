"""`HyperParameterSearch`: the documented methods, which check their arguments and assemble the parts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, cast

from torch.utils.data import Dataset

from accmt.checkpoint.rng import random_state
from accmt.config.errors import ConfigError, Problem, must_be, raise_problems, suggests
from accmt.config.kinds import COUNT
from accmt.display.display import display_of
from accmt.distributed.process_group import join_processes, leave_processes
from accmt.files.paths import resolved
from accmt.hp_search.copies import Copies, Datasets
from accmt.hp_search.declaration import read_space
from accmt.hp_search.objective import DEFAULT, Direction, FunctionObjective, SearchObjective, rule_objective
from accmt.hp_search.run import SCHEDULERS, Search, run_trials
from accmt.hp_search.study import SharedStudy, StudyOptions, quiet, study_problems
from accmt.hp_search.trial import PLACE, Experiment, Modules
from accmt.hyperparameters import HyperParameters
from accmt.hyperparameters.schedulers import SchedulerChoice
from accmt.loop.exclusive import exclusive
from accmt.metrics.metric import Metric
from accmt.module import AcceleratorModule
from accmt.rehearsal.runs import role_in_rehearsal
from accmt.rules import Length, RuleError
from accmt.seed_run import seed_of_run
from accmt.setup.arguments import ArgumentCheck
from accmt.setup.inputs import check_fit, facts_of
from accmt.setup.options import Options
from accmt.tracebacks import concise
from accmt.tracking.tracker_arguments import places_of
from accmt.trainer import Trainer

if TYPE_CHECKING:
    from optuna import Study
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage


class _Unsaid(str):
    """A default that can be distinguished from the same text given by the user."""

    __slots__ = ()


_MINIMIZE = cast(Literal["minimize"], _Unsaid("minimize"))


class HyperParameterSearch:
    """Searches for good hyperparameters: each trial is a training with other values, which Optuna chooses.

    Without `set_parameters`, the learning rate is searched and all other parameters have that method's defaults.

    By default a trial leaves no files: its folder is temporary, and it saves no models and no checkpoints. With
    `model_path=`, trial n uses the folder `model_path/trial-0000n`; `disable_model_saving=False` or
    `enable_checkpointing=True` then turn savings or checkpoints on.

    Args:
        get_module_fn: Makes a new module, without arguments: a function, or the module's class.
        train_dataset: The training data.
        val_dataset: The validation data: a dataset, a list (keys "0", "1", ...), or a dictionary of datasets.
        metrics: Metrics for all validation datasets (one or a list), or by dataset (a dictionary of these).
        **trainer_kwargs: Arguments of `Trainer`, except `hps_config` and `resume`. Each trial gets copies of them and
            of the metrics, as they are when `optimize` is called: what a callback, sampler or metric collects in a
            trial affects neither other trials nor the original object. An object with a `__deepcopy__` that returns
            `self` is shared by all trials. Datasets are shared; their random generators and the contents of their
            `state_dict` are restored before each trial.

    Raises:
        ConfigError: With all problems of the arguments.
        RuleError: If the only problems are in rule texts.
    """

    @concise
    def __init__(
        self,
        get_module_fn: Callable[[], AcceleratorModule],
        train_dataset: Dataset[Any],
        val_dataset: Dataset[Any] | list[Dataset[Any]] | dict[str, Dataset[Any]],
        metrics: Metric | list[Metric] | dict[Any, Metric | list[Metric]] | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        problems = _constructor_problems(get_module_fn, trainer_kwargs)
        arguments = {key: value for key, value in trainer_kwargs.items() if key not in ("hps_config", "resume")}
        self._options = _checked({**arguments, "metrics": metrics}, problems)
        self._get_module = get_module_fn
        self._train_dataset, self._val_dataset = train_dataset, val_dataset
        tracking = self._options.tracking
        if places_of(tracking.trackers, tracking.logging_dir, tracking.folder, ""):
            arguments["logging_dir"] = tracking.logging_dir
        path = arguments.pop("model_path", None)
        self._model_path = None if path is None else resolved(path)
        arguments.pop("callback", None)
        alone = {"destroy_after_training": False, "resume": False, "metrics": metrics}
        defaults = {"disable_model_saving": True, "enable_checkpointing": False, "quiet": True}
        self._arguments = {**defaults, **arguments, **alone}
        self.set_parameters()

    @suggests("set_parameters(...)")
    def set_parameters(  # noqa: PLR0913  (the documented arguments)
        self,
        *,
        train_batch_size: int | list[int] | tuple[int, ...] = 1,
        epochs: int | list[int] | tuple[int, ...] = 1,
        max_steps: int | list[int] | tuple[int, ...] | None = None,
        learning_rate: float | list[float] | tuple[float, ...] = [1e-3, 1e-7],  # noqa: B006  (documented, only read)
        beta1: float | list[float] | tuple[float, ...] = 0.9,
        beta2: float | list[float] | tuple[float, ...] = 0.999,
        eps: float | list[float] | tuple[float, ...] = 1e-8,
        weight_decay: float | list[float] | tuple[float, ...] = 0.01,
        scheduler: SchedulerChoice | dict[str, SchedulerChoice | None] | None = None,
        warmup_ratio: float | list[float] | tuple[float, ...] = 0.1,
        step_scheduler_per_epoch: bool = False,
        optimizer: Literal["AdamW", "Adam"] = "AdamW",
        eval_batch_size: int | None = None,
    ) -> None:
        """Declare what to try. A single value is fixed, a list is a range, a tuple is choices.

        A range `[low, high]` includes both ends, in either order. Its scale is logarithmic for the learning rate and
        linear for all others.

        Args:
            train_batch_size: Samples per batch on each process. Here a list also means choices.
            epochs: Number of passes over the training data.
            max_steps: Number of optimizer steps; overrides `epochs`.
            learning_rate: The learning rate.
            beta1: The first beta of Adam.
            beta2: The second beta of Adam.
            eps: The epsilon of Adam.
            weight_decay: The weight decay.
            scheduler: One of `Scheduler`, or a dictionary of label -> scheduler to choose from; None in it means a
                constant learning rate. Give one that needs arguments as `functools.partial(...)`.
            warmup_ratio: The share of the training to warm up; used only by schedulers that have a warm-up.
            step_scheduler_per_epoch: Let the scheduler count epochs.
            optimizer: "AdamW" or "Adam".
            eval_batch_size: Samples per batch of evaluations on each process; None for the training batch size.

        Raises:
            ConfigError: With all problems.
        """
        given = dict(locals())
        del given["self"]
        self._space = read_space(given)

    @suggests("optimize(...)")
    def optimize(  # noqa: PLR0913  (the documented arguments, and where the study is kept)
        self,
        best_metric_fn: Callable[[dict[str, dict[str, float]]], Any] | None = None,
        direction: Literal["maximize", "minimize"] = _MINIMIZE,
        n_trials: int = 10,
        *,
        objective: str | None = None,
        storage: str | BaseStorage | None = None,
        study_name: str | None = None,
        load_if_exists: bool = False,
        total_trials: int | None = None,
        sampler: BaseSampler | None = None,
        pruner: BasePruner | None = None,
    ) -> Study:
        """Run trials, one after another.

        Without `best_metric_fn` and `objective` the objective is `best_valid_loss`. The value of a trial is the best of
        its evaluations; with `best_metric_fn` it is that of its last evaluation. After every evaluation the value is
        reported to the study, and the pruner decides whether the trial continues.

        A trial that raises is recorded in the study as failed, with its error, and the search continues. Errors that do
        not depend on the values (a wrong module, rule or dataset) end the search. All trials start with the random
        state at the time of the call, so that they differ only in their values.

        Args:
            best_metric_fn: Computes a number from {dataset: {metric: value}}, with `valid_loss` among the metrics.
            direction: Which way the number is better; for a rule it follows from the metric.
            n_trials: The maximum number of trials that this call runs.
            objective: A rule with one objective, such as `best_accuracy@dev`.
            storage: Where to keep the study: the URL of a database, such as sqlite:///search.db, or an Optuna storage.
                None for memory.
            study_name: The name of the study in the storage.
            load_if_exists: Continue the study if the storage already has it, also together with other machines.
            total_trials: Stop when the study has this many complete or pruned trials, over all calls and machines.
            sampler: An Optuna sampler; None for Optuna's default (TPE).
            pruner: An Optuna pruner; None to run every trial to its end.

        Returns:
            The study. With several processes, all but the main one get a copy of it in memory.

        Raises:
            ConfigError: With all problems that can be found before the first trial.
            RuleError: If the objective is wrong.
            Busy: If a training, an evaluation or another search runs in this process.
            ImportError: If Optuna is not installed.
        """
        options = StudyOptions(storage, study_name, load_if_exists, sampler, pruner)
        _check_call(best_metric_fn, objective, direction, options, {"n_trials": n_trials, "total_trials": total_trials})
        if role_in_rehearsal() is not None:
            raise RuntimeError("a search cannot be rehearsed: rehearse one training, with fixed hyperparameters")
        with exclusive("optimize"):
            return self._optimize(options, best_metric_fn, objective, direction, n_trials, total_trials)

    def _optimize(
        self,
        options: StudyOptions,
        best_metric_fn: Callable[..., Any] | None,
        objective: str | None,
        direction: Direction,
        n_trials: int,
        total_trials: int | None,
    ) -> Study:
        accelerator = join_processes(self._options.model.mixed_precision)
        try:
            with quiet():
                random = random_state(accelerator.device)
                modules = Modules(self._get_module)
                target = self._objective(modules.peek(), best_metric_fn, objective, direction)
                study = SharedStudy(options, self._space, target.direction, target.text)
                search = Search(
                    experiment=self._experiment(modules, target),
                    copies=self._copies(),
                    space=self._space,
                    study=study,
                    display=display_of(is_main=accelerator.is_main_process, quiet=False),
                    device=accelerator.device,
                    random=random,
                )
                run_trials(search, n_trials, total_trials)
                return study.everywhere()
        finally:
            if self._options.destroy:
                leave_processes()

    def _objective(
        self, module: AcceleratorModule, function: Callable[..., Any] | None, rule: str | None, direction: Direction
    ) -> SearchObjective:
        """Return the objective, once the module and the data have been checked."""
        datasets = check_fit(self._options, module, self._train_dataset, self._val_dataset)
        if function is None:
            said = None if isinstance(direction, _Unsaid) else direction
            # Trials differ in length; this placeholder only satisfies the check.
            facts = facts_of(self._options.metrics, tuple(datasets), Length(1, 1, 1), held_out=self._options.held_out)
            return rule_objective(rule or DEFAULT, said, facts)
        if not datasets:
            text = "is missing: best_metric_fn needs the values of evaluations"
            raise ConfigError([Problem("val_dataset", text)], PLACE)
        return FunctionObjective(function, direction)

    def _experiment(self, modules: Modules, objective: SearchObjective) -> Experiment:
        data = self._train_dataset, self._val_dataset
        return Experiment(modules, *data, Datasets(self._datasets()), objective, self._model_path)

    def _copies(self) -> Copies:
        given = {**self._arguments, "callback": list(self._options.callbacks), SCHEDULERS: self._space.schedulers}
        return Copies(given, self._datasets())

    def _datasets(self) -> dict[str, Any]:
        given = self._val_dataset
        several = (
            given if isinstance(given, Mapping) else dict(enumerate(given if isinstance(given, list) else [given]))
        )
        return {"train_dataset": self._train_dataset, **{f"val_dataset[{key!r}]": one for key, one in several.items()}}


def _checked(arguments: Mapping[str, Any], problems: list[Problem]) -> Options:
    """Check the arguments of the trainers and return their options. The hyperparameters in them belong to no trial.

    Raises:
        ConfigError, RuleError: With all problems, including those found before.
    """
    with_path = {"model_path": "trial", **arguments}
    bound = inspect.signature(Trainer).bind(HyperParameters(), **with_path)
    bound.apply_defaults()
    try:
        options = ArgumentCheck(bound.arguments).options()
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems], PLACE) from None
    except RuleError as error:
        if not problems:
            raise
        raise ConfigError([*problems, Problem("", str(error))], PLACE) from None
    raise_problems(problems, PLACE)
    return options


def _constructor_problems(get_module_fn: Any, arguments: Mapping[str, Any]) -> list[Problem]:
    problems = []
    if isinstance(get_module_fn, AcceleratorModule):
        kind = type(get_module_fn).__name__
        problems.append(
            Problem("get_module_fn", f"is a {kind}: every trial needs a new one, give the class or a function")
        )
    elif not callable(get_module_fn):
        problems.append(Problem("get_module_fn", must_be("a function that makes a module", get_module_fn)))
    if seed_of_run() is not None:
        problems.append(Problem("", "a search does not run under accmt seeds: train its best hyperparameters there"))
    if "hps_config" in arguments:
        problems.append(
            Problem("hps_config", "the search chooses the hyperparameters: declare them with set_parameters")
        )
    if arguments.get("resume") not in (None, False):
        text = "a trial starts from scratch: to continue a search, "
        text += "give optimize a storage, a study_name and load_if_exists"
        problems.append(Problem("resume", text))
    if arguments.get("model_path") is None:
        for name, value in (("disable_model_saving", False), ("enable_checkpointing", True)):
            if arguments.get(name) is value:
                problems.append(Problem(name, f"{value} needs model_path: the folder of a trial is temporary"))
    return problems


def _check_call(
    function: Any, objective: Any, direction: Any, options: StudyOptions, counts: Mapping[str, Any]
) -> None:
    """Check the arguments of `optimize` as far as possible without module and data.

    Raises:
        ConfigError: With all problems.
        ImportError: If Optuna is not installed.
    """
    problems = []
    if function is not None and not callable(function):
        hint = ": a rule belongs in objective=" if isinstance(function, str) else ""
        problems.append(Problem("best_metric_fn", must_be("a function, or None", function) + hint))
    if objective is not None and not isinstance(objective, str):
        hint = ": a function belongs in best_metric_fn=" if callable(objective) else ""
        problems.append(Problem("objective", must_be("a rule, or None", objective) + hint))
    if function is not None and objective is not None:
        problems.append(Problem("objective", "is given together with best_metric_fn: give one of them"))
    if direction not in ("minimize", "maximize"):
        problems.append(Problem("direction", must_be("'minimize' or 'maximize'", direction)))
    for name, count in counts.items():
        if count is not None or name != "total_trials":
            problems += COUNT.problems(name, count)
    problems += study_problems(options)
    raise_problems(problems, "optimize(...)")
