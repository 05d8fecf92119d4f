"""The study: the only module that uses Optuna, which is imported when it is needed.

Only the main process holds the study; it broadcasts results to the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from accelerate import PartialState

from accmt.config.errors import ConfigError, Problem, must_be, raise_problems
from accmt.config.kinds import FLAG, TEXT
from accmt.distributed.collective import from_main
from accmt.files.paths import resolved_address
from accmt.hp_search.objective import Direction
from accmt.hp_search.space import Choices, Fixed, Parameter, Range, Space

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

    Storage: TypeAlias = str | BaseStorage

_OBJECTIVE = "objective"
_LONGEST = 10_000  # characters of a traceback: a database column may be limited to 64 KiB
_SOURCE = "optimize(...)"


class TrialState(StrEnum):
    """Final state of a trial."""

    COMPLETE = "complete"
    PRUNED = "pruned"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class TrialOutcome:
    """Outcome of a trial: its value if complete; if failed, the error and its traceback."""

    state: TrialState
    value: float | None = None
    error: str = ""
    details: str = ""


@dataclass(frozen=True, slots=True)
class Asked:
    """A trial to run: its number in the study, and the values to try."""

    number: int
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class StudyOptions:
    """Options of the study: storage, name, how to sample values and how to prune trials."""

    storage: Storage | None
    name: str | None
    load_if_exists: bool
    sampler: BaseSampler | None
    pruner: BasePruner | None


def study_problems(options: StudyOptions) -> list[Problem]:
    """Check the options on their own, before the storage is opened.

    Raises:
        ImportError: If Optuna is not installed.
    """
    optuna = load_optuna()
    problems = []
    base = optuna.storages.BaseStorage
    if options.storage is not None and not isinstance(options.storage, str | base):
        wanted = "the address of a database, such as 'sqlite:///search.db', or a storage of Optuna"
        problems.append(Problem("storage", must_be(wanted, options.storage)))
    elif isinstance(options.storage, str) and "://" not in options.storage:
        text = f"{options.storage!r} is not the address of a database: a file is 'sqlite:///{options.storage}'"
        problems.append(Problem("storage", text))
    problems += TEXT.or_none().problems("study_name", options.name)
    problems += FLAG.problems("load_if_exists", options.load_if_exists)
    if options.load_if_exists is True and (options.storage is None or options.name is None):
        problems.append(Problem("load_if_exists", "needs storage and study_name: they say which study to continue"))
    for name, value, kind in (
        ("sampler", options.sampler, optuna.samplers.BaseSampler),
        ("pruner", options.pruner, optuna.pruners.BasePruner),
    ):
        if value is not None and not isinstance(value, kind):
            hint = ": give an instance, not the class" if isinstance(value, type) else ""
            problems.append(Problem(name, must_be(f"a {name} of Optuna, or None", value) + hint))
    return problems


def load_optuna() -> Any:
    """Import Optuna.

    Raises:
        ImportError: If it is not installed; the message says what to do.
    """
    try:
        import optuna
    except ImportError as error:
        text = "HyperParameterSearch needs Optuna, which is not installed: pip install optuna"
        raise ImportError(text) from error
    return optuna


@contextmanager
def quiet() -> Iterator[None]:
    """Let Optuna log only warnings; its level is restored afterwards."""
    logging = load_optuna().logging
    level = logging.get_verbosity()
    logging.set_verbosity(max(level, logging.WARNING))
    try:
        yield
    finally:
        logging.set_verbosity(level)


class SharedStudy:
    """A study shared by all processes. Call `ask`, `report`, `tell` and `everywhere` on all; the results agree.

    Args:
        options: The options of the study.
        space: The search space.
        direction: Which way is better.
        objective: A text that identifies the objective.

    Raises:
        ConfigError: If the storage cannot be used, or its study belongs to another search.
    """

    def __init__(self, options: StudyOptions, space: Space, direction: Direction, objective: str) -> None:
        self._space = space
        self._study: Any = None  # the Study on the main process, None on the others
        self._trial: Trial | None = None
        self._direction = direction

        def opened() -> str:
            self._study = _open(options, direction)
            _check(self._study, space, direction, objective)
            self._study.set_user_attr(_OBJECTIVE, objective)
            return str(self._study.study_name)

        self.name = from_main(opened)

    def ask(self, total: int | None) -> Asked | None:
        """Return the next trial, or None if the study has `total` complete or pruned trials."""
        return from_main(partial(self._ask, total))

    def report(self, evaluation: int, measure: Callable[[], float]) -> bool:
        """Record the value of an evaluation, measured on the main process, and return whether to prune the trial."""

        def reported() -> bool:
            assert self._trial is not None
            self._trial.report(measure(), evaluation)
            return bool(self._trial.should_prune())

        return from_main(reported)

    def tell(self, outcome: TrialOutcome) -> None:
        """Record how the trial ended."""
        from_main(partial(self._tell, outcome))

    def abandon(self, error: BaseException) -> None:
        """Record the current trial as failed, without communicating with other processes."""
        if self._trial is not None:
            with suppress(Exception):  # the error that ends the search is being raised and must not be hidden
                self._tell(
                    TrialOutcome(TrialState.FAILED, error=f"the search was ended: {type(error).__name__}: {error}")
                )

    def trials(self) -> list[FrozenTrial]:
        """Return all trials of the study, including those of other machines; none if not on the main process."""
        return [] if self._study is None else self._study.get_trials()

    def everywhere(self) -> Study:
        """Return the study on the main process, and a copy in memory on the others, for reading only."""
        trials = from_main(self.trials)
        study: Study = self._study
        if not PartialState().is_main_process:
            study = load_optuna().create_study(study_name=self.name, direction=self._direction)
            study.add_trials(trials)
        return study

    def _ask(self, total: int | None) -> Asked | None:
        states = load_optuna().trial.TrialState
        if total is not None and len(self._study.get_trials(False, (states.COMPLETE, states.PRUNED))) >= total:
            return None
        self._trial = self._study.ask()
        values = self._space.sample(partial(_suggest, self._trial))
        self._trial.set_user_attr("hyperparameters", self._space.hyperparameters(values).to_dict())
        return Asked(self._trial.number, values)

    def _tell(self, outcome: TrialOutcome) -> None:
        trial, self._trial = self._trial, None
        assert trial is not None
        states = load_optuna().trial.TrialState
        if outcome.state is TrialState.COMPLETE:
            self._study.tell(trial, outcome.value)
        elif outcome.state is TrialState.PRUNED:
            self._study.tell(trial, state=states.PRUNED)
        else:
            trial.set_user_attr("error", outcome.error[:_LONGEST])
            trial.set_user_attr("traceback", outcome.details[-_LONGEST:])
            self._study.tell(trial, state=states.FAIL)


def _open(options: StudyOptions, direction: Direction) -> Study:
    optuna = load_optuna()
    try:
        study: Study = optuna.create_study(
            storage=resolved_address(options.storage) if isinstance(options.storage, str) else options.storage,
            sampler=options.sampler,
            pruner=options.pruner or optuna.pruners.NopPruner(),
            study_name=options.name,
            direction=direction,
            load_if_exists=options.load_if_exists,
        )
        return study
    except optuna.exceptions.DuplicatedStudyError:
        text = f"the storage has a study '{options.name}': load_if_exists=True continues it"
        raise ConfigError([Problem("study_name", text)], _SOURCE) from None
    except Exception as error:
        # A URL can contain a password: do not repeat it.
        lines = str(error).splitlines() or [""]
        text = f"cannot be opened: {type(error).__name__}: {lines[0]}"
        raise ConfigError([Problem("storage", text)], _SOURCE) from error


def _check(study: Study, space: Space, direction: Direction, objective: str) -> None:
    """Refuse to mix two searches in one study."""
    problems = []
    theirs = [direction.name.lower() for direction in study.directions]
    if theirs != [direction]:
        problems.append(Problem("study_name", f"'{study.study_name}' is to {' and '.join(theirs)}, not to {direction}"))
    known = study.user_attrs.get(_OBJECTIVE, objective)
    if known != objective:
        text = f"'{study.study_name}' has the objective {known}, not {objective}: choose another name"
        problems.append(Problem("study_name", text))
    problems += [
        Problem(name, f"{parameter} cannot continue the study '{study.study_name}', which has {before}: {why}")
        for name, parameter in space.searched.items()
        for before, why in _incompatible(study, name, _distribution(parameter))
    ]
    raise_problems(problems, _SOURCE)


def _incompatible(study: Study, name: str, distribution: BaseDistribution) -> list[tuple[str, str]]:
    """Return how a parameter was declared in earlier trials, and why it cannot be declared differently now."""
    distributions = load_optuna().distributions
    for trial in study.get_trials(deepcopy=False):
        before = trial.distributions.get(name)
        if before is None or before == distribution:
            continue
        if type(before) is not type(distribution):
            return [(str(before), "a range stays a range, and choices stay choices")]
        if isinstance(before, distributions.CategoricalDistribution):
            return [(str(Choices(before.choices)), "choices stay as they are")]
        return []
    return []


def _suggest(trial: Trial, name: str, parameter: Parameter) -> Any:
    match parameter:
        case Fixed():
            return parameter.value
        case Range(whole=True):
            return trial.suggest_int(name, int(parameter.low), int(parameter.high))
        case Range():
            return trial.suggest_float(name, parameter.low, parameter.high, log=parameter.log)
        case Choices():
            return trial.suggest_categorical(name, parameter.values)


def _distribution(parameter: Range | Choices) -> BaseDistribution:
    distributions = load_optuna().distributions
    distribution: BaseDistribution
    match parameter:
        case Range(whole=True):
            distribution = distributions.IntDistribution(int(parameter.low), int(parameter.high))
        case Range():
            distribution = distributions.FloatDistribution(parameter.low, parameter.high, log=parameter.log)
        case Choices():
            distribution = distributions.CategoricalDistribution(parameter.values)
    return distribution
