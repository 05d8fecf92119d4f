"""Description of a training: `run.json` in its folder, and the parameters of trackers (docs/how-to/tracking.md)."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch

from accmt.checkpoint.archive import move_to_archive
from accmt.checkpoint.checkpoints import Checkpoint
from accmt.data.identity import identify_dataset
from accmt.data.indices import length_of
from accmt.distributed.collective import from_each, from_main
from accmt.files.durable import flush_directory, only_warned, replace_file
from accmt.files.json_io import DamagedFile, as_json, read_json
from accmt.files.secret_values import without_secrets
from accmt.hyperparameters.recorded import recorded
from accmt.model_summary import summarize
from accmt.rules.codec import to_plain
from accmt.rules.describe import in_words
from accmt.rules.reserved_names import RUN
from accmt.seed_run import seed_of_run
from accmt.setup.plan import Plan
from accmt.setup.settings import configuration
from accmt.tracking.tracker import flat

_GIT = ("git", "-c", "core.fsmonitor=false", "status", "--porcelain=v2", "--branch", "--untracked-files=no")
_GIT_SECONDS = 5.0  # it reads all tracked files
_ELSEWHERE = ("hps_config", "additional_tracker_config", "kwargs")  # arguments that trackers get in another form
_FACTORIES = {"optim_kwargs": "optimizer", "scheduler_kwargs": "scheduler"}
_FACTS = ("rules", "seed", "total_steps", "model", "train_samples", "validation_samples")
_FACTS_OF_START = ("time", "command", "host", "devices", "processes", "versions", "git")


@dataclass(frozen=True, slots=True)
class _Former:
    schema: Literal[1]
    starts: tuple[Mapping[str, Any], ...]


def describe_run(plan: Plan, checkpoint: Checkpoint | None) -> dict[str, Any]:
    """Return the content of the file for a training that starts now. Call it on all processes."""
    options, data, model = plan.options, plan.data, summarize(plan.module, 0).parts[0]
    left_open = {"mixed_precision": plan.accelerator.mixed_precision, "grad_accumulation_steps": options.accumulation}
    left_open |= {"track_name": options.tracking.track_name, "model_path": str(plan.model_path)}
    content = {
        "schema": 1,
        "arguments": without_secrets(recorded(options.given)),
        "hyperparameters": without_secrets(options.hps.to_dict()),
        "settings": without_secrets(configuration(options, plan.module) | left_open),
        "rules": {rule.name: in_words(rule, plan.facts) for rule in plan.rules.savings},
        "seed": data.seed,
        "total_steps": plan.position.total_steps,
        "model": {"parameters": model.parameters, "trainable": model.trainable},
        "train_samples": length_of(data.loader.dataset),
        "validation_samples": {key: length_of(each.dataset) for key, each in plan.validation.items()},
        "starts": [_start(plan, checkpoint)],
    }
    if seed_of_run() is not None:
        content["data"] = from_main(lambda: _identities(plan))
    return dict(to_plain(content))


def parameters_of(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content as flat parameters for trackers: arguments as `trainer.NAME`, those of the optimizer and the
    scheduler by their names among the hyperparameters, all in force where that is known, and facts as `run.NAME`."""
    named = {name: f"trainer.{name}" for name in run["arguments"] if name not in _ELSEWHERE}
    facts = {name: run[name] for name in _FACTS} | {name: run["starts"][0][name] for name in _FACTS_OF_START}
    parameters = flat({"trainer": {name: run["arguments"][name] for name in named}, "run": facts})
    for name, value in run["settings"].items():
        first, dot, rest = name.partition(".")
        if first in (known := named | _FACTORIES):
            parameters.pop(f"trainer.{first}", None)  # of a mapping in force, only the entries are left
            parameters[f"{known[first]}{dot}{rest}"] = value
    return parameters


def record_start(model_path: Path, run: Mapping[str, Any], changes: list[str]) -> list[str]:
    """Write the file, with the starts that it lists already. A failure is a warning.

    Returns:
        Notes to show before the first step, one line each.
    """
    notes, path, former = [], model_path / RUN, _Former(1, ())
    with only_warned(f"{RUN} was not written"):
        try:
            former = read_json(path, _Former) if path.exists() else former
        except DamagedFile as error:
            aside = move_to_archive(model_path, [path])
            notes.append(f"earlier starts are not known: {error}; it was moved to {aside}")
        start = {**run["starts"][-1], "changes": without_secrets(changes)}
        replace_file(path, as_json({**run, "starts": [*former.starts, start]}, indent=2) + "\n")
        flush_directory(model_path)
    return notes


def _start(plan: Plan, checkpoint: Checkpoint | None) -> dict[str, Any]:
    versions = {
        name: getattr(sys.modules.get(name), "__version__", None)
        for name in ("accmt", "torch", "accelerate", "transformers")
    }
    devices = from_each(lambda: _described(plan.accelerator.device))
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "checkpoint": None if checkpoint is None else checkpoint.path.name,
        "changes": [],
        "command": shlex.join(without_secrets(sys.argv)),
        "host": platform.node(),
        "devices": devices,
        "processes": len(devices),
        "versions": {**versions, "python": platform.python_version(), "cuda": torch.version.cuda},
        "git": _git_state() if plan.accelerator.is_main_process else None,
    }


def _identities(plan: Plan) -> dict[str, Any]:
    """Return what identifies the validation data, so that runs of other seeds are known to use the same."""
    return {key: identify_dataset(each.dataset, plan.accelerator.device) for key, each in plan.validation.items()}


def _described(device: torch.device) -> str:
    name = f" {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    return f"{platform.node()} {device}{name}"


def _git_state() -> dict[str, Any] | None:
    """Return the commit of the script's repository (in a notebook, that of the current folder), and whether tracked
    files were changed since; None if there is none, or git does not answer in time."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    folder, environment = None if script is None else Path(script).parent, {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        ran = subprocess.run(_GIT, cwd=folder, env=environment, timeout=_GIT_SECONDS, check=True, capture_output=True)
    except (OSError, subprocess.SubprocessError):
        return None
    commit, changed = re.match(rb"# branch\.oid ([0-9a-f]{40,})\n", ran.stdout), re.search(rb"(?m)^[^#]", ran.stdout)
    return None if commit is None else {"commit": commit[1].decode(), "dirty": changed is not None}
