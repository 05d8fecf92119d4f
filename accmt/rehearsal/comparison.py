"""Differences between an interrupted training and an uninterrupted one, by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from accmt.checkpoint.checkpoints import Checkpoints
from accmt.checkpoint.format import shortened_value
from accmt.checkpoint.publish import MANIFEST
from accmt.checkpoint.tensor_files import read_tensors
from accmt.files.json_io import read_json
from accmt.rules.reserved_names import DECISIONS, HISTORY, REPLICATES, TRAINING

BATCHES = "batches-{}.json"  # what each process read and computed


def compare_trainings(one: Path, other: Path, step: int) -> list[str]:
    """Return how two trainings differ: in their batches, their checkpoints of a step, and their journals."""
    checkpoints = [next(c.path for c in Checkpoints(path).all() if c.step == step) for path in (one, other)]
    names = {path.relative_to(folder) for folder in checkpoints for path in folder.rglob("*") if path.is_file()}
    pairs = [(path, other / path.name) for path in sorted(one.glob(BATCHES.format("*")))]
    pairs += [(checkpoints[0] / name, checkpoints[1] / name) for name in sorted(names) if name.name != MANIFEST]
    pairs += [
        (one / name, other / name) for name in (HISTORY, REPLICATES, DECISIONS, TRAINING) if (one / name).exists()
    ]
    return [line for first, second in pairs for line in shortened_value(list(_differing(first, second)))]


def _differing(one: Path, other: Path) -> Iterator[str]:
    values, others = _values(one), _values(other)
    for name in {**values, **others}:
        pair = values.get(name), others.get(name)
        if name.rpartition(".")[2] != "elapsed" and not _same(*pair):
            yield f"{one.name}: {name}{_how(*pair)}"


def _values(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    if path.suffix == ".safetensors":
        return read_tensors(path)
    if path.suffix == ".json":
        return dict(_leaves(read_json(path)))
    if path.suffix == ".jsonl":
        return dict(_leaves([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]))
    return {"content": path.read_bytes()}


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict | list):
        yield name, value
        return
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _leaves(item, f"{name}.{key}" if name else str(key))


def _same(one: Any, other: Any) -> bool:
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)):
        return type(one) is type(other) and bool(one == other)
    bits = [value.contiguous().reshape(-1).view(torch.uint8) for value in (one, other)]
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*bits)


def _how(one: Any, other: Any) -> str:
    if isinstance(one, Tensor) and isinstance(other, Tensor) and one.shape == other.shape:
        return f" differs by at most {(one.double() - other.double()).abs().max():.3g}"
    is_short = isinstance(one, int | float | str) and isinstance(other, int | float | str)
    return f" is {other!r:.50} instead of {one!r:.50}" if is_short else " differs"
