"""Selection of values that are sent to the tracker in addition to what the user logs."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from accmt.config.errors import raise_problems, suggests
from accmt.config.kinds import FLAG


@dataclass(frozen=True)
class Monitor:
    """Selection of values sent to the tracker. Learning rate, gradient norm and utilization: only during training.

    Args:
        learning_rate: The learning rate of the first parameter group (`learning_rate`).
        epoch: The epoch, fractional between epoch ends (`epoch`).
        train_loss: The mean training loss of each logging interval.
        validation_loss: The validation loss of each dataset.
        additional_metrics: The metrics of each dataset.
        grad_norm: The norm of all gradients before clipping (`grad_norm`), at logging steps.
        gpu_utilization: GB (1e9 bytes) that the main process's tensors occupy on its GPU (`gpu_utilization`), and the
            percentage of time that this GPU is busy (`gpu_utilization_percent`, from nvidia-ml-py).
        cpu_utilization: GB (1e9 bytes) of memory that the main process uses (`cpu_utilization`), and the percentage of
            time that its machine's CPUs were busy since the last logging step (`cpu_utilization_percent`).
        checkpoint: The number of each checkpoint when it is made (`checkpoint`).

    Raises:
        ConfigError: With all names that do not exist, or all values that are neither True nor False.
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

    def __post_init__(self) -> None:
        problems = [problem for name, value in asdict(self).items() for problem in FLAG.problems(name, value)]
        raise_problems(problems, "Monitor(...)")


Monitor.__init__ = suggests("Monitor(...)")(Monitor.__init__)  # type: ignore[method-assign]
