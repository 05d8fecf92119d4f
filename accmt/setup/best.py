"""The best models of a training, found by the names of their rules: after `fit`, or in the folder that one wrote."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import is_initialized

from accmt.checkpoint.loading import load_saving
from accmt.checkpoint.object_state import NetworkOwner
from accmt.checkpoint.saved_models import DESCRIPTION, INDEX, SavedModel, best_in, is_saving, savings_in
from accmt.config.errors import ConfigError, Problem
from accmt.distributed.collective import from_each
from accmt.distributed.strategy import is_deepspeed, shards_model
from accmt.files.json_io import DamagedFile
from accmt.files.paths import resolved
from accmt.loop.averages import normalizations
from accmt.loop.run import Run
from accmt.module import AcceleratorModule, ExtendedAcceleratorModule
from accmt.notices import warn
from accmt.rules import Rules, SavingRule, canonical_name
from accmt.rules.errors import listed, nearest
from accmt.rules.reserved_names import is_taken
from accmt.setup.options import Options
from accmt.tracebacks import concise
from accmt.tracking.training_file import read_description


@concise
def load_best(
    folder: str | Path, module: Any, rule: str | None = None, *, device: str | torch.device | None = None
) -> SavedModel:
    """Load the best model that a training has saved, verified, in evaluation mode. The training may still be running.

    Args:
        folder: The `model_path` of the training.
        module: An `AcceleratorModule`, or a `torch.nn.Module`; see `accmt.load_saving`.
        rule: The name or text of the rule; None for the only one.
        device: Where to move the module; None for the device of this process: its GPU, if it has and uses one.

    Returns:
        The description of the saved model: rule, values, step, epoch, folder.

    Raises:
        FileNotFoundError: The folder does not exist, or the rule has not saved a model yet.
        ValueError: The rule does not exist, several exist and none is named, or the files are damaged.
        Mismatch: It was saved from a different model; nothing was loaded.
    """
    model_path = resolved(folder)
    if not model_path.is_dir():
        raise FileNotFoundError(f"there is no folder {model_path}: give the model_path of a training")
    if is_saving(model_path):
        raise ValueError(f"{model_path} is the folder of a rule: give its parent, or call load_saving")
    rules = recorded_rules(model_path)
    folders = rule_folders(model_path, rules)
    names = [rule.name for rule in rules] or list(folders)
    if not names:
        found = [path.parent.parent.name for name in (DESCRIPTION, INDEX) for path in model_path.glob(f"*/*/{name}")]
        inside = f"; in it, these folders have models: {listed(sorted({*found}))}" if found else ""
        raise FileNotFoundError(f"no rule has saved a model in {model_path} yet{inside}")
    name = rule_named(rule, folders if rule is not None else dict.fromkeys(names))
    place = folders[name]
    if best_in(place) is None:
        raise FileNotFoundError(f"'{name}' has not saved a model in {model_path} yet")
    saved = load_saving(place, module)
    if device is None:
        device = PartialState().device if is_initialized() else torch.accelerator.current_accelerator(True)
    kind: Any = NetworkOwner if isinstance(module, NetworkOwner) else type(module)
    if device is not None:
        kind.to(module, device)
    kind.eval(module)
    return saved


def recorded_rules(model_path: Path) -> tuple[SavingRule, ...]:
    """Return the saving rules of the training in `model_path`; none if they are not known."""
    about = None
    try:
        about = read_description(model_path)
    except DamagedFile as error:
        warn(f"the rules of the training are not known: {error}")
    return () if about is None else about.rules.savings


def rule_folders(model_path: Path, rules: Iterable[SavingRule]) -> dict[str, Path]:
    """Return the folder of each rule by name: of these rules, and of those of other models in `model_path`."""
    found = {rule.name: model_path / rule.folder for rule in rules}
    for place in savings_in(model_path) if model_path.is_dir() else ():
        with suppress(DamagedFile, FileNotFoundError):  # another rule may be asked for
            if place not in found.values() and not is_taken(place.name) and (saved := best_in(place)) is not None:
                found.setdefault(saved.rule, place)
    return found


def rule_named(rule: str | None, known: Mapping[str, Any]) -> str:
    """Return the name of a rule that is given by its name or its text, or of the only one.

    Raises:
        ValueError: There is no such rule, or there are several and none is given.
    """
    if rule is None and len(known) == 1:
        return next(iter(known))
    name = "" if rule is None else rule if rule in known else canonical_name(rule)
    if name in known:
        return name
    missing = "name one of the rules" if rule is None else f"there is no rule {rule!r}"
    meant = "" if (near := nearest(rule or "", known)) is None else f"; did you mean '{near}'?"
    rules = ", ".join(known) or "none, because nothing was trained yet"
    raise ValueError(f"{missing}; the rules are: {rules}{meant}")


def check_restoring(options: Options, rules: Rules, accelerator: Accelerator) -> None:
    """Check that the rule whose model is to be restored is one of the training.

    Raises:
        ConfigError: It is not, or the model is sharded.
    """
    wanted, names, text = options.saving.restored, {rule.name: rule for rule in rules.savings}, None
    if wanted is not False and (is_deepspeed(accelerator) or shards_model(accelerator)):
        text = "a model that FSDP or DeepSpeed holds is not restored: leave it out, and call load_best afterwards"
    elif wanted is not False:
        try:
            rule_named(wanted if isinstance(wanted, str) else None, names)
        except ValueError as error:
            text = str(error)
    if text is not None:
        raise ConfigError([Problem("restore_best", text)], "Trainer(...)")


def check_loading(options: Options, accelerator: Accelerator) -> None:
    """Check that saved models can be loaded after the training, to evaluate them on held-out datasets.

    Raises:
        ConfigError: The model is sharded.
    """
    if options.held_out and not options.saving.disabled and (is_deepspeed(accelerator) or shards_model(accelerator)):
        text = "saved models are not loaded into a model that FSDP or DeepSpeed holds: leave the dataset out of fit, "
        text += "and call load_best and evaluate on it afterwards"
        raise ConfigError([Problem("held_out", text)], "Trainer(...)")


def check_averages(rules: Rules, module: AcceleratorModule, accelerator: Accelerator) -> None:
    """Check that the averages of kept models can be made and evaluated.

    Raises:
        ConfigError: They cannot.
    """
    text = None
    if is_deepspeed(accelerator) or shards_model(accelerator):
        text = "a model that FSDP or DeepSpeed holds cannot be evaluated with averaged weights: leave 'average' out"
    elif isinstance(module, ExtendedAcceleratorModule) and normalizations(module):
        text = (
            "its training_step makes optimizer steps, so that no statistics of batch normalization can be estimated "
            "for averaged weights: leave 'average' out"
        )
    problems = [Problem(rule.text, text) for rule in rules.savings if rule.averages and rules.writes and text]
    if problems:
        raise ConfigError(problems, "register_model_saving(...)")


def restore_best(run: Run, model_path: Path, wanted: bool | str) -> None:
    """Load the best model of a rule at the end of its training, on all processes."""
    if wanted is False:
        return
    rules = {rule.name: rule for rule in run.engine.rules.savings}
    name = rule_named(wanted if isinstance(wanted, str) else None, rules)
    if name in run.state.model_savings:
        from_each(partial(load_saving, model_path / rules[name].folder, run.module))
    else:
        warn(f"restore_best: '{name}' has saved no model, so the module keeps its weights of the last step")
