"""Copies of tensors to be written, so that the training can continue during the write."""

from __future__ import annotations

import torch
from torch import Tensor

from accmt.checkpoint.tensor_files import Files, identity_of


class Staging:
    """Copier of tensors into main memory that is allocated once and reused for each checkpoint.

    Copies from an accelerator are asynchronous, into pinned memory; the writing thread calls `wait` for them.
    """

    def __init__(self) -> None:
        self._memory: dict[tuple[str, str], Tensor] = {}
        self._copied: list[torch.cuda.Event] = []

    def copy(self, files: Files) -> Files:
        """Copy the files; valid until the next call. Names that share memory (tied weights) still do in the copy."""
        copies: dict[tuple[object, ...], Tensor] = {}
        former, self._memory = self._memory, {}
        result: dict[str, str | dict[str, Tensor]] = {}
        devices = set[torch.device]()
        for file, content in files.items():
            if isinstance(content, str):
                result[file] = content
                continue
            staged = result[file] = dict[str, Tensor]()
            for name, tensor in content.items():
                place = (file, name)
                identity = identity_of(place, tensor)
                if identity not in copies:
                    copies[identity] = self._memory[place] = _copied(tensor, former.get(place))
                    devices.add(tensor.device)
                staged[name] = copies[identity]
        self._copied = [_mark(device) for device in devices if device.type == "cuda"]
        return result

    def wait(self) -> None:
        """Wait until the copies are complete."""
        for event in self._copied:
            event.synchronize()


def _copied(tensor: Tensor, memory: Tensor | None) -> Tensor:
    source = tensor.detach()
    if source.layout is not torch.strided or source.is_quantized:
        return source.clone()  # writing raises for what the file format does not support
    source = source.resolve_conj().resolve_neg()
    if memory is None or memory.shape != source.shape or memory.dtype != source.dtype:
        memory = torch.empty(source.shape, dtype=source.dtype, pin_memory=source.device.type == "cuda")
    return memory.copy_(source, non_blocking=memory.is_pinned())


def _mark(device: torch.device) -> torch.cuda.Event:
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event
