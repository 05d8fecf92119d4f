"""The weights of a saved model: written in one file or several, and read back.

    pytorch_model.bin  or  model.safetensors                    one file
    pytorch_model-00001-of-00002.bin, ..., pytorch_model.bin.index.json    several, if larger than `max_shard_size`
    modules.safetensors                                         weights of networks trained alongside the model

transformers and Accelerate read these names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor

from accmt._compat import bytes_of
from accmt.checkpoint.tensor_files import in_main_memory, read_tensors, write_tensors
from accmt.files.json_io import read_json, write_json
from accmt.rules.printable import escaped

_NAMES = {True: "model{suffix}.safetensors", False: "pytorch_model{suffix}.bin"}
_INDEX = ".index.json"
BESIDE = "modules.safetensors"


@dataclass(frozen=True, slots=True)
class WeightsFormat:
    """Format of weights on the disk.

    Attributes:
        safe: Whether to write safetensors, instead of a file for `torch.load(weights_only=True)`.
        max_shard_size: The maximum size of a file, such as "10GB"; larger weights are split into several.
    """

    safe: bool = False
    max_shard_size: str = "10GB"


@dataclass(frozen=True, slots=True)
class _Index:
    """Content of the index of several files: weight -> name of its file."""

    weight_map: dict[str, str]


def write_weights(folder: Path, weights: Mapping[str, Any], form: WeightsFormat) -> None:
    """Write a state dict."""
    tensors = {name: value for name, value in weights.items() if isinstance(value, Tensor)}
    if sum(tensor.nbytes for tensor in tensors.values()) <= bytes_of(form.max_shard_size):
        return _write(folder / _single(form.safe), weights, form.safe)  # splitting imports classes that take long
    split = split_torch_state_dict_into_shards(
        tensors, filename_pattern=_NAMES[form.safe], max_shard_size=form.max_shard_size
    )
    first = next(iter(split.filename_to_tensors), _single(form.safe))
    places = {name: split.tensor_to_filename.get(name, first) for name in weights}
    for file in dict.fromkeys([first, *places.values()]):
        _write(folder / file, {name: value for name, value in weights.items() if places[name] == file}, form.safe)
    if split.is_sharded:
        write_json(folder / f"{_single(form.safe)}{_INDEX}", {"metadata": split.metadata, "weight_map": places})


def read_weights(folder: Path) -> dict[str, Any]:
    """Read the state dict in a folder into main memory.

    Raises:
        FileNotFoundError: The folder has no weights.
        ValueError: They cannot be read, or the index names a file outside of the folder.
    """
    try:
        return _read_all(folder)
    except FileNotFoundError:
        raise
    except Exception as error:  # readers raise anything for files that were tampered with
        text = "".join(str(error).strip().splitlines()[0:1])
        cause = error if escaped(error, lines=True) == str(error) else None
        raise ValueError(f"the weights in {folder} cannot be read: {type(error).__name__}: {escaped(text)}") from cause


def read_beside(folder: Path) -> dict[str, Tensor]:
    """Read the weights of the networks that were trained alongside a model; {} if there are none."""
    return read_tensors(folder / BESIDE) if (folder / BESIDE).is_file() else {}


def _read_all(folder: Path) -> dict[str, Any]:
    for safe in _NAMES:
        single, index = folder / _single(safe), folder / f"{_single(safe)}{_INDEX}"
        if single.is_file():
            return _read(single, safe)
        if index.is_file():
            weights: dict[str, Any] = {}
            for file in sorted(set(read_json(index, _Index).weight_map.values())):
                if Path(file).name != file:
                    raise ValueError(f"{index} names '{file}', which is not in its folder")
                weights |= _read(folder / file, safe)
            return weights
    raise FileNotFoundError(f"there are no weights in {folder}")


def _single(safe: bool) -> str:
    """Return the name of the file of weights that need one file only."""
    return _NAMES[safe].format(suffix="")


def _write(path: Path, weights: Mapping[str, Any], safe: bool) -> None:
    if safe:
        write_tensors(path, weights)
    else:
        try:
            torch.save(in_main_memory(weights, trimmed=True), path)
        except RuntimeError as error:  # on a full disk, torch's error names neither the disk nor the file
            raise OSError(f"{path} could not be written, the disk may be full: {error}") from error


def _read(path: Path, safe: bool) -> dict[str, Any]:
    if safe:
        return dict(read_tensors(path))
    _refuse_compressed(path)
    weights: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(weights, dict):
        raise ValueError(f"{path.name} contains a {type(weights).__name__} instead of weights")
    return weights


def _refuse_compressed(path: Path) -> None:
    """Reject an archive that would take more memory than its file size; torch itself compresses nothing."""
    with ZipFile(path) as archive:
        entries = archive.infolist()
    if any(entry.compress_type != ZIP_STORED for entry in entries):
        raise ValueError(f"{path.name} is compressed: accmt did not write it")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ValueError(f"{path.name} claims to contain more than it does")
