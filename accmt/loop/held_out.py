"""The evaluation of saved models on held-out datasets: once, after the training, by which nothing is decided."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from accmt.checkpoint.held_out_values import add_held_out
from accmt.checkpoint.loading import load_saving
from accmt.checkpoint.saved_models import AVERAGE, SavedModel
from accmt.checkpoint.stateful import Mismatch
from accmt.data.generators import generators_of
from accmt.distributed.collective import Failed, from_each, from_main
from accmt.loop.evaluate import evaluate
from accmt.loop.evaluation_step import named_for_trackers
from accmt.loop.restored_objects import untouched
from accmt.loop.run import Run
from accmt.loop.saved_evaluation import weights_put_back
from accmt.notices import warn
from accmt.rules import Outcome

_NOTE = (
    "in the evaluation on held-out datasets; the training itself is complete: run it again to evaluate what is missing"
)
_Values = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class _Kept:
    """A model that a rule keeps, and its name for people: that of the rule, and of its folder if the rule keeps
    several."""

    name: str
    model: SavedModel


def evaluate_held_out(run: Run) -> None:
    """Evaluate the saved models on the held-out datasets on which they were not evaluated before.

    for each step at which kept models were saved:
        load the model, evaluate it
        add the values to the description of each of them
    put the weights of the last step back

    A model that cannot be loaded or described is a warning. If SIGTERM comes, what is left is done by the next run.
    """
    if not run.held_out or run.savings is None:
        return
    same: dict[tuple[Any, ...], list[_Kept]] = {}
    for kept in from_main(lambda: list(_kept(run))):
        average_of = kept.model.average_of  # a rule averages models of its own
        same.setdefault((kept.model.step, *((kept.model.rule, *average_of) if average_of else ())), []).append(kept)
    for models in same.values():
        known = {key: values for kept in models for key, values in kept.model.held_out.items()}
        missing = [key for key in run.held_out.loaders if key not in known]
        if missing and run.heartbeat.is_to_end():
            warn(
                "SIGTERM: not all saved models were evaluated on the held-out datasets; run again to evaluate the rest"
            )
            return
        name, step = models[0].name, models[0].model.step
        try:
            began = time.perf_counter()
            found = known | (_evaluated(run, models[0].model, missing) if missing else {})
            for kept in models:
                _record(run, kept, {key: found[key] for key in run.held_out.loaders if key not in kept.model.held_out})
        except _Unusable as error:
            warn(f"{name} of step {step} was not evaluated on the held-out datasets: {error}; run again to evaluate it")
            continue
        if missing:
            run.display.held_out([kept.name for kept in models], step, found, time.perf_counter() - began)


class _Unusable(Exception):
    """Raised on all processes where a saved model cannot be read or written."""


@contextmanager
def _as_unusable() -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, Mismatch, Failed) as error:
        raise _Unusable(f"{type(error).__name__}: {error}") from error


def _kept(run: Run) -> Iterator[_Kept]:
    """Yield the models that the rules keep, by rule, the best first."""
    savings = run.savings
    assert savings is not None
    for rule in run.engine.rules.savings:
        kept = run.engine.states[rule.name].kept
        places = [savings.place_of(rule, entry) for entry in kept]
        average = savings.average_of(rule, kept) if rule.averages else None
        if average is not None and average.verdict.outcome is Outcome.SAVED:
            places.append(places[0].with_name(AVERAGE))
        for place in places:
            name = rule.name if rule.keep == 1 else f"{rule.name}/{place.name}"
            try:
                yield _Kept(name, SavedModel.read(place))
            except (OSError, ValueError) as error:
                warn(f"{name} cannot be evaluated on the held-out datasets: {error}")


def _evaluated(run: Run, model: SavedModel, keys: list[str]) -> dict[str, dict[str, float]]:
    """Return the values of a saved model on datasets; everything in memory is as before afterwards."""
    evaluation = replace(run.held_out, loaders={key: run.held_out.loaders[key] for key in keys})
    module, model_called = run.module, evaluation.model
    own = generators_of(module, model_called, {})
    with weights_put_back(evaluation), untouched([module, model_called, module.state], (), own):
        with _as_unusable():
            from_each(partial(load_saving, model.folder, module))
        try:
            return evaluate(evaluation).values
        except Exception as error:
            error.add_note(_NOTE)
            raise


def _record(run: Run, kept: _Kept, values: _Values) -> None:
    """Add the values to the description of a model, and send them to the trackers."""
    if not values:
        return
    with _as_unusable():
        from_main(partial(add_held_out, kept.model.folder, values))
    sent = {f"{kept.name}/{name}": value for name, value in named_for_trackers(run, values, several=True).items()}
    if sent:
        run.tracker.log(sent, run.position.step)
