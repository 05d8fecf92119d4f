"""The contestants of `benchmarks/overhead.py`: the same training, written once for each library.

Each contestant has a file of its own with one function, `train(task: Task) -> Run`. `task.py` holds what they share
(data, model, settings), `measure.py` the clock. `python -m peers NAME --steps N --folder DIR`, started in
`benchmarks/`, runs one of them in the process at hand and leaves `DIR/run.json`; `overhead.py` does that for you.

This file imports no library, so that `overhead.py` can read it where some of them are missing.
"""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

EPOCHS = 2
CLIP_NORM = 1.0


@dataclass(frozen=True, slots=True)
class Run:
    """What one contestant did in one process."""

    seconds: float  # from the model's first forward pass to the return of the fit or loop
    fit_seconds: float  # from the call of the fit or loop to its return: the same and the set-up before it
    final_loss: float  # mean over the training data, after training
    optimizer_steps: int
    first_gradient_norm: float  # as the first optimizer step saw it, hence clipped


@dataclass(frozen=True, slots=True)
class Peer:
    """One contestant: the name it goes by, the file here that trains with it, and what it needs installed."""

    name: str
    file: str
    package: str  # what is imported
    distribution: str  # what pip installs

    @property
    def installed(self) -> bool:
        return find_spec(self.package) is not None

    @property
    def version(self) -> str:
        try:
            return version(self.distribution)
        except PackageNotFoundError:
            return "not installed, taken from this checkout"


PEERS = {
    peer.name: peer
    for peer in (
        Peer("torch", "bare_torch", "torch", "torch"),
        Peer("torch-fast", "fast_torch", "torch", "torch"),
        Peer("accelerate", "accelerate_by_hand", "accelerate", "accelerate"),
        Peer("lightning", "lightning_trainer", "lightning", "lightning"),
        Peer("transformers", "transformers_trainer", "transformers", "transformers"),
        Peer("ignite", "ignite_engine", "ignite", "pytorch-ignite"),
        Peer("accmt", "accmt_trainer", "accmt", "accmt"),
    )
}
