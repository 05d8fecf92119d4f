"""Loading a saved model into a module, outside of a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from accmt.checkpoint import publish
from accmt.checkpoint.contents import Mismatch, differences, shortened
from accmt.checkpoint.saved import Saving, place_of_best
from accmt.checkpoint.weights import read_weights
from accmt.config.paths import resolved


def load_saving(folder: str | Path, module: Any) -> Saving:
    """Load the model that a rule saved.

    Args:
        folder: The folder of the rule below `model_path`, such as "model/best_accuracy"; where the rule keeps several
            models, the best of them is loaded, or give the folder of one.
        module: An `AcceleratorModule`, or a `torch.nn.Module`.

    Returns:
        What was saved: rule, values, step, epoch, folder.

    Raises:
        FileNotFoundError: There is no saved model in the folder.
        ValueError: Its files are damaged.
        Mismatch: It is the saving of another model; nothing was loaded.
    """
    place = place_of_best(resolved(folder))
    if place is None:
        raise FileNotFoundError(f"there is no saved model in {folder}")
    problem = publish.problem_of(place)
    if problem is not None:
        raise ValueError(f"{place} cannot be used: {problem}")
    saving = Saving.read(place)
    model = module if isinstance(module, nn.Module) else module.model
    weights = read_weights(place)
    lines = differences(model.state_dict(), weights, "the saving")
    if lines:
        listed = "\n  ".join(shortened(lines))
        raise Mismatch(f"{saving.folder} is the saving of another model; nothing was loaded:\n  {listed}")
    model.load_state_dict(weights)
    return saving
