"""Transfer of batches before a step: their device, and their precision if an engine requires one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, recursively_apply, send_to_device
from torch import Tensor

_PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class DeviceTransfer:
    """Device for batches, and precision for their floating point tensors; None leaves them unchanged."""

    device: torch.device | None
    dtype: torch.dtype | None

    @classmethod
    def of(cls, accelerator: Accelerator, *, moves: bool, converts: bool) -> DeviceTransfer:
        """Return the transfer for a training: DeepSpeed holds the model in low precision and computes in no other."""
        engine = accelerator.distributed_type == DistributedType.DEEPSPEED
        return cls(
            accelerator.device if moves and accelerator.device.type != "cpu" else None,
            _PRECISIONS.get(accelerator.mixed_precision) if converts and engine else None,
        )

    def __bool__(self) -> bool:
        """Return whether there is anything to do."""
        return self.device is not None or self.dtype is not None

    def __call__(self, batch: Any) -> Any:
        if self.device is not None:
            batch = send_to_device(batch, self.device, non_blocking=True)
        if self.dtype is not None:
            batch = recursively_apply(lambda tensor: tensor.to(self.dtype), batch, test_type=_is_floating)
        return batch


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
