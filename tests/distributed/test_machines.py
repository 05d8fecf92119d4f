"""Two machines with two processes each. A machine is a network namespace here, and a wire between them can be cut.

On each of them torchrun starts the processes, with its own code; but both are forked, so that none has to import torch.
"""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from launching import launch, start

SCRIPT = Path(__file__).parent / "train.py"
ADDRESSES = ("10.77.0.1", "10.77.0.2")
OPTIONS = ("dropout=0.2", 'checkpoint_every="2 steps"', "evaluate_every_n_steps=3", "epochs=3")
TORCHRUN = """
import ctypes, os, sys
from torch.distributed.run import main

NEWNET = 0x40000000
name, *arguments = sys.argv[1:]
assert ctypes.CDLL(None).setns(os.open(f"/run/netns/{name}", os.O_RDONLY), NEWNET) == 0
main(arguments)
"""

pytestmark = pytest.mark.xdist_group("processes")


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
        """Start the training on both."""
        self.destroy_processes()
        self.started = []
        for rank, name in enumerate(self.names):
            machine = ["--nnodes=2", f"--node-rank={rank}", "--nproc-per-node=2", "--start-method=fork", "--run-path"]
            machine += [f"--master-addr={ADDRESSES[0]}", "--master-port=29500"]
            arguments = [folders[rank] if folders else folder, *OPTIONS, *pairs]
            environment = {"GLOO_SOCKET_IFNAME": "wire"}
            self.started.append(start(TORCHRUN, name, *machine, SCRIPT, *arguments, environment=environment))

    def ends(self):
        """The exit status of both, and what they wrote."""
        ran = [running.end() for running in self.started]
        return [each.returncode for each in ran], "\n".join(each.stdout + each.stderr for each in ran)

    def destroy_processes(self):
        for running in self.started:
            with running:
                pass

    def destroy(self):
        self.destroy_processes()
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

    machines.launch(cut, "timeout=10", "held=5")
    while not list((cut / "checkpoints").glob("checkpoint-*-step-4")):
        assert all(running.is_running() for running in machines.started), machines.ends()
        time.sleep(0.01)
    machines.cut(True)
    Path(f"{cut}.go").touch()
    codes, _ = machines.ends()  # torch alone waits for half an hour
    assert 0 not in codes
    machines.cut(False)
    machines.launch(cut)
    codes, printed = machines.ends()
    assert codes == [0, 0], printed
    assert "continuing from checkpoint-" in printed
    found = outcomes(cut)
    assert found == [found[0]] * 4
    assert [decision["step"] for decision in found[0]["decisions"]] == [3, 6, 9, 12]
    assert timeless(found[0]) == timeless(expected[0])


def test_folders_that_are_not_shared_are_refused_before_the_first_step(machines, tmp_path):
    folders = [tmp_path / "here" / "model", tmp_path / "there" / "model"]
    for folder in folders:
        folder.parent.mkdir()
    machines.launch(tmp_path / "model", folders=folders)
    codes, printed = machines.ends()
    assert 0 not in codes
    assert "is a different folder there: several machines need a shared one" in printed
    assert not (folders[0] / "checkpoints").exists()
    assert not folders[1].exists()
