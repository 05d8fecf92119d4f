"""Reads a configuration: hyperparameters, and the rules that say when to save and to stop.

    hps:
      epochs: 3
      batch_size: [32, 64]
      optimizer: {type: AdamW, lr: 1e-3, no_decay: [bias, norm]}
      scheduler: {type: LinearWithWarmup, warmup_ratio: 0.1}
    rules:
      ...

The level `hps:` may be left out. An optimizer or scheduler is a mapping with its `type` and arguments, or a name
with the arguments in `optim_kwargs` or `scheduler_kwargs` beside it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from accmt.config.document import read_document, rules_of
from accmt.config.errors import ConfigError, Problem, must_be, unknown_key
from accmt.hyperparameters.fields import Fields, validated
from accmt.hyperparameters.values import HyperParameters

_SECTIONS = ("hps", "rules")
_EXAMPLES = {"optimizer": "type: AdamW", "scheduler": "type: LinearWithWarmup"}
_KWARGS = {"optimizer": "optim_kwargs", "scheduler": "scheduler_kwargs"}


@dataclass(frozen=True, slots=True)
class Config:
    """A configuration: the hyperparameters, and the section `rules` as it was written, {} if there is none.

    `places` says where arguments of `HyperParameters` were written, if elsewhere: optim_kwargs -> hps.optimizer.
    """

    hps: HyperParameters
    rules: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict, compare=False)

    def problems(self) -> list[Problem]:
        """What is wrong with the arguments of the optimizer and the scheduler, where it was written."""
        return [replace(problem, path=_placed(problem.path, self.places)) for problem in self.hps.problems_found()]


def load_config(source: str | os.PathLike[str] | Mapping[str, Any] | HyperParameters) -> Config:
    """Read a configuration from a YAML file, from a mapping of the same form, or take hyperparameters as they are.

    Raises:
        ConfigError: It cannot be read or used; it names the file and lists every mistake.
    """
    if isinstance(source, HyperParameters):
        return Config(source)
    if isinstance(source, Mapping):
        return _parsed(source, "the configuration")
    if not isinstance(source, str | os.PathLike):
        raise ConfigError(
            [Problem("", must_be("the path of a YAML file, a dict or HyperParameters", source))], "hps_config"
        )
    return _parsed(read_document(source), os.fsdecode(source))


def _parsed(document: Mapping[Any, Any], source: str) -> Config:
    """Check the whole document, so that all mistakes are told at once."""
    sectioned = "hps" in document
    hps = document.get("hps", {}) if sectioned else {key: document[key] for key in document if key != "rules"}
    problems: list[Problem] = []
    if sectioned:
        problems += [_misplaced(key) for key in document if key not in _SECTIONS]
    rules, found = rules_of(document)
    problems += found
    if isinstance(hps, Mapping):
        fields, places, found = _hyperparameters(hps, "hps." if sectioned else "")
        problems += found
    else:
        problems.append(Problem("hps", must_be("a mapping with the hyperparameters", hps)))
    if problems:
        raise ConfigError(problems, source)
    return Config(HyperParameters(**fields), rules, places)


def _placed(path: str, places: Mapping[str, str]) -> str:
    name, dot, rest = path.partition(".")
    return f"{places.get(name, name)}{dot}{rest}"


def _misplaced(key: object) -> Problem:
    if key in Fields.model_fields:
        return Problem(str(key), "stands beside hps, move it under hps")
    return Problem(str(key), unknown_key(key, _SECTIONS))


def _hyperparameters(section: Mapping[Any, Any], prefix: str) -> tuple[dict[str, Any], dict[str, str], list[Problem]]:
    """The arguments of `HyperParameters` that a section gives, where those of factories stand, and what is wrong."""
    fields = dict(section)
    paths: dict[str, str] = {}
    problems: list[Problem] = []
    for key, kwargs_key in _KWARGS.items():
        if isinstance(fields.get(key), Mapping):
            problems += _unfold(fields, key, kwargs_key)
            paths |= {key: f"{key}.type", kwargs_key: key}
    problems += [Problem(str(key), unknown_key(key, _keys(prefix))) for key in fields if key not in Fields.model_fields]
    known = {key: value for key, value in fields.items() if key in Fields.model_fields}
    try:
        validated(known)
    except ConfigError as error:
        problems += [replace(problem, path=paths.get(problem.path, problem.path)) for problem in error.problems]
    places = {key: f"{prefix}{paths.get(key, key)}" for key in _KWARGS.values()}
    return known, places, [replace(problem, path=f"{prefix}{problem.path}") for problem in problems]


def _keys(prefix: str) -> list[str]:
    return [*Fields.model_fields, *([] if prefix else _SECTIONS)]


def _unfold(fields: dict[Any, Any], key: str, kwargs_key: str) -> list[Problem]:
    """Replace `{type: AdamW, lr: 1e-3}` by the name and its arguments."""
    arguments = dict(fields[key])
    if "type" not in arguments:
        del fields[key]
        return [Problem(f"{key}.type", f"missing. Name the {key}, such as '{_EXAMPLES[key]}'")]
    fields[key] = arguments.pop("type")
    if arguments and fields.get(kwargs_key):
        text = f"given beside arguments in {key}, move them there or remove them"
        return [Problem(kwargs_key, text)]
    if arguments:
        fields[kwargs_key] = arguments
    return []
