"""Two machines with two processes each. A machine is a network namespace here, and a wire between them can be cut."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from launching import launch

SCRIPT = Path(__file__).parent / "train.py"
ADDRESSES = ("10.77.0.1", "10.77.0.2")
TIMEOUT = 6
OPTIONS = (f"timeout={TIMEOUT}", "dropout=0.2", 'checkpoint_every="2 steps"', "evaluate_every_n_steps=3", "epochs=3")

pytestmark = [pytest.mark.xdist_group("processes"), pytest.mark.timeout(300)]


def ip(*arguments):
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)


class Machines:
    """Two network namespaces, joined by a pair of virtual network cards."""

    def __init__(self):
        self.names = [f"accmt-{os.getpid()}-{number}" for number in range(2)]
        self.started = []

    def build(self):
        """Give the reason why they cannot be built here, None if they are."""
        if shutil.which("ip") is None:
            return "there is no ip command"
        for name in self.names:
            made = ip("netns", "add", name)
            if made.returncode:
                return made.stderr.strip()
        first, second = self.names
        joined = ip("link", "add", "wire", "netns", first, "type", "veth", "peer", "name", "wire", "netns", second)
        if joined.returncode:
            return joined.stderr.strip()
        for name, address in zip(self.names, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "wire")
            for card in ("lo", "wire"):
                assert ip("-n", name, "link", "set", card, "up").returncode == 0
        return None

    def cut(self, state):
        """Take the wire away, or put it back."""
        assert ip("-n", self.names[1], "link", "set", "wire", "down" if state else "up").returncode == 0

    def launch(self, folder, *pairs, folders=None):
        """Start the training on both; what each writes is beside the folder."""
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        environment |= {"GLOO_SOCKET_IFNAME": "wire"}
        self.started = []
        for rank, name in enumerate(self.names):
            machine = ["--nnodes", "2", "--node-rank", str(rank), "--nproc_per_node", "2"]
            machine += ["--master-addr", ADDRESSES[0], "--master-port", "29500"]
            command = [sys.executable, "-m", "torch.distributed.run", *machine, str(SCRIPT)]
            arguments = [str(folders[rank] if folders else folder), *OPTIONS, *pairs]
            with Path(f"{folder}-machine{rank}.txt").open("w") as log:
                self.started.append(
                    subprocess.Popen(
                        ["ip", "netns", "exec", name, *command, *arguments], stdout=log, stderr=log, env=environment
                    )
                )

    def ends(self, seconds):
        """The exit status of both."""
        return [process.wait(seconds) for process in self.started]

    def destroy(self):
        for process in self.started:
            if process.poll() is None:
                for each in (*psutil.Process(process.pid).children(recursive=True), process):
                    each.kill()
            process.wait()
        for name in self.names:
            ip("netns", "delete", name)


@pytest.fixture
def machines():
    machines = Machines()
    try:
        reason = machines.build()
        if reason is not None:
            pytest.skip(f"network namespaces cannot be made here: {reason}")
        yield machines
    finally:
        machines.destroy()


def printed(folder):
    return "\n".join(Path(f"{folder}-machine{rank}.txt").read_text() for rank in range(2))


def outcomes(folder):
    """What each of the four processes ended with."""
    return [json.loads(Path(f"{folder}-rank{rank}.json").read_text()) for rank in range(4)]


def timeless(outcome):
    """All but what the clock says."""
    decisions = [{**decision, "elapsed": None} for decision in outcome["decisions"]]
    return {**outcome, "decisions": decisions}


def test_a_training_over_two_machines_outlives_the_loss_of_one(machines, tmp_path):
    """All four processes decide alike; when the wire is cut, all end in time, and the next start goes on."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    launch(SCRIPT, whole, *OPTIONS, processes=4).check()  # on one machine, where nothing happens
    expected = outcomes(whole)
    assert expected == [expected[0]] * 4
    assert (whole / "best_accuracy@a__valid_loss@b" / "saving.json").exists()

    machines.launch(cut, "pause=0.3")
    until = time.monotonic() + 60
    while not list((cut / "checkpoints").glob("checkpoint-*-step-4")):
        assert time.monotonic() < until, printed(cut)
        time.sleep(0.05)
    machines.cut(True)
    begun = time.monotonic()
    codes = machines.ends(60)
    assert 0 not in codes
    assert time.monotonic() - begun < TIMEOUT + 20, "the agents of torchrun wait for their processes"
    machines.cut(False)
    machines.launch(cut)
    assert machines.ends(120) == [0, 0], printed(cut)
    assert "continuing from checkpoint-" in printed(cut)
    found = outcomes(cut)
    assert found == [found[0]] * 4
    assert [decision["step"] for decision in found[0]["decisions"]] == [3, 6, 9, 12]
    assert timeless(found[0]) == timeless(expected[0])


def test_folders_that_are_not_shared_are_refused_before_the_first_step(machines, tmp_path):
    folders = [tmp_path / "here" / "model", tmp_path / "there" / "model"]
    for folder in folders:
        folder.parent.mkdir()
    machines.launch(tmp_path / "model", folders=folders)
    assert 0 not in machines.ends(120)
    assert "is a different folder there: several machines need a shared one" in printed(tmp_path / "model")
    assert not (folders[0] / "checkpoints").exists()
    assert not folders[1].exists()
