"""What a tracker is told beside what the user logs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Monitor:
    """Which values are sent to the tracker. Learning rate, gradient norm and utilization are sent while training only.

    Args:
        learning_rate: The learning rate of the first parameter group (`learning_rate`).
        epoch: The epoch, with a fraction inside of it (`epoch`).
        train_loss: The mean training loss of each logging interval.
        validation_loss: The validation loss of each dataset.
        additional_metrics: The metrics of each dataset.
        grad_norm: The norm of all gradients before clipping (`grad_norm`), at logging steps.
        gpu_utilization: GB (1e9 bytes) that the tensors of the main process take on its GPU (`gpu_utilization`), and
            the per cent of time that this GPU is busy (`gpu_utilization_percent`, by nvidia-ml-py).
        cpu_utilization: GB (1e9 bytes) of memory that the main process holds (`cpu_utilization`), and the per cent of
            time that the processors of its machine were busy since the last logging (`cpu_utilization_percent`).
        checkpoint: The number of each checkpoint when it is made (`checkpoint`).
    """

    learning_rate: bool = False
    epoch: bool = True
    train_loss: bool = True
    validation_loss: bool = True
    additional_metrics: bool = True
    grad_norm: bool = False
    gpu_utilization: bool = False
    cpu_utilization: bool = False
    checkpoint: bool = False
