"""What a checkpoint holds, and how it is taken up again.

    model.safetensors       the weights
    modules.safetensors     those of networks beside the model, where there are any
    optimizer.safetensors   the tensors of optimizer, scheduler and gradient scaler, and of a model's extra state
    shards-<rank>.*         of both, what is shared out among the processes
    trainer.json            the rest of those, position, rules, state
    rng-<rank>.safetensors  the random state of each process, now and at the start of its epoch
    process-<rank>.json     what else each process alone knows, the states of callbacks and other objects among it

Everything is read and compared with the training before anything of it is touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn

from accmt.checkpoint.checkpoints import SCHEMA, NoCheckpoint
from accmt.checkpoint.deepspeed import DeepSpeedState, mismatches
from accmt.checkpoint.files import Files, read_tensors
from accmt.checkpoint.kept import Kept
from accmt.checkpoint.names import as_expected, by_own_name, by_plain_name
from accmt.checkpoint.optimizer import NamedOptimizer
from accmt.checkpoint.packing import pack, unpack
from accmt.checkpoint.shards import Shards, is_shared_out, read_shards, shard_files
from accmt.checkpoint.strict import as_json, read_json
from accmt.config.errors import ConfigError
from accmt.rules.texts import plain

_MODEL, _OPTIMIZER, _TRAINER = "model.safetensors", "optimizer.safetensors", "trainer.json"
_NETWORKS = "modules.safetensors"
_EXTRA, _BESIDE = "model", "beside"
_LISTED = 8


@dataclass(frozen=True, slots=True)
class Parts:
    """The live objects that a checkpoint is made of.

    Attributes:
        model: The model, in no wrapper.
        stateful: Optimizer, scheduler and scaler, each with `state_dict` and `load_state_dict`. One with an attribute
            `adapts` that is true decides for itself what it takes of a state, or of None where there is none.
        engine: Where DeepSpeed keeps model and optimizer: its own state, in the place of these two.
        kept: What module and callbacks keep besides.
    """

    model: nn.Module
    stateful: Mapping[str, Any]
    engine: DeepSpeedState | None = None
    kept: Kept | None = None

    def named(self) -> dict[str, Any]:
        """The stateful parts, each optimizer with its state by the names of parameters."""
        parameters = (self.kept or Kept(None, self.model)).parameters
        return {
            name: NamedOptimizer(part, parameters) if isinstance(part, torch.optim.Optimizer) else part
            for name, part in self.stateful.items()
        }


@dataclass(frozen=True, slots=True)
class Own:
    """What one process alone knows: JSON, and the random states by name."""

    process: dict[str, Any]
    random: dict[str, Tensor]


class Mismatch(RuntimeError):
    """A checkpoint belongs to another training."""


@contextmanager
def understood(folder: Path) -> Iterator[None]:
    """Take up a checkpoint in the block, the model last of all: an error before that is told as one of the checkpoint,
    whose files are those of its manifest, and hold something else than a training wrote.

    Raises:
        NoCheckpoint: An error was raised in the block.
    """
    try:
        yield
    except (ConfigError, Mismatch, NoCheckpoint):
        raise
    except Exception as error:
        raise NoCheckpoint(
            f"{folder} cannot be used: its files are undamaged, and hold what no checkpoint does "
            f"({type(error).__name__}: {plain(f'{error!s:.200}')})\n"
            f"Nothing was changed. Delete it to continue from the one before, or start from scratch with resume=False."
        ) from (error if plain(error, lines=True) == str(error) else None)


def state_files(rank: int, parts: Parts, trainer: Mapping[str, Any]) -> Files:
    """What a process writes of the state that all have in common: the first writes it, the others what they alone have
    of it. To be called on all."""
    weights, extra = _split(parts.model, parts.model.state_dict() if parts.engine is None else {})
    states = {name: part.state_dict() for name, part in parts.named().items()}
    beside = {} if parts.kept is None else parts.kept.shared()
    packed, tensors = pack({_EXTRA: extra, _BESIDE: beside, **states})
    shards = shard_files(rank, {_MODEL: weights, _OPTIMIZER: tensors})
    if rank:
        return shards
    networks = {} if parts.kept is None else parts.kept.networks()
    model, beside = packed.pop(_EXTRA), packed.pop(_BESIDE)
    head = {"schema": SCHEMA, "parts": packed, "kinds": _kinds(parts.stateful), "model": model, "beside": beside}
    head["deepspeed"] = _described(parts.engine)
    # The largest first: the others are written while it is hashed.
    return {
        **shards,
        _OPTIMIZER: {name: value for name, value in tensors.items() if not is_shared_out(value)},
        _MODEL: {name: value for name, value in weights.items() if not is_shared_out(value)},
        **({_NETWORKS: networks} if networks else {}),
        _TRAINER: as_json({**head, **trainer}),
    }


def own_files(rank: int, own: Own) -> Files:
    """What each process writes for itself."""
    return {f"rng-{rank}.safetensors": own.random, f"process-{rank}.json": as_json(own.process)}


def read_trainer(folder: Path) -> dict[str, Any]:
    """The JSON that all processes share.

    Raises:
        Mismatch: It was written by a newer version.
    """
    trainer: dict[str, Any] = read_json(folder / _TRAINER)
    if type(trainer["schema"]) is not int:
        raise ValueError(f"{trainer['schema']!r:.100} is not a schema")
    if trainer["schema"] > SCHEMA:
        raise Mismatch(
            f"{folder} was written by a newer accmt (schema {trainer['schema']}, this one reads up to {SCHEMA}): "
            f"update accmt to continue from it"
        )
    return trainer


def read_own(folder: Path, rank: int) -> Own | None:
    """What a process wrote for itself; None if there was no process of this rank."""
    if not (folder / f"process-{rank}.json").is_file():
        return None
    return Own(read_json(folder / f"process-{rank}.json"), read_tensors(folder / f"rng-{rank}.safetensors"))


def load_parts(folder: Path, parts: Parts, trainer: Mapping[str, Any]) -> list[str]:
    """Put the live objects into the state of a checkpoint, whichever way it was and they are shared out.

    Returns:
        What is not as it was, one line each.

    Raises:
        Mismatch: The model, the optimizer or the scheduler is another one; nothing was loaded.
    """
    _compare_engines(folder, parts.engine, trainer.get("deepspeed"))
    shards = read_shards(folder)
    tensors = {**read_tensors(folder / _OPTIMIZER), **shards.stand_ins(_OPTIMIZER)}
    states, beside = unpack(trainer["parts"], tensors), unpack(trainer.get("beside", {}), tensors)
    named = parts.named()
    notes = _compare_parts(folder, named, states, trainer["kinds"])
    networks = read_tensors(folder / _NETWORKS) if (folder / _NETWORKS).is_file() else {}
    if parts.kept is not None:
        _refuse(folder, "another module", differences(*parts.kept.differing(networks), of="module"))
    if parts.engine is not None:
        parts.engine.load(folder)
        _load_states(named, states)
        _keep(parts, networks, beside)
        return notes
    weights = {**read_tensors(folder / _MODEL), **shards.stand_ins(_MODEL), **unpack(trainer["model"], tensors)}
    own = by_plain_name(parts.model, parts.model.state_dict())
    weights = as_expected(weights, own)
    _refuse(folder, "another model", differences(own, weights))
    if "optimizer" in states:
        states["optimizer"] = _share_out_optimizer(shards, states["optimizer"], named["optimizer"])
    weights = {name: shards.alike(value, own[name]) for name, value in weights.items()}
    _load_states(named, states)  # these can refuse what is no state of theirs, and the model cannot any more
    _keep(parts, networks, beside)
    parts.model.load_state_dict(by_own_name(parts.model, weights))
    return notes


def _keep(parts: Parts, networks: Mapping[str, Tensor], beside: Mapping[str, Any]) -> None:
    if parts.kept is not None and beside:  # a checkpoint of an earlier version has none
        parts.kept.restore(networks, beside)


def _load_states(stateful: Mapping[str, Any], states: Mapping[str, Any]) -> None:
    for name, part in stateful.items():
        part.load_state_dict(states.get(name))


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
    """The state of an optimizer, that of each parameter shared out as the parameter is."""
    shared = {
        name: {key: shards.alike(value, optimizer.parameter(name)) for key, value in own.items()}
        for name, own in state["state"].items()
    }
    return {**state, "state": shared}


def _split(model: nn.Module, state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors, and the extra state that a module may keep beside them, by plain names."""
    named = by_plain_name(model, state)
    weights = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    return weights, {name: value for name, value in named.items() if name not in weights}


def differences(
    expected: Mapping[str, Any], weights: Mapping[str, Any], what: str = "the checkpoint", of: str = "model"
) -> list[str]:
    """Where the weights of a file are not those of a model's state dict: names and shapes, a line each."""
    lines = [f"{name} is not in {what}" for name in expected if name not in weights]
    lines += [f"{name} is not in the {of}" for name in weights if name not in expected]
    for name in expected.keys() & weights.keys():
        mine, theirs = _shape(expected[name]), _shape(weights[name])
        if mine != theirs:
            lines.append(f"{name} has the shape {theirs} in {what} and {mine} in the {of}")
    return sorted(lines)


def shortened(lines: list[str]) -> list[str]:
    """The first lines, and how many more there are."""
    more = [f"... and {len(lines) - _LISTED} more"] if len(lines) > _LISTED else []
    return [*map(plain, lines[:_LISTED]), *more]


def _compare_parts(
    folder: Path, stateful: Mapping[str, Any], states: Mapping[str, Any], kinds: Mapping[str, str]
) -> list[str]:
    fixed = {name: part for name, part in stateful.items() if not getattr(part, "adapts", False)}
    lines = [f"there is no {name} in the checkpoint" for name in fixed if name not in states]
    lines += [f"the checkpoint has a {name}, and this training has none" for name in states if name not in stateful]
    for name, kind in _kinds(fixed).items():
        if kinds.get(name, kind) != kind:
            lines.append(f"the {name} is {kinds[name]} in the checkpoint and {kind} here")
    notes: list[str] = []
    if not lines and isinstance(stateful.get("optimizer"), NamedOptimizer):
        fit = stateful["optimizer"].fit(states["optimizer"])
        lines, notes = fit.lines, fit.notes
    _refuse(folder, "another training", lines)
    return notes


def _refuse(folder: Path, what: str, lines: list[str]) -> None:
    if lines:
        listed = "\n  ".join(shortened(lines))
        raise Mismatch(
            f"{folder} is a checkpoint of {what}; nothing was loaded:\n  {listed}\n"
            f"Give another model_path, or start from scratch with resume=False."
        )


def _kinds(stateful: Mapping[str, Any]) -> dict[str, str]:
    """The class of each part; an optimizer may be in a wrapper of ours."""
    own = {name: part.optimizer if isinstance(part, NamedOptimizer) else part for name, part in stateful.items()}
    return {name: getattr(part, "kind", type(part).__name__) for name, part in own.items()}


def _shape(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
