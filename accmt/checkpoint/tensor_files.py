"""The two kinds of files of a checkpoint: strict JSON, and tensors as safetensors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

import torch
from safetensors import safe_open
from safetensors.torch import save, save_file
from torch import Tensor
from torch.nn.parameter import is_lazy

from accmt.rules.codec import from_plain

_ALIASES = "aliases"
_CANNOT = "which safetensors cannot hold"
_INSTEAD = {
    "quantized": "its int_repr(), scale and zero point",
    "nested": "its values and offsets",
    "sparse": "its indices and values, or dense",
}

# File name -> content: JSON, or named tensors.
Files = Mapping[str, str | Mapping[str, Tensor]]


def write_files(folder: Path, files: Files) -> Iterator[Path]:
    """Write files into a folder, and yield the path of each once it is written."""
    for name, content in files.items():
        path = folder / name
        if isinstance(content, str):
            path.write_text(content, encoding="utf-8", newline="\n")
        else:
            write_tensors(path, content)
        yield path


def size_of(files: Files) -> int:
    """Estimate the bytes that files take on the disk."""
    return sum(
        len(content)
        if isinstance(content, str)
        else sum(tensor.nbytes for tensor in content.values() if isinstance(tensor, Tensor))
        for content in files.values()
    )


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors; one with several names (tied weights) is written once.

    Raises:
        TypeError: The file format cannot hold one of them.
    """
    for name, tensor in tensors.items():
        problem = tensor_problem(tensor) if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}, {_CANNOT}"
        if problem is not None:
            raise TypeError(f"'{name}' is {problem}")
    copies = in_main_memory(tensors)
    first_names: dict[int, str] = {}
    first_name = {name: first_names.setdefault(id(tensor), name) for name, tensor in copies.items()}
    aliases = {name: first for name, first in first_name.items() if name != first}
    metadata = {"format": "pt"} | ({_ALIASES: json.dumps(aliases)} if aliases else {})
    save_file({name: copies[name] for name in copies if name not in aliases}, path, metadata=metadata)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a file into main memory, tied weights under each of their names."""
    with safe_open(path, framework="pt", device="cpu") as file:
        # Clone, because tensors of the file are unaligned, and sums over them round differently than before the save.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  (not a mapping)
        aliases = aliases_of(file)
    return tensors | {name: tensors[original] for name, original in aliases.items()}


def aliases_of(file: Any) -> dict[str, str]:
    """Return name -> the name under which it was written, for the tied weights in an open file."""
    aliases: dict[str, str] = from_plain(dict[str, str], json.loads((file.metadata() or {}).get(_ALIASES, "{}")))
    return aliases


def identity_of(name: object, tensor: Tensor) -> tuple[object, ...]:
    """Return a key that is equal for two tensors that view the same memory in the same way, whatever their names."""
    if tensor.layout is not torch.strided or tensor.numel() == 0:
        return (name,)
    storage = tensor.untyped_storage().data_ptr()
    read_as = (tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.is_conj(), tensor.is_neg())
    return (tensor.device, storage, tensor.storage_offset(), *read_as)


def in_main_memory(values: Mapping[str, Any], *, trimmed: bool = False) -> dict[str, Any]:
    """Return tensors as files hold them: in main memory, contiguous, no two in one storage.

    Names that share memory (tied weights) share one tensor in the result. Sparse tensors and other values stay as
    they are.

    Args:
        values: The tensors, by name.
        trimmed: Also copy views of larger storages, which `torch.save` would write as a whole.
    """
    storages: set[int] = set()
    copies: dict[tuple[object, ...], Tensor] = {}
    result: dict[str, Any] = {}
    for name, value in values.items():
        if not isinstance(value, Tensor) or value.layout is not torch.strided:
            result[name] = value
            continue
        identity = identity_of(name, value)
        if identity not in copies:
            tensor = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
            storage = tensor.untyped_storage()
            if storage.data_ptr() in storages or (trimmed and storage.nbytes() != tensor.nbytes):
                tensor = tensor.clone(memory_format=torch.contiguous_format)
            storages.add(tensor.untyped_storage().data_ptr())
            copies[identity] = tensor
        result[name] = copies[identity]
    return result


def tensor_problem(tensor: Tensor, *, safe: bool = True) -> str | None:
    """Describe why a tensor cannot be written; None if it can.

    Args:
        tensor: The tensor.
        safe: Whether it is written as safetensors, not by `torch.save`.
    """
    if is_lazy(tensor):
        return "without a shape: it gets one in its first forward pass. Run one before fit"
    if tensor.is_meta:
        return (
            "on the meta device: it has no values. Give it values before fit, such as with to_empty and load_state_dict"
        )
    if tensor.is_nested or tensor.layout is not torch.strided or tensor.is_quantized:
        kind = "quantized" if tensor.is_quantized else "nested" if tensor.is_nested else "sparse"
        return f"a {kind} tensor, {_CANNOT}. Register it as {_INSTEAD[kind]}"
    if safe and not _holds(tensor.dtype):
        return f"a tensor of {str(tensor.dtype).removeprefix('torch.')}, {_CANNOT}. Use another dtype"
    return None


@cache
def _holds(dtype: torch.dtype) -> bool:
    """Return whether safetensors supports a dtype."""
    try:
        with catch_warnings():
            simplefilter("ignore")  # torch warns about some of its dtypes
            save({"": torch.empty(0, dtype=dtype)})
    except Exception:
        return False
    return True
