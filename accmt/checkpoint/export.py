"""Writing of the weights of a checkpoint or a saved model as safetensors, for use outside of a training.

It reads replicas, sharded tensors and DeepSpeed's files into main memory, in one process and without a process group.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from accmt.checkpoint import deepspeed, publish
from accmt.checkpoint.checkpoints import MODEL, TRAINER
from accmt.checkpoint.disk_space import require_space
from accmt.checkpoint.format import read_trainer
from accmt.checkpoint.saved_models import place_of_best
from accmt.checkpoint.shards import read_shards
from accmt.checkpoint.tensor_files import aliases_of, read_tensors, size_of, write_tensors
from accmt.checkpoint.weights import BESIDE, WeightsFormat, read_beside, read_weights, write_weights
from accmt.files.durable import flush_directory, flush_file, replacing
from accmt.rules.printable import escaped

_SUFFIX = ".safetensors"
_DEEPSPEED_STATE = "mp_rank_00_model_states.pt"
_ZERO_3 = 3


class CannotExport(ValueError):
    """Raised when weights cannot be read or written; the message says why. Nothing was written."""


@dataclass(frozen=True, slots=True)
class ExportedWeights:
    """Weights that were written.

    Attributes:
        source: The folder that they come from.
        tensors: The number of tensors; tied weights count once for each name.
        size: The bytes written.
        dtypes: The dtypes of the tensors, such as "float32".
        left_out: What else is in the source and was not written, one line each.
    """

    source: Path
    tensors: int
    size: int
    dtypes: tuple[str, ...]
    left_out: tuple[str, ...]


def export_weights(source: Path, target: Path, dtype: torch.dtype | None = None) -> ExportedWeights:
    """Write the weights of a checkpoint or a saved model, every byte of which is verified first.

    Args:
        source: The folder of a checkpoint or a saved model; the folder of a rule that keeps several means the best.
        target: A file, if its name ends with `.safetensors`, else a folder, with an index if there are several files.
            It appears when it is complete.
        dtype: The dtype to which floating-point weights are converted; None leaves them as they are.

    Raises:
        CannotExport: The source is damaged or of another kind, the target exists, or the dtype cannot hold a value.
        OSError: It cannot be written.
    """
    if os.path.lexists(target):
        raise CannotExport(f"{target} exists already: give the name of a new file or folder")
    if not target.parent.is_dir():
        raise CannotExport(f"there is no folder {target.parent} to write {target.name} into")
    place = _verified(source)
    with _understood(place):
        weights, beside, other = _read_checkpoint(place) if (place / TRAINER).is_file() else _read_model(place)
    is_file = target.suffix == _SUFFIX
    left_out = [f"not tensors: {', '.join(other)}"] if other else []
    if beside and is_file:
        names = ", ".join(dict.fromkeys(name.partition(".")[0] for name in beside))
        left_out.append(f"trained alongside the model: {names} (a folder as the target has them as well, in {BESIDE})")
        beside = {}
    weights, beside = _converted(weights, dtype), _converted(beside, dtype)
    _write(target, weights, beside, is_file)
    files = [target] if is_file else [path for path in target.iterdir() if path.suffix == _SUFFIX]
    tensors = [*weights.values(), *beside.values()]
    dtypes = dict.fromkeys(str(tensor.dtype).removeprefix("torch.") for tensor in tensors)
    size = sum(path.stat().st_size for path in files)
    return ExportedWeights(place, len(tensors), size, tuple(dtypes), tuple(left_out))


def _verified(source: Path) -> Path:
    """Return the folder of an intact checkpoint or saved model."""
    try:
        place = source if (source / publish.MANIFEST).is_file() else place_of_best(source)
    except ValueError as error:
        raise CannotExport(str(error)) from None
    if place is None:
        raise CannotExport(
            f"{source} is not the folder of a checkpoint or a saved model: accmt checkpoints MODEL_PATH lists those "
            f"of a training"
        )
    problem = publish.folder_problem(place)
    if problem is not None:
        raise CannotExport(f"{place} is damaged: {problem}")
    return place


@contextmanager
def _understood(place: Path) -> Iterator[None]:
    """Turn read errors in the block into `CannotExport`: the files are undamaged, but hold something else."""
    try:
        yield
    except CannotExport:
        raise
    except Exception as error:  # readers raise anything for files that were tampered with
        raise CannotExport(f"{place} cannot be read: {type(error).__name__}: {escaped(f'{error!s:.300}')}") from error


def _read_model(place: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], list[str]]:
    """Return the weights of a saved model, those of the other networks, and names of values that are not tensors."""
    weights, other = _tensors_in(read_weights(place))
    return weights, read_beside(place), other


def _read_checkpoint(place: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], list[str]]:
    """Return the weights of a checkpoint, those of the networks besides the model, and names of its other state."""
    trainer = read_trainer(place)
    beside = read_beside(place)
    if trainer.get("deepspeed") is not None:
        weights, other = _tensors_in(_read_deepspeed(place, trainer["deepspeed"]["stage"]))
        return weights, beside, other
    return {**read_tensors(place / MODEL), **_read_sharded(place)}, beside, sorted(trainer["model"])


def _read_sharded(place: Path) -> dict[str, Tensor]:
    """Return each sharded weight in full, tied weights as one tensor under each of their names."""
    shards, originals, found = read_shards(place), dict[str, str](), dict[str, Tensor]()
    for path in place.glob("shards-*.safetensors"):
        with safe_open(path, framework="pt", device="cpu") as file:
            originals |= aliases_of(file)
    weights = {}
    for name, stand_in in shards.stand_ins(MODEL).items():
        key = f"{MODEL.removesuffix(_SUFFIX)}.{name}"
        original = originals.get(key, key)
        if original not in found:
            found[original] = shards.alike(stand_in, None)
        weights[name] = found[original]
    return weights


def _read_deepspeed(place: Path, stage: int) -> Mapping[str, Any]:
    """Return the weights of a checkpoint of DeepSpeed: those of ZeRO-3 in float32, others as the model computes."""
    folder = place / deepspeed.FOLDER / "state"
    try:
        deepspeed.check_files(folder)
    except deepspeed.UntrustedFile as error:
        raise CannotExport(f"{place} is not read, because a file in it would execute code") from error
    if stage < _ZERO_3:
        # Anything but plain data was refused above; a loss scaler can only be read where DeepSpeed is installed.
        state: Mapping[str, Any] = torch.load(folder / _DEEPSPEED_STATE, map_location="cpu", weights_only=False)
        return state["module"]  # type: ignore[no-any-return]
    with _silently():
        try:
            from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
        except ImportError:
            text = "is sharded by ZeRO-3, which only DeepSpeed can read: pip install deepspeed"
            raise CannotExport(f"{place} {text}") from None
        return get_fp32_state_dict_from_zero_checkpoint(str(folder.parent), tag=folder.name)  # type: ignore[no-any-return]


@contextmanager
def _silently() -> Iterator[None]:
    """Silence the reports of progress and the logs that DeepSpeed writes, to stdout too."""
    former = logging.root.manager.disable
    logging.disable(max(former, logging.WARNING))
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            yield
    finally:
        logging.disable(former)


def _tensors_in(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    return tensors, sorted(state.keys() - tensors.keys())


def _converted(weights: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Convert floating-point weights to a dtype; tied weights stay tied."""
    made: dict[tuple[object, ...], Tensor] = {}
    result = dict(weights)
    for name, tensor in weights.items():
        if dtype is None or not tensor.is_floating_point() or tensor.layout is not torch.strided:
            continue
        identity = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if identity not in made:
            made[identity] = tensor.to(dtype)
            if bool((tensor.isfinite() & ~made[identity].isfinite()).any()):
                largest, most = tensor[tensor.isfinite()].abs().max(), torch.finfo(dtype).max
                kind = str(dtype).removeprefix("torch.")
                raise CannotExport(f"'{escaped(name)}' has values up to {largest:.3g}; {kind} holds up to {most:.3g}")
        result[name] = made[identity]
    return result


def _write(target: Path, weights: Mapping[str, Tensor], beside: Mapping[str, Tensor], is_file: bool) -> None:
    require_space(target.parent, size_of({"weights": weights, "beside": beside}))
    try:
        if is_file:
            _write_file(target, weights)
            return
        with publish.publishing(target) as temporary:
            write_weights(temporary, weights, WeightsFormat(safe=True))
            if beside:
                write_tensors(temporary / BESIDE, beside)
    except TypeError as error:  # a tensor that safetensors cannot hold
        raise CannotExport(str(error)) from None


def _write_file(target: Path, weights: Mapping[str, Tensor]) -> None:
    with replacing(target) as temporary:
        write_tensors(temporary, weights)
        flush_file(temporary)
    flush_directory(target.parent)
