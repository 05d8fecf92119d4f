"""`accmt launch` for real: what the processes are given, how they end, and that nothing stays behind."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ACCMT = Path(sys.executable).with_name("accmt")
SCRIPT = Path(__file__).with_name("launched.py")
TRAINING = Path(__file__).with_name("train.py")
TWO = ["--cpu", "-N", "2"]

pytestmark = pytest.mark.xdist_group("processes")


@pytest.fixture
def environment():
    """The environment of whoever calls the command: as it is, but for what says how to train."""
    told = re.compile(r"ACCELERATE_|FSDP_|DS_|MASTER_|OMP_NUM_THREADS$|RANK$|WORLD_SIZE$|PYTHONUNBUFFERED$")
    kept = {name: value for name, value in os.environ.items() if not told.match(name)}
    return {**kept, "HF_HUB_OFFLINE": "1", "PATH": f"{ACCMT.parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture
def launch(environment, tmp_path):
    """Arguments of `accmt launch` -> what it ended with, and wrote."""

    def run(*arguments):
        command = [ACCMT, "launch", *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    return run


@pytest.fixture
def start(environment, tmp_path):
    """Arguments of `accmt launch` -> the process, as a shell with a terminal starts one. It is gone after the test."""
    started = []

    def run(*arguments):
        command = [ACCMT, "launch", *map(str, arguments)]
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: [signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGHUP)],
        )
        started.append(process)
        return process

    yield run
    for process in started:
        left = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        for each in (*left, process):
            each.kill()
        process.communicate()


@pytest.fixture
def package(tmp_path):
    """The script as a module, and its name."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "launched.py").write_text(SCRIPT.read_text())
    return "package.launched"


def told(text):
    """What the ranks wrote, by rank."""
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return {line["rank"]: line for line in sorted(lines, key=lambda line: line["rank"])}


def same(ranks):
    """What the ranks wrote, with those variables only that say how to train."""
    says = re.compile(r"ACCELERATE_\w+|OMP_NUM_THREADS|MASTER_ADDR|(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|CUDA_\w+")
    for rank in ranks.values():
        rank["environment"] = {name: value for name, value in rank["environment"].items() if says.fullmatch(name)}
    return ranks


def ended(processes):
    """Whether all of them end within a minute."""
    return psutil.wait_procs(processes, timeout=300)[1] == []


def test_each_process_gets_the_arguments_and_by_what_is_shown_the_same(launch, package, environment, tmp_path):
    (tmp_path / "temporary").mkdir()
    environment["TMPDIR"] = str(tmp_path / "temporary")
    arguments = ["--strat", "x", "-N", "3", "--", "--cpu", "-m", "two words", ""]
    call = [*TWO, "--strat", "ddp-bf16"]
    ran = launch(*call, "-m", package, "tell", *arguments)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == "accmt launch: ddp-bf16, 2 processes on CPUs\n"
    ranks = told(ran.stdout)
    assert list(ranks) == ["0", "1"]
    assert list((tmp_path / "temporary").iterdir()) == []
    for rank in ranks.values():
        assert rank["module"] is True
        assert rank["arguments"] == arguments
        given = {"ACCELERATE_USE_CPU": "true", "ACCELERATE_MIXED_PRECISION": "bf16", "WORLD_SIZE": "2"}
        assert given.items() <= rank["environment"].items()
    shown = ["bash", "-c", launch(*call, "--print", "-m", package, "tell", *arguments).stdout]
    ran = subprocess.run(shown, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert same(told(ran.stdout)) == same(ranks)


def test_one_process_is_the_script_itself(launch):
    ran = launch("--cpu", "--strat", "ddp-bf16", SCRIPT, "tell", "--strat")
    assert ran.stderr == "accmt launch: ddp-bf16, 1 process on CPUs\n"
    script = told(ran.stdout)["0"]
    assert script["arguments"] == ["--strat"]
    assert script["environment"]["ACCELERATE_USE_CPU"] == "true"
    assert script["environment"]["ACCELERATE_MIXED_PRECISION"] == "bf16"
    assert "WORLD_SIZE" not in script["environment"]
    assert launch("--cpu", SCRIPT, "exit", "7").returncode == 7


def test_one_process_of_a_module(launch, package):
    ran = launch("--cpu", "-m", package, "tell", "-m", "x")
    assert [(rank["module"], rank["arguments"]) for rank in told(ran.stdout).values()] == [(True, ["-m", "x"])]


def test_launches_of_a_file_at_once_do_not_meet(start, tmp_path):
    """Accelerate's own command would start a single process for this file."""
    (tmp_path / "file.yaml").write_text("distributed_type: MULTI_CPU\nnum_processes: 2\nmixed_precision: bf16\n")
    launches = [start("--config", "file.yaml", SCRIPT, "tell", "--config") for _ in range(2)]
    ports = ["29500"]
    for process in launches:
        output, errors = process.communicate()
        assert process.returncode == 0, errors
        ranks = told(output)
        assert list(ranks) == ["0", "1"]
        for rank in ranks.values():
            assert rank["arguments"] == ["--config"]
            assert rank["environment"]["ACCELERATE_USE_CPU"] == "true"
            assert rank["environment"]["ACCELERATE_MIXED_PRECISION"] == "bf16"
        ports.append(*{rank["environment"]["MASTER_PORT"] for rank in ranks.values()})
    assert len(set(ports)) == 3


def test_two_machines_make_one_training(start):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    machines = [
        start("--cpu", "--nodes", 2, "--node-rank", rank, "--master", f"127.0.0.1:{port}", SCRIPT, "tell")
        for rank in range(2)
    ]
    for rank, process in enumerate(machines):
        output, errors = process.communicate()
        assert process.returncode == 0, errors
        # The machine that ends last may miss the store of the other one, which torch prints.
        assert errors.splitlines()[0] == "accmt launch: ddp, 1 process on CPUs, on each of 2 machines"
        assert "accmt" not in errors.partition("\n")[2]
        [script] = told(output).values()
        seen = {name: script["environment"][name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")}
        assert seen == {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_PORT": str(port)}


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["exit", "5"], 5, r"accmt launch: (rank \d ended with status 5(, )?)+\n"),
        (["kill", "11"], 139, r"accmt launch: rank 1 was ended by SIGSEGV\n"),
        (
            ["raise"],
            1,
            r'Traceback .*\n  File ".*launched.py", .*\n(  .*\n)+ValueError: broken on rank 1\n'
            r"accmt launch: rank 1 ended with status 1\n",
        ),
    ],
)
def test_it_ends_as_the_script_did_and_says_who_did(launch, arguments, status, said):
    ran = launch(*TWO, SCRIPT, *arguments)
    assert ran.returncode == status
    first, _, rest = ran.stderr.partition("\n")
    assert first == "accmt launch: ddp, 2 processes on CPUs"
    assert re.fullmatch(said, rest), rest


def test_signals_reach_every_process_and_the_third_that_ends_it_is_the_last(start):
    process = start(*TWO, SCRIPT, "count")
    for _ in range(2):
        assert json.loads(process.stdout.readline())["ready"]
    ranks = psutil.Process(process.pid).children()
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGINT):
        process.send_signal(number)
        got = [json.loads(process.stdout.readline()) for _ in ranks]
        assert sorted(line["rank"] for line in got) == ["0", "1"]
        assert {line["got"] for line in got} == {number.name}
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate()
    assert process.returncode == -signal.SIGTERM
    assert output == ""
    assert errors == "accmt launch: ddp, 2 processes on CPUs\n"
    assert ended(ranks)


@pytest.mark.parametrize("status", [0, 4])
def test_a_script_that_knows_how_to_end_says_with_what(start, status):
    process = start(*TWO, SCRIPT, "obey", status)
    for _ in range(2):
        process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == status
    words = "rank 0 ended with status 4, rank 1 ended with status 4"
    assert errors == "accmt launch: ddp, 2 processes on CPUs\n" + (f"accmt launch: {words}\n" if status else "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_training_that_is_ended_can_go_on(start, tmp_path, number):
    """SIGTERM with a checkpoint of its own, though there are processes that load data; Ctrl-C as Python knows it."""
    process = start(*TWO, TRAINING, tmp_path / "model", "0.3")
    for _ in range(2):
        while process.stdout.readline() != "waits\n":
            assert process.poll() is None
    below = psutil.Process(process.pid).children(recursive=True)
    assert len(below) >= 6  # two ranks, and two each that load data
    os.killpg(process.pid, number)  # as a terminal does
    output, errors = process.communicate()
    assert process.returncode == -number, errors
    assert ended(below)
    [step] = re.findall(r"interrupted at step \d+; run again to continue from step (\d+)", output)
    steps = [int(path.name.rpartition("-")[2]) for path in (tmp_path / "model" / "checkpoints").glob("checkpoint-*")]
    assert max(steps) == int(step)
    if number == signal.SIGTERM:
        assert f"interrupted at step {step};" in output
        assert errors == "accmt launch: ddp, 2 processes on CPUs\n"
    else:
        assert sorted(re.findall(r"rank (\d) was interrupted", output)) == ["0", "1"]
        assert "ChildFailedError" not in errors


DEEPSPEED = """
import json
import deepspeed.ops
vars(deepspeed.ops)["__compatible_ops__"] = {}  # otherwise it compiles an operation that no training needs
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import distributed
state = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")]).state
stage = state.deepspeed_plugin.deepspeed_config["zero_optimization"]["stage"]
print(json.dumps({"rank": str(state.process_index), "seen": [
    state.distributed_type.value, state.num_processes, state.device.type, state.mixed_precision, stage
]}))
distributed.destroy_process_group()
"""


def test_deepspeed_on_cpus(launch, tmp_path):
    pytest.importorskip("deepspeed")
    (tmp_path / "script.py").write_text(DEEPSPEED)
    ran = launch(*TWO, "--strat", "deepspeed-2-bf16", "script.py")
    assert ran.returncode == 0, ran.stderr
    assert [rank["seen"] for rank in told(ran.stdout).values()] == [["DEEPSPEED", 2, "cpu", "bf16", 2]] * 2
