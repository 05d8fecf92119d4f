"""Where a training is, when what it is counted in changes."""

from dataclasses import asdict, dataclass

import pytest

from accmt.data.position_unit import Unit
from accmt.loop.progress import TrainingPosition


@dataclass
class Data:
    """Epochs of so many batches of two samples on each process."""

    batches: int
    accumulation: int = 1
    processes: int = 1

    @property
    def unit(self):
        return Unit("samples", 2, self.processes, 1)

    @property
    def steps_per_epoch(self):
        return -(-self.batches // self.accumulation)

    def steps_in(self, epoch):
        return self.steps_per_epoch

    def steps_before(self, epoch):
        return epoch * self.steps_per_epoch

    def epochs_for(self, steps):
        return -(-steps // self.steps_per_epoch)

    def samples_after(self, batches, offset=0):
        return 2 * batches * self.processes + offset

    def locate(self, place, then):
        return divmod(place, self.unit.size)

    def steps_left(self, epoch, batch, offset):
        samples = self.batches * self.unit.size - offset
        return max(0, -(-(-(-samples // self.unit.size) - batch) // self.accumulation))


def at(step, epoch, batch, step_in_epoch, processes=1):
    """A position counted in batches of two samples on each of so many processes."""
    counted = {"step": step, "epoch": epoch, "batch": batch, "step_in_epoch": step_in_epoch}
    unit = Unit("samples", 2, processes, 1)
    return {**counted, "evaluation": 0, "samples_before": 0, "place": batch * unit.size, "unit": asdict(unit)}


def counted(counters, processes):
    """The counters as a checkpoint of so many processes has them."""
    unit = Unit("samples", 2, processes, 1)
    return {"place": counters["batch"] * unit.size, "unit": asdict(unit), **counters}


@pytest.mark.parametrize(
    ("before", "now", "per_epoch", "batch", "total"),
    [
        (2, 2, 6, 4, 18),  # nothing changes
        (2, 1, 12, 8, 26),  # 10 steps, 4 and 12 still to come
        (2, 3, 4, 2, 16),  # 10 steps, 2 and 4 still to come; 4 of the samples of a round of 6 are left out before
        (2, 4, 3, 2, 14),
    ],
)
def test_another_number_of_processes(before, now, per_epoch, batch, total):
    """After the first epoch of three and 4 of 6 batches each of two processes."""
    position = TrainingPosition(Data(per_epoch, processes=now), 3, None)
    position.restore(at(10, 1, 4, 4, before))
    assert (position.batch, position.step_in_epoch) == (batch, batch)
    assert position.batch * 2 * now + position.offset == 16  # samples
    assert position.moved == (before != now)
    assert position.total_steps == total
    assert position.total_steps - position.step == 2 * per_epoch - batch
    assert not position.ends


def test_other_data():
    position = TrainingPosition(Data(9), 3, None)
    position.restore(at(12, 2, 0, 0))  # two epochs of six
    assert position.total_steps == 21


def test_a_limit_of_steps_stays():
    position = TrainingPosition(Data(9), 3, 40)
    position.restore(at(12, 2, 0, 0))
    assert position.total_steps == 40
    assert position.total_epochs == 6  # two, three whole ones, and one step more


def test_steps_of_several_batches():
    position = TrainingPosition(Data(24, accumulation=4), 2, None)
    position.restore(at(1, 0, 16, 1))
    assert (position.batch, position.step_in_epoch) == (16, 4)
    assert position.total_steps == 1 + 2 + 6


def test_nothing_is_left_of_an_epoch():
    """The three samples that are left are no whole round of batches: the next epoch follows."""
    position = TrainingPosition(Data(2, processes=2), 3, None)
    position.restore(at(3, 1, 4, 0))
    assert (position.epoch, position.batch, position.offset, position.passed_end) == (2, 0, 0, True)
    assert (position.progress(0).samples, position.total_steps) == (8, 5)
