"""Steps of modules that compute gradients and update parameters themselves."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from accmt.data.batch_size import samples_of
from accmt.data.loaders import Window
from accmt.loop.out_of_memory import tried_again
from accmt.loop.step import Stepper, single_value


class ManualStepper(Stepper):
    """Stepper for modules that compute gradients and update parameters themselves; each window is one batch."""

    _is_stepped = False
    _has_begun = False

    def step(self, window: Window) -> None:
        """Train on the batch of a window."""
        for told, batch in window.batches:
            samples = samples_of(batch, told, self._module)
            self._state.is_last_training_batch = window.is_last
            self._has_begun = False
            loss = tried_again(partial(self._forward, batch), self._may_repeat)
            self.losses.add(loss, samples)
            self._state.train_step += 1

    def gradients(self) -> dict[str, Tensor]:
        """Return the gradients that an optimizer step has yet to use."""
        return {} if self._is_stepped else super().gradients()

    def put_back(self, gradients: Mapping[str, Tensor]) -> None:
        """Restore the gradients as they were between two steps."""
        super().put_back(gradients)
        self._is_stepped = False

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Add the gradients of a loss; those from before the last optimizer step are dropped."""
        self._has_begun = True
        if self._is_stepped:
            self.zero_grad(self.options.set_to_none)
        super().backward(loss, **kwargs)

    def step_optimizer(self) -> None:
        """Clip the gradients and step the optimizer."""
        self._has_begun = self._is_stepped = True
        super().step_optimizer()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients."""
        self._is_stepped = False
        super().zero_grad(set_to_none)

    def _may_repeat(self) -> bool:
        return not self._has_begun and super()._may_repeat()

    def _scalar(self, loss: object) -> Tensor:
        """Return the loss, which is only recorded here: it may be detached."""
        return single_value(loss, type(self._module).__name__)
