"""Reader of configurations: hyperparameters, and rules for saving and stopping.

    hps:
      epochs: 3
      batch_size: [32, 64]
      optimizer: {type: AdamW, lr: 1e-3, no_decay: [bias, norm]}
      scheduler: {type: LinearWithWarmup, warmup_ratio: 0.1}
    rules:
      ...

If the level `hps:` exists, other sections belong to the script. It may be left out; then only `rules` may be
next to the hyperparameters. Numbers that PyYAML reads as text, such as `1e-3`, also count as numbers in a dictionary.
An optimizer or scheduler is a mapping with its `type` and arguments, or a name with the arguments in `optim_kwargs`
or `scheduler_kwargs` next to it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from accmt.config.document import read_document, rules_of
from accmt.config.errors import ConfigError, Problem, did_you_mean, must_be, unknown_key
from accmt.config.rules import rule_problems
from accmt.hyperparameters.fields import FIELDS, validated
from accmt.hyperparameters.values import HyperParameters
from accmt.tracebacks import concise

# As in config/yaml_text: PyYAML requires a dot in such a number, and a sign after the e.
_SCIENTIFIC = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+")
_DEEPEST = 16  # nesting depth of lists searched for numbers: no argument is nested as deep
_SECTIONS = ("hps", "rules")
_EXAMPLES = {"optimizer": "type: AdamW", "scheduler": "type: LinearWithWarmup"}
_KWARGS = {"optimizer": "optim_kwargs", "scheduler": "scheduler_kwargs"}


@dataclass(frozen=True, slots=True)
class Config:
    """A configuration: the hyperparameters, and the section `rules` as it was written, {} if there is none.

    `places` maps arguments of `HyperParameters` written elsewhere to their place: optim_kwargs -> hps.optimizer.
    """

    hps: HyperParameters
    rules: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict, compare=False)

    def problems(self) -> list[Problem]:
        """Return the problems of the optimizer's and scheduler's arguments, with the places where they were written."""
        return [replace(problem, path=_placed(problem.path, self.places)) for problem in self.hps.problems_found()]


@concise
def load_config(source: str | os.PathLike[str] | Mapping[str, Any] | HyperParameters) -> Config:
    """Read a configuration from a YAML file or a mapping of the same form; hyperparameters are used as they are.

    Raises:
        ConfigError: If it cannot be read or used; it names the file and lists every mistake.
    """
    if isinstance(source, HyperParameters):
        return Config(source)
    if isinstance(source, Mapping):
        return _parsed(source, "the configuration", _with_number)
    if not isinstance(source, str | os.PathLike):
        raise ConfigError(
            [Problem("", must_be("the path of a YAML file, a dict or HyperParameters", source))], "hps_config"
        )
    return _parsed(read_document(source), os.fsdecode(source))


def hyperparameter_problems(document: Mapping[Any, Any]) -> list[Problem]:
    """Return all problems of the hyperparameters in a document without rules, each with its place."""
    try:
        return _parsed(document, "").problems()
    except ConfigError as error:
        return list(error.problems)


def _parsed(document: Mapping[Any, Any], source: str, read: Callable[[Any], Any] = lambda value: value) -> Config:
    """Check the whole document, so that all mistakes are reported at once. `read` converts the arguments of factories
    and the limits of rules."""
    sectioned = "hps" in document
    hps = document.get("hps", {}) if sectioned else {key: document[key] for key in document if key != "rules"}
    problems: list[Problem] = []
    if sectioned:
        problems += [problem for key in document if (problem := _misplaced(key)) is not None]
    rules, found = rules_of(document)
    rules = _with_limits(rules, read)
    problems += found
    if isinstance(hps, Mapping):
        fields, places, found = _hyperparameters(hps, "hps." if sectioned else "", read)
        problems += found
    else:
        problems.append(Problem("hps", must_be("a mapping with the hyperparameters", hps)))
    if problems:
        raise ConfigError([*problems, *rule_problems(rules)], source)
    return Config(HyperParameters(**fields), rules, places)


def _placed(path: str, places: Mapping[str, str]) -> str:
    name, dot, rest = path.partition(".")
    return f"{places.get(name, name)}{dot}{rest}"


def _misplaced(key: object) -> Problem | None:
    """Report a key next to `hps` that belongs under it, or is probably a misspelled section."""
    if key in _SECTIONS:
        return None
    if key in FIELDS:
        return Problem(str(key), "is next to hps, move it under hps")
    near = isinstance(key, str) and len(key) > 1 and did_you_mean(key, _SECTIONS) != "."
    return Problem(str(key), unknown_key(key, _SECTIONS)) if near else None


def _with_number(value: Any, depth: int = _DEEPEST) -> Any:
    """Convert texts within the value that are numbers in YAML but not in PyYAML."""
    if isinstance(value, str):
        return float(value) if _SCIENTIFIC.fullmatch(value) else value
    is_looked_into = type(value) in (list, tuple) and depth
    return type(value)(_with_number(item, depth - 1) for item in value) if is_looked_into else value


def _with_limits(rules: dict[Any, Any], read: Callable[[Any], Any]) -> dict[Any, Any]:
    """Return the section `rules` with the limits of its saving rules converted to numbers."""
    save = rules.get("save")
    if not isinstance(save, list | tuple):
        return rules
    limits = ("saving_below", "saving_above")
    entries = [
        {key: read(value) if key in limits else value for key, value in entry.items()}
        if isinstance(entry, Mapping)
        else entry
        for entry in save
    ]
    return {**rules, "save": entries}


def _hyperparameters(
    section: Mapping[Any, Any], prefix: str, read: Callable[[Any], Any]
) -> tuple[dict[str, Any], dict[str, str], list[Problem]]:
    """Return the arguments of `HyperParameters` in a section, where factory arguments are written, and the problems."""
    fields = dict(section)
    paths: dict[str, str] = {}
    problems: list[Problem] = []
    for key, kwargs_key in _KWARGS.items():
        if isinstance(fields.get(key), Mapping):
            problems += _unfold(fields, key, kwargs_key)
            paths |= {key: f"{key}.type", kwargs_key: key}
        if isinstance(fields.get(kwargs_key), Mapping):
            arguments = fields[kwargs_key].items()
            fields[kwargs_key] = {name: value if name == "no_decay" else read(value) for name, value in arguments}
    problems += [Problem(str(key), unknown_key(key, _keys(prefix))) for key in fields if key not in FIELDS]
    known = {key: value for key, value in fields.items() if key in FIELDS}
    try:
        validated(known)
    except ConfigError as error:
        problems += [replace(problem, path=paths.get(problem.path, problem.path)) for problem in error.problems]
    places = {key: paths.get(key, key) for key in _KWARGS.values()}
    if problems:
        problems += _problems_of_arguments(known, {problem.path for problem in problems}, places)
    places = {key: f"{prefix}{place}" for key, place in places.items()}
    return known, places, [replace(problem, path=f"{prefix}{problem.path}") for problem in problems]


def _problems_of_arguments(known: Mapping[str, Any], wrong: set[str], places: Mapping[str, str]) -> list[Problem]:
    """Check the optimizer's and scheduler's arguments even if other things are already wrong."""
    sound = dict(known)
    for key, kwargs_key in _KWARGS.items():
        if wrong & {key, f"{key}.type", kwargs_key, places[kwargs_key]}:
            sound.pop(key, None)
            sound.pop(kwargs_key, None)
    sound = {key: sound[key] for key in sound if key in (*_KWARGS, *_KWARGS.values())}
    return Config(HyperParameters(**sound), places=dict(places)).problems()


def _keys(prefix: str) -> list[str]:
    return [*FIELDS, *([] if prefix else _SECTIONS)]


def _unfold(fields: dict[Any, Any], key: str, kwargs_key: str) -> list[Problem]:
    """Replace `{type: AdamW, lr: 1e-3}` by the name and its arguments."""
    arguments = dict(fields[key])
    if "type" not in arguments:
        del fields[key]
        return [Problem(f"{key}.type", f"missing. Name the {key}, such as '{_EXAMPLES[key]}'")]
    fields[key] = arguments.pop("type")
    if arguments and fields.get(kwargs_key):
        text = f"given together with arguments in {key}, move them there or remove them"
        return [Problem(kwargs_key, text)]
    if arguments:
        fields[kwargs_key] = arguments
    return []
