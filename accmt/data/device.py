"""Transfer of batches before a step: their device, and their precision if an engine requires one.

A GPU copies batches in a stream of their own. The loop is ahead of the GPU by the steps that it has queued, so the next
batch is copied while the steps before it are computed, and nothing is read earlier than it is trained on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, recursively_apply, send_to_device
from torch import Tensor

_PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class DeviceTransfer:
    """Device for batches, and precision for their floating point tensors; None leaves them unchanged.

    `stream` is the one in which a GPU copies batches, if that is not the one of the steps.
    """

    device: torch.device | None
    dtype: torch.dtype | None
    stream: torch.cuda.Stream | None = None

    @classmethod
    def of(cls, accelerator: Accelerator, *, moves: bool, converts: bool) -> DeviceTransfer:
        """Return the transfer for a training: DeepSpeed holds the model in low precision and computes in no other."""
        engine = accelerator.distributed_type == DistributedType.DEEPSPEED
        device = accelerator.device if moves and accelerator.device.type != "cpu" else None
        is_gpu = device is not None and device.type == "cuda"
        return cls(
            device,
            _PRECISIONS.get(accelerator.mixed_precision) if converts and engine else None,
            torch.cuda.Stream(device) if is_gpu else None,  # type: ignore[no-untyped-call]  # torch does not type it
        )

    def __bool__(self) -> bool:
        """Return whether there is anything to do."""
        return self.device is not None or self.dtype is not None

    def __call__(self, batch: Any) -> Any:
        if self.device is not None:
            batch = self._moved(batch)
        if self.dtype is not None:
            batch = recursively_apply(lambda tensor: tensor.to(self.dtype), batch, test_type=_is_floating)
        return batch

    def _moved(self, batch: Any) -> Any:
        if self.stream is None or not all(_is_plain(value) for value in _leaves(batch)):
            return send_to_device(batch, self.device, non_blocking=True)
        current = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self.stream):
            batch = send_to_device(batch, self.device, non_blocking=True)
        current.wait_stream(self.stream)
        for value in _leaves(batch):
            if isinstance(value, Tensor) and value.device.type != "cpu":
                value.record_stream(current)  # its memory belongs to the other stream, which must not reuse it yet
        return batch


def _leaves(batch: Any) -> Iterator[Any]:
    """Yield what a batch consists of, within mappings, lists and tuples."""
    if isinstance(batch, Mapping | list | tuple):
        for value in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _leaves(value)
    else:
        yield batch


def _is_plain(value: Any) -> bool:
    """Return whether it is a dense tensor in main memory, or something that is not moved."""
    if type(value) is Tensor:
        return value.device.type == "cpu" and value.layout is torch.strided and not value.is_nested
    return not hasattr(value, "to")


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
