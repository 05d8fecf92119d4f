"""Loading of a saved model into a module, outside of a training."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from accmt._compat import COMPILED
from accmt.checkpoint import publish
from accmt.checkpoint.extra_state import ExtraState
from accmt.checkpoint.format import differences, shortened_value
from accmt.checkpoint.saved_models import SavedModel, place_of_best
from accmt.checkpoint.stateful import Mismatch
from accmt.checkpoint.weights import BESIDE, read_beside, read_weights
from accmt.distributed.weight_names import as_expected, by_own_name, by_plain_name
from accmt.files.paths import resolved
from accmt.notices import warn
from accmt.tracebacks import concise


@concise
def load_saving(folder: str | Path, module: Any) -> SavedModel:
    """Load the model that a rule saved.

    Args:
        folder: The folder of the rule below `model_path`, such as "model/best_accuracy"; where the rule keeps several
            models, the best of them is loaded; to load another one, give its folder.
        module: An `AcceleratorModule`, or a `torch.nn.Module`. Networks that were trained alongside `self.model` are
            loaded into the AcceleratorModule's attributes of the same names.

    Returns:
        The description of the saved model: rule, values, step, epoch, folder.

    Raises:
        FileNotFoundError: The folder has no saved model.
        ValueError: Its files are damaged.
        Mismatch: It was saved from a different model; nothing was loaded.
    """
    saving, found, beside = read_whole(folder)
    load_weights(module, found, beside, saving.folder)
    return saving


def load_weights(module: Any, found: dict[str, Any], beside: dict[str, Tensor], folder: Path) -> None:
    """Load the weights of a saved model, and of the networks that were trained alongside it, from a folder.

    Raises:
        Mismatch: They are those of a different model; nothing was loaded.
    """
    model = module.model if _is_wrapping(module) else module
    expected = by_plain_name(model, model.state_dict())
    weights = as_expected(found, expected)
    lines = differences(expected, weights, "the saved model")
    if lines and (renamed := _renamed_by_transformers(getattr(model, COMPILED, model), found)) is not None:
        weights = as_expected(renamed, expected)
        lines = differences(expected, weights, "the saved model")
    kept = ExtraState(module, model) if _is_wrapping(module) else None
    if kept is not None and beside:
        lines += differences(*kept.differing(beside, at_least_those=True), "the saved model", "module")
    if lines:
        listed = "\n  ".join(shortened_value(lines))
        raise Mismatch(f"{folder} holds another model; nothing was loaded:\n  {listed}")
    model.load_state_dict(by_own_name(model, weights))
    if kept is not None:
        kept.found().load_state_dict(beside)
    elif beside:
        ways = ", ".join(dict.fromkeys(name.partition(".")[0] for name in beside))
        text = f"{folder / BESIDE} holds {ways} too, trained alongside the model: give the AcceleratorModule"
        warn(f"{text} to load them")


def read_whole(folder: str | Path) -> tuple[SavedModel, dict[str, Any], dict[str, Tensor]]:
    """Read the description and all weights of a saved model, again if a training replaces it meanwhile."""
    place = place_of_best(resolved(folder))
    if place is None:
        raise FileNotFoundError(f"there is no saved model in {folder}")
    before = place.stat()
    try:
        if (problem := publish.folder_problem(place)) is not None:
            raise ValueError(f"{place} cannot be used: {problem}")
        whole = SavedModel.read(place), read_weights(place), read_beside(place)
    except (OSError, ValueError):
        if place.exists() and _is_same(before, place.stat()):
            raise
        return read_whole(folder)
    return whole if _is_same(before, place.stat()) else read_whole(folder)


def _renamed_by_transformers(model: nn.Module, found: dict[str, Any]) -> dict[str, Any] | None:
    """Return weights by the names that they have in a model of transformers: its `save_pretrained`, which writes them
    in other trainers, may give them former names. None for other models, and for weights of another model.
    """
    transformers = sys.modules.get("transformers")
    if transformers is None or not isinstance(model, transformers.PreTrainedModel):
        return None
    reports = logging.getLogger("transformers.modeling_utils")
    was_disabled, reports.disabled = reports.disabled, True
    try:
        with torch.random.fork_rng(devices=()):  # it makes another model
            arguments = {"config": model.config, "state_dict": dict(found), "output_loading_info": True}
            renamed, told = type(model).from_pretrained(None, **arguments)
    except Exception:
        return None  # they do not fit, which the caller says
    finally:
        reports.disabled = was_disabled
    return None if any(told.values()) else dict(renamed.state_dict())


def _is_same(one: os.stat_result, other: os.stat_result) -> bool:
    return (one.st_ino, one.st_mtime_ns) == (other.st_ino, other.st_mtime_ns)


def _is_wrapping(module: Any) -> bool:
    """Return whether it is a module with a `model`, such as an AcceleratorModule, and not the model itself."""
    return not isinstance(module, nn.Module) or hasattr(module, "get_validation_dataloader")
