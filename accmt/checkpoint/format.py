"""The files of a checkpoint, and how a model is restored from them.

    model.safetensors       the weights
    modules.safetensors     the weights of networks besides the model, if any
    optimizer.safetensors   tensors of the optimizer, scheduler and gradient scaler, and of a model's extra state
    shards-<rank>.*         the sharded tensors of the model and the optimizer
    trainer.json            the rest of their state, and that of the parts that all processes share
    rng-<rank>.safetensors  the random state of each process, now and at the start of its epoch
    process-<rank>.json     the state of the parts of each process, such as callbacks and other objects

Everything is read and compared with the training before any live object is changed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn

from accmt.checkpoint.checkpoints import MODEL, SCHEMA, TRAINER, NoCheckpoint
from accmt.checkpoint.deepspeed import DeepSpeedState, mismatches
from accmt.checkpoint.extra_state import ExtraState
from accmt.checkpoint.optimizer_state import NamedOptimizer
from accmt.checkpoint.serialization import pack, unpack
from accmt.checkpoint.shards import Shards, is_sharded, read_shards, shard_files
from accmt.checkpoint.state_check import plain_problems
from accmt.checkpoint.stateful import Mismatch
from accmt.checkpoint.tensor_files import Files, read_tensors
from accmt.checkpoint.weights import BESIDE, read_beside
from accmt.config.errors import ConfigError
from accmt.distributed.weight_names import as_expected, by_own_name, by_plain_name
from accmt.files.json_io import as_json, read_json
from accmt.rules.codec import Count, from_plain
from accmt.rules.printable import escaped

AVERAGE = "ema"
"""The part with the moving average of the weights, which a training may begin and end to keep at a resume."""

_OPTIMIZER = "optimizer.safetensors"
_EXTRA, _BESIDE = "model", "beside"
_LISTED = 8
# Shared parts whose state is stored in trainer.json key by key; the state of any other part is stored under its name.
_SPREAD = {
    "position": ("position", "settled", "elapsed", "data_seed", "processes", "steps_per_epoch"),
    "records": ("nan_reported", "history", "replicates", "decisions"),
}
# The beginning of the names of a part's tensors, where it is not the part's name.
_PREFIXES = {"objects": "object", "gradients": "gradient"}
_RANDOM = ("now", "epoch")


@dataclass(frozen=True, slots=True)
class _Versioned:
    schema: Count


@dataclass(frozen=True, slots=True)
class _Listed:
    frozen: list[str]
    evaluating: list[str]
    shapes: dict[str, list[Count]]


@dataclass(frozen=True, slots=True)
class _Modes:
    now: _Listed
    start: _Listed
    buffers: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Beside:
    modes: _Modes
    extra: dict[str, Any]
    attributes: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _DeepSpeed:
    stage: Count
    processes: Count
    shapes: dict[str, list[Count]]


@dataclass(frozen=True, slots=True)
class _Model:
    parts: dict[str, Any]
    kinds: dict[str, str]
    model: dict[str, Any]
    beside: _Beside
    deepspeed: _DeepSpeed | None


@dataclass(frozen=True, slots=True)
class ModelParts:
    """The model, and what is saved and restored with it.

    Attributes:
        model: The model, unwrapped.
        stateful: Optimizer, scheduler, scaler and moving average of the weights, each with `state_dict` and
            `load_state_dict`. One whose attribute `adapts` is true decides itself what it restores; it is given None if
            the checkpoint has no state for it.
        kept: Other state of the module and the callbacks.
        engine: The state of DeepSpeed, instead of model and optimizer, if DeepSpeed is used.
    """

    model: nn.Module
    stateful: Mapping[str, Any]
    kept: ExtraState
    engine: DeepSpeedState | None = None


@contextmanager
def understood(folder: Path) -> Iterator[None]:
    """Turn an error of restoring a checkpoint in the block into `NoCheckpoint`.

    As the files match the manifest, the cause is content that no training writes.

    Raises:
        NoCheckpoint: An error was raised in the block.
    """
    try:
        yield
    except (ConfigError, Mismatch, NoCheckpoint):
        raise
    except Exception as error:
        raise NoCheckpoint(
            f"{folder} cannot be used: its files are undamaged, but do not have the content of a checkpoint "
            f"({type(error).__name__}: {escaped(f'{error!s:.200}')})\n"
            f"Nothing was changed. Delete it to continue from the checkpoint before it, or start from scratch with "
            f"resume=False."
        ) from (error if escaped(error, lines=True) == str(error) else None)


def shared_files(rank: int, parts: ModelParts, states: Mapping[str, Any]) -> Files:
    """Return the files of the state that all processes share: rank 0 writes it, the others only their shards.

    Must be called on all processes.

    Args:
        rank: The rank of this process.
        parts: The model.
        states: The states of the parts that all processes share, by name.
    """
    weights, extra = _split(parts.model, parts.model.state_dict() if parts.engine is None else {})
    own = {name: part.state_dict() for name, part in parts.stateful.items()}
    packed, tensors = pack({_EXTRA: extra, _BESIDE: parts.kept.shared(), **own})
    shards = shard_files(rank, {MODEL: weights, _OPTIMIZER: tensors})
    if rank:
        return shards
    networks = parts.kept.networks()
    model, beside = packed.pop(_EXTRA), packed.pop(_BESIDE)
    head = {"schema": SCHEMA, "parts": packed, "kinds": _kinds(parts.stateful), "model": model, "beside": beside}
    head |= {"deepspeed": _described(parts.engine), "versions": {"torch": str(torch.__version__)}}
    # The largest file first: the others are written while it is hashed.
    return {
        **shards,
        _OPTIMIZER: {name: value for name, value in tensors.items() if not is_sharded(value)},
        MODEL: {name: value for name, value in weights.items() if not is_sharded(value)},
        **({BESIDE: networks} if networks else {}),
        TRAINER: as_json({**head, **_spread(states)}),
    }


def _spread(states: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for name, state in states.items()
        for key, value in (state.items() if name in _SPREAD else [(name, state)])
    }


def ranked_files(rank: int, states: Mapping[str, Any]) -> Files:
    """Return the files of the states of the parts of one process, by name; random states and gradients are tensors."""
    process: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for name, state in states.items():
        if name == "random":
            own = {f"{moment}.{key}": value for moment, values in state.items() for key, value in values.items()}
        elif name == "gradients":
            own = {f"gradient.{key}": value for key, value in state.items()}
        else:
            process[name], packed = pack(state)
            own = {f"{_PREFIXES.get(name, name)}.{key}": value for key, value in packed.items()}
        tensors |= own
    return {f"rng-{rank}.safetensors": tensors, f"process-{rank}.json": as_json(process)}


def read_trainer(folder: Path) -> dict[str, Any]:
    """Read the JSON that all processes share.

    Raises:
        Mismatch: It was written by a newer version of accmt, or by one before the first release.
    """
    trainer: dict[str, Any] = read_json(folder / TRAINER, dict[str, Any])
    from_plain(_Versioned, trainer)
    if trainer["schema"] > SCHEMA:
        raise Mismatch(
            f"{folder} was written by a newer accmt (schema {trainer['schema']}, this one reads up to {SCHEMA}): "
            f"update accmt to continue from it"
        )
    if trainer["schema"] < SCHEMA:
        raise Mismatch(
            f"{folder} was written by an accmt before its first release (schema {trainer['schema']}, this one reads "
            f"{SCHEMA}): continue with that one, or start from scratch with resume=False"
        )
    return trainer


def shared_states(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the states of the parts that all processes share, by name."""
    spread = {key for keys in _SPREAD.values() for key in keys}
    states = {name: state for name, state in trainer.items() if name not in spread}
    for name, keys in _SPREAD.items():
        states[name] = {key: trainer[key] for key in keys if key in trainer}
    return states


def read_ranked(folder: Path, rank: int) -> dict[str, Any] | None:
    """Read the states of the parts of one process, by name; None if the checkpoint has no process of this rank."""
    if rank and not (folder / f"process-{rank}.json").is_file():
        return None
    tensors: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, value in read_tensors(folder / f"rng-{rank}.safetensors").items():
        group, _, key = name.partition(".")
        tensors[group][key] = value
    process = read_json(folder / f"process-{rank}.json", dict[str, Any])
    states = {name: unpack(state, tensors[_PREFIXES.get(name, name)]) for name, state in process.items()}
    random = {moment: tensors[moment] for moment in _RANDOM}
    return {**states, "random": random, "gradients": tensors["gradient"]}


@dataclass(frozen=True, slots=True)
class ModelState:
    """State of a model in a checkpoint that fits the model here.

    Attributes:
        folder: The folder of the checkpoint.
        states: Name -> state of optimizer, scheduler and scaler.
        kinds: Name -> their classes at that time.
        weights: The weights, sharded like those here.
        networks: The weights of networks besides the model.
        beside: Other state besides the model.
        notes: What differs from then, one line each.
    """

    folder: Path
    states: dict[str, Any]
    kinds: Mapping[str, str]
    weights: Mapping[str, Tensor]
    networks: Mapping[str, Tensor]
    beside: Mapping[str, Any]
    notes: list[str]


def read_model(folder: Path, parts: ModelParts, trainer: Mapping[str, Any]) -> ModelState:
    """Read the state of a model, however the checkpoint and the model are sharded, and check that it fits.

    Raises:
        Mismatch: The model, the optimizer or the scheduler differs.
    """
    from_plain(_Model, trainer)
    _compare_engines(folder, parts.engine, trainer["deepspeed"])
    shards = read_shards(folder)
    tensors = {**read_tensors(folder / _OPTIMIZER), **shards.stand_ins(_OPTIMIZER)}
    states, beside = unpack(trainer["parts"], tensors), unpack(trainer["beside"], tensors)
    for name, value in beside["modes"]["buffers"].items():
        if not isinstance(value, Tensor):
            raise ValueError(f"the buffer {name} is {value!r:.100}")
    networks = read_beside(folder)
    lines = differences(*parts.kept.differing(networks), of="module")
    _refuse(folder, "another module", lines + parts.kept.problems(beside["attributes"]))
    weights: dict[str, Tensor] = {}
    if parts.engine is None:
        weights = {**read_tensors(folder / MODEL), **shards.stand_ins(MODEL), **unpack(trainer["model"], tensors)}
        own = by_plain_name(parts.model, parts.model.state_dict())
        weights = as_expected(weights, own)
        _refuse(folder, "another model", differences(own, weights))
    notes = _compare_parts(folder, parts.stateful, states, trainer["kinds"])
    if parts.engine is None:
        if "optimizer" in states:
            states["optimizer"] = _share_out_optimizer(shards, states["optimizer"], parts.stateful["optimizer"])
        weights = {name: shards.alike(value, own[name]) for name, value in weights.items()}
    return ModelState(folder, states, trainer["kinds"], weights, networks, beside, notes)


def load_model(parts: ModelParts, saved: ModelState) -> None:
    """Restore a model from a state that fits."""
    if parts.engine is not None:
        parts.engine.load(saved.folder)
    for name, part in parts.stateful.items():  # before the model: these can still reject a state, the model cannot
        part.load_state_dict(saved.states.get(name))
    parts.kept.restore(saved.networks, saved.beside)
    if parts.engine is None:
        parts.model.load_state_dict(by_own_name(parts.model, saved.weights))


def _described(engine: DeepSpeedState | None) -> dict[str, Any] | None:
    if engine is None:
        return None
    return {"stage": engine.stage, "processes": PartialState().num_processes, "shapes": engine.shapes()}


def _compare_engines(folder: Path, engine: DeepSpeedState | None, saved: Mapping[str, Any] | None) -> None:
    own = _described(engine)
    if own is None or saved is None:
        was = "with" if saved is not None else "without"
        lines = [f"it was written {was} DeepSpeed: launch as before"] if own is not saved else []
        _refuse(folder, "another engine", lines)
        return
    shapes = {name: torch.empty(shape, device="meta") for name, shape in saved["shapes"].items()}
    mine = {name: torch.empty(shape, device="meta") for name, shape in own["shapes"].items()}
    _refuse(folder, "another model", differences(mine, shapes))
    _refuse(folder, "another launch", mismatches(own, saved))


def _share_out_optimizer(shards: Shards, state: dict[str, Any], optimizer: Any) -> dict[str, Any]:
    """Return the state of an optimizer, sharded like its parameters."""
    shared = {
        name: {key: shards.alike(value, optimizer.parameter(name)) for key, value in own.items()}
        for name, own in state["state"].items()
    }
    return {**state, "state": shared}


def _split(model: nn.Module, state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split a state dict into tensors and the extra state of modules, both by plain names."""
    named = by_plain_name(model, state)
    weights = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    return weights, {name: value for name, value in named.items() if name not in weights}


def differences(
    expected: Mapping[str, Any], weights: Mapping[str, Any], what: str = "the checkpoint", of: str = "model"
) -> list[str]:
    """List where names or shapes of weights in a file differ from a model's state dict, one line each."""
    lines = [f"{name} is not in {what}" for name in expected if name not in weights]
    lines += [f"{name} is not in the {of}" for name in weights if name not in expected]
    for name in expected.keys() & weights.keys():
        mine, theirs = _shape(expected[name]), _shape(weights[name])
        if mine != theirs:
            lines.append(f"{name} has the shape {theirs} in {what} and {mine} in the {of}")
    return sorted(lines)


def shortened_value(lines: list[str]) -> list[str]:
    """Return the first lines, and the number of the others."""
    more = [f"... and {len(lines) - _LISTED} more"] if len(lines) > _LISTED else []
    return [*map(escaped, lines[:_LISTED]), *more]


def _compare_parts(
    folder: Path, stateful: Mapping[str, Any], states: Mapping[str, Any], kinds: Mapping[str, str]
) -> list[str]:
    fixed = {name: part for name, part in stateful.items() if not getattr(part, "adapts", False)}
    lines = [f"there is no {name} in the checkpoint" for name in fixed if name not in states]
    extra = states.keys() - stateful.keys() - {AVERAGE}
    lines += [f"the checkpoint has a {name}, and this training has none" for name in states if name in extra]
    for name, kind in _kinds(fixed).items():
        if kinds.get(name, kind) != kind:
            lines.append(f"the {name} is {kinds[name]} in the checkpoint and {kind} here")
    notes: list[str] = []
    for name, part in stateful.items() if not lines else ():
        if hasattr(part, "problems"):
            lines += part.problems(states[name]) if name in states else ()
        elif name in states and kinds.get(name) == _kinds(stateful)[name]:
            lines += plain_problems(name, part, states[name])
    if not lines and isinstance(stateful.get("optimizer"), NamedOptimizer):
        fit = stateful["optimizer"].fit(states["optimizer"])
        lines, notes = fit.lines, fit.notes
    if AVERAGE in stateful and AVERAGE not in states:
        notes = [*notes, "the checkpoint has no moving average of the weights: it starts from the weights there"]
    elif AVERAGE in states and AVERAGE not in stateful:
        notes = [*notes, "the moving average of the weights in the checkpoint is dropped"]
    _refuse(folder, "another training", lines)
    return notes


def _refuse(folder: Path, what: str, lines: list[str]) -> None:
    if lines:
        listed = "\n  ".join(shortened_value(lines))
        raise Mismatch(
            f"{folder} is a checkpoint of {what}; nothing was loaded:\n  {listed}\n"
            f"Give another model_path, or start from scratch with resume=False."
        )


def _kinds(stateful: Mapping[str, Any]) -> dict[str, str]:
    """Return the class name of each part, of an optimizer without our wrapper."""
    own = {name: part.optimizer if isinstance(part, NamedOptimizer) else part for name, part in stateful.items()}
    return {name: getattr(part, "kind", type(part).__name__) for name, part in own.items()}


def _shape(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
