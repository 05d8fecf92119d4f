"""Other trainers leave their state to those that follow in the same process."""

import pytest
from accelerate.state import AcceleratorState, GradientState


@pytest.fixture(autouse=True)
def _nothing_left():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
