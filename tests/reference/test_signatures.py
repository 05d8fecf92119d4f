"""The real signatures are those of reference.json: the same names, in the same order, with the same defaults."""

import dataclasses
import inspect
import json
import math
from functools import reduce
from importlib import import_module
from pathlib import Path

import pytest
import torch

from accmt.callbacks import HOOKS
from accmt.hyperparameters import Optimizer, Scheduler
from accmt.states import TrainingState

REFERENCE = json.loads(Path(__file__).with_name("reference.json").read_text())
SIGNATURES, ATTRIBUTES = REFERENCE["signatures"], REFERENCE["attributes"]
KEYWORD_ONLY = inspect.Parameter.KEYWORD_ONLY

# What accmt has beyond the reference, all of it with a default and by keyword only.
EXTRAS = {
    "accmt.Trainer": [
        "evaluate_every",
        "stop_when",
        "training_metrics",
        "mixed_precision",
        "checkpoint_async",
        "checkpoint_on_exception",
        "trust_checkpoint",
        "quiet",
        "sanity_check",
        "scheduler_metric",
    ],
    "accmt.Trainer.register_model_saving": ["name", "patience"],
    "accmt.metrics.Metric": ["pad"],
    "accmt.metrics.MetricParallel": ["pad"],
    "accmt.hp_search.HyperParameterSearch.optimize": [
        "objective",
        "storage",
        "study_name",
        "load_if_exists",
        "total_trials",
        "sampler",
        "pruner",
    ],
}
MORE_OPTIMIZERS = {"LBFGS"}
MORE_SCHEDULERS = {"ReduceLROnPlateau"}
# transformers has this class and is imported when it is used; what is built is an object of that class.
LAZY = "accmt.hyperparameters.Optimizer.Adafactor"


def found(path):
    """What stands at a dotted path below `accmt`."""
    if path.startswith(f"{LAZY}."):
        optimization = pytest.importorskip("transformers.optimization")
        return getattr(optimization.Adafactor, path.removeprefix(f"{LAZY}."))
    parts = path.split(".")
    for count in range(len(parts) - 1, 0, -1):
        try:
            module = import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        return reduce(getattr, parts[count:], module)
    raise AssertionError(path)


def real_parameters(path):
    """The parameters without that for the object itself."""
    owner, _, name = path.rpartition(".")
    parameters = list(inspect.signature(found(path)).parameters.values())
    if owner == LAZY:
        return parameters[1:]
    there = inspect.getattr_static(found(owner), name, None) if owner.count(".") else None
    return parameters[1:] if inspect.isfunction(there) else parameters


def as_written(parameter):
    """The name of a parameter as the reference writes it."""
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return stars.get(parameter.kind, "") + parameter.name


def default_of(path, parameter):
    """The default as its repr; what a dataclass makes anew for each object, as that of one object."""
    target = found(path)
    if dataclasses.is_dataclass(target):
        field = next(field for field in dataclasses.fields(target) if field.name == parameter.name)
        if field.default_factory is not dataclasses.MISSING:
            return repr(field.default_factory())
    return None if parameter.default is parameter.empty else repr(parameter.default)


def expected_default(source):
    return None if source is None else repr(eval(source, {"inf": math.inf, "torch": torch}))


def expected_of(path):
    """(name, default, whether by keyword only), as the reference has it."""
    parameters, keyword_only = [], False
    for name, source in SIGNATURES[path].items():
        if name == "*":
            keyword_only = True
        else:
            parameters.append((name, expected_default(source), keyword_only and not name.startswith("**")))
    return parameters


@pytest.mark.parametrize("path", SIGNATURES)
def test_a_signature_is_that_of_the_reference(path):
    extras = EXTRAS.get(path, [])
    real = real_parameters(path)
    ours = [(as_written(p), default_of(path, p), p.kind is KEYWORD_ONLY) for p in real if p.name not in extras]
    assert ours == expected_of(path)
    beyond = [parameter for parameter in real if parameter.name in extras]
    assert [parameter.name for parameter in beyond] == extras
    for parameter in beyond:
        assert parameter.kind is KEYWORD_ONLY, parameter.name
        assert parameter.default is not parameter.empty, parameter.name


@pytest.mark.parametrize(
    ("owner", "name", "source"),
    [(owner, name, source) for owner, named in ATTRIBUTES.items() for name, source in named.items()],
)
def test_an_attribute_is_there(owner, name, source):
    kind = found(owner)
    declared = {known for base in kind.__mro__ for known in (*vars(base), *getattr(base, "__annotations__", ()))}
    assert name in declared
    if source is not None:
        assert repr(getattr(kind, name)) == expected_default(source)


def test_hooks_are_in_the_order_of_the_reference():
    methods = [path.rpartition(".")[2] for path in SIGNATURES if path.startswith("accmt.callbacks.Callback.on_")]
    assert list(HOOKS) == methods


@pytest.mark.proves("hyperparameters.Optimizer", "hyperparameters.Scheduler")
@pytest.mark.parametrize(("holder", "more"), [(Optimizer, MORE_OPTIMIZERS), (Scheduler, MORE_SCHEDULERS)])
def test_the_catalogues_hold_what_the_reference_has(holder, more):
    prefix = f"accmt.hyperparameters.{holder.__name__}."
    listed = {path.removeprefix(prefix).split(".")[0] for path in SIGNATURES if path.startswith(prefix)}
    assert {name for name in vars(holder) if not name.startswith("_")} == listed | more


def test_the_fields_of_the_state_are_those_of_the_reference():
    documented = [*SIGNATURES["accmt.states.TrainingState"], *ATTRIBUTES["accmt.states.TrainingState"]]
    assert [field.name for field in dataclasses.fields(TrainingState)] == documented


def test_every_extra_is_still_there():
    assert EXTRAS.keys() <= SIGNATURES.keys()
