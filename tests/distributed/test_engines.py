"""FSDP2 and DeepSpeed on two real processes: the training of replicas, whichever way a model is shared out."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from launching import launch
from safetensors.torch import load_file

from accmt import load_saving
from accmt.checkpoint.checkpoints import Checkpoints
from accmt.checkpoint.publish import folder_problem
from accmt.cli.main import main

SCRIPT = Path(__file__).parent / "engines.py"
DEEPSPEED = ("deepspeed-0", "deepspeed-1", "deepspeed-2", "deepspeed-3")
ENGINES = ("fsdp2", *DEEPSPEED)
SAMPLE = [pytest.param(name, marks=[pytest.mark.full] * (name in ("deepspeed-0", "deepspeed-1"))) for name in ENGINES]
COMMON = ('checkpoint_every="5 steps"', "multiple_checkpoints=true", "clip_grad=0.5")

pytestmark = [pytest.mark.xdist_group("processes")]


def run(engine, folder, *pairs, processes=2):
    if engine.startswith("deepspeed"):
        pytest.importorskip("deepspeed", reason="deepspeed is not installed")
    environment = dict.fromkeys(("ACCELERATE_USE_CPU", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"))
    environment |= {"DS_ACCELERATOR": "cpu"}
    arguments = (engine, folder, *COMMON, *pairs)
    preload = ("deepspeed", "torch.distributed.fsdp", "networkx", "functorch.compile") if engine != "ddp" else ()
    return launch(SCRIPT, *arguments, processes=processes, environment=environment, preload=preload)


def history(folder):
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "elapsed"} for line in lines]


def decided(folder, rank):
    decisions = json.loads(Path(f"{folder}-rank{rank}.json").read_text())["decisions"]
    return [{key: value for key, value in decision.items() if key != "elapsed"} for decision in decisions]


def saved(folder):
    return torch.load(folder / "best_valid_loss" / "pytorch_model.bin", weights_only=True)


def assert_close(first, second):
    for mine, theirs in zip(history(first), history(second), strict=True):
        assert mine["step"] == theirs["step"]
        assert mine["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-4)
        assert mine["values"]["0"] == pytest.approx(theirs["values"]["0"], rel=1e-4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Engine and options -> the folder of its training, each made once."""
    made = {}

    def train(engine, *pairs):
        if (engine, pairs) not in made:
            folder = tmp_path_factory.mktemp(engine) / "model"
            ran = run(engine, folder, *pairs)
            assert ran.returncode == 0, ran.stderr
            made[engine, pairs] = folder
        return made[engine, pairs]

    return train


@pytest.fixture(scope="module")
def cut_short(tmp_path_factory):
    """Engine -> a copy of the folder of a training that was killed after 18 steps; each is made once."""
    made = {}

    def copied(engine):
        if engine not in made:
            made[engine] = tmp_path_factory.mktemp(engine) / "model"
            assert run(engine, made[engine], "cut=18").returncode != 0
        copy = tmp_path_factory.mktemp("copy") / "model"
        shutil.copytree(made[engine], copy)
        return copy

    return copied


@pytest.mark.parametrize("engine", [*SAMPLE, "deepspeed-2-offload"])
def test_it_trains_evaluates_and_decides_as_replicas_do(trained, engine):
    folder, plain = trained(engine), trained("ddp")
    assert_close(folder, plain)
    assert decided(folder, 0) == decided(folder, 1)
    assert [len(d["verdicts"]) for d in decided(folder, 0)] == [1, 1, 1]
    weights, expected = saved(folder), saved(plain)
    assert {name: tuple(value.shape) for name, value in weights.items()} == {
        name: tuple(value.shape) for name, value in expected.items()
    }
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("engine", SAMPLE)
def test_the_saved_model_is_the_whole_one(trained, engine):
    """It loads on this single process, in no wrapper, and reaches the loss that was recorded."""

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm = torch.nn.Linear(4, 33), torch.nn.LayerNorm(33)
            self.last = torch.nn.Linear(33, 3)
            self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    model = Model()
    saving = load_saving(trained(engine) / "best_valid_loss", model)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(13, 4, generator=generator)
    labels = (inputs.sum(1) > 0).long() + (inputs[:, 0] > 0).long()
    with torch.no_grad():
        logits = model.last(torch.relu(model.norm(model.first(inputs))))
    loss = float(torch.nn.functional.cross_entropy(logits, labels))
    assert loss == pytest.approx(saving.values["valid_loss"], rel=1e-5)
    assert int(model.seen) > 0


@pytest.mark.parametrize(
    "engine", ["fsdp2", pytest.param("deepspeed-1", marks=pytest.mark.full), "deepspeed-2", "deepspeed-3"]
)
def test_a_killed_training_goes_on_bit_by_bit(trained, cut_short, engine):
    folder = cut_short(engine)
    newest = Checkpoints(folder).newest()
    assert newest is not None
    assert newest.step == 15
    assert folder_problem(newest.path) is None
    assert not list(newest.path.rglob("*.py"))
    ran = run(engine, folder, "seed=7")
    assert ran.returncode == 0, ran.stderr
    assert "continuing from checkpoint-0003-step-15" in ran.stdout
    assert history(folder) == history(trained(engine))
    assert decided(folder, 0) == decided(trained(engine), 0)
    weights, expected = saved(folder), saved(trained(engine))
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


def test_parameters_that_fsdp_puts_in_the_place_of_others(trained):
    """Those of an evaluation are neither taken for new ones, which the optimizer would get too, nor found by hooks."""
    folder = trained("fsdp2")
    found = json.loads(Path(f"{folder}-rank0.json").read_text())["whole"]
    assert found == [[], [], []]
    for checkpoint in Checkpoints(folder).all():
        state = json.loads((checkpoint.path / "trainer.json").read_text())["parts"]["optimizer"]
        (group,) = state["param_groups"]
        names = [f"model.{layer}.{name}" for layer in ("first", "norm", "last") for name in ("weight", "bias")]
        assert group["params"] == state["start"] == names


@pytest.mark.parametrize("processes", [1, 3])
def test_what_fsdp_shared_out_is_read_by_any_number(cut_short, processes):
    """The weights and the optimizer that another number of processes takes up are those that were written."""
    folder = cut_short("fsdp2")
    ran = run("fsdp2", folder, processes=processes)
    assert ran.returncode == 0, ran.stderr
    assert f"the number of processes was 2 and is {processes}" in " ".join(ran.stdout.split())
    assert history(folder)[-1]["values"]["0"]["valid_loss"] < history(folder)[0]["values"]["0"]["valid_loss"]
    assert len(history(folder)) == 3
    assert history(folder)[-1]["samples"] == 3 * 86


def test_deepspeed_refuses_another_number_of_processes(cut_short):
    folder = cut_short("deepspeed-2")
    before = sorted(path.name for path in (folder / "checkpoints").iterdir())
    ran = run("deepspeed-2", folder, processes=3)
    assert ran.returncode != 0
    assert "it was written by 2 processes, and 3 cannot read it" in ran.stderr
    assert "or take the weights out of it with accmt weights" in ran.stderr
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == before


def test_another_engine_is_refused_before_anything_is_loaded(cut_short):
    folder = cut_short("deepspeed-2")
    ran = run("deepspeed-3", folder)
    assert "it was written with ZeRO stage 2, and this training uses stage 3" in ran.stderr
    ran = run("ddp", folder)
    assert "it was written with DeepSpeed: launch as before" in ran.stderr


def test_a_file_that_would_execute_something_is_not_read(cut_short, tmp_path):
    """Planted with a manifest that fits, so that nothing but the look into it can find it."""
    from accmt.checkpoint import publish

    folder = cut_short("deepspeed-2")
    newest = Checkpoints(folder).newest()
    marker = tmp_path / "executed"

    class Payload:
        def __reduce__(self):
            return (Path.touch, (marker,))

    target = next(newest.path.rglob("*optim_states.pt"))
    torch.save({"optimizer_state_dict": Payload()}, target)
    (newest.path / publish.MANIFEST).unlink()
    entries = publish.describe([path for path in newest.path.rglob("*") if path.is_file()])
    copy = newest.path.rename(tmp_path / "copy")
    publish.publish(copy, newest.path, {copy / path.relative_to(newest.path): entry for path, entry in entries.items()})
    assert publish.folder_problem(newest.path) is None
    ran = run("deepspeed-2", folder)
    assert ran.returncode != 0
    assert "would execute" in ran.stderr
    assert "give trust_checkpoint=True" in ran.stderr
    assert not marker.exists()


@pytest.mark.parametrize("engine", ["fsdp2", "deepspeed-2"])
@pytest.mark.parametrize("pairs", [("grad_accumulation_steps=3", "safe_mode=false"), ("by_hand=true",)])
def test_options_under_an_engine(trained, engine, pairs):
    """Accumulation with models called past the wrapper, and steps made by hand, each as under replicas."""
    assert_close(trained(engine, *pairs), trained("ddp", *pairs))


def test_batches_are_converted_for_a_model_of_low_precision(tmp_path):
    ran = run("deepspeed-2", tmp_path / "model", 'mixed_precision="bf16"', 'dtype="torch.bfloat16"')
    assert ran.returncode == 0, ran.stderr


def test_checkpoints_in_the_background(trained, tmp_path):
    ran = run("fsdp2", tmp_path / "model", "checkpoint_async=true")
    assert ran.returncode == 0, ran.stderr
    assert history(tmp_path / "model") == history(trained("fsdp2"))
    for mine, theirs in zip(Checkpoints(tmp_path / "model").all(), Checkpoints(trained("fsdp2")).all(), strict=True):
        for rank in (0, 1):
            file = f"shards-{rank}.safetensors"
            assert (mine.path / file).read_bytes() == (theirs.path / file).read_bytes()
    ran = run("deepspeed-2", tmp_path / "other", "checkpoint_async=true")
    assert "DeepSpeed writes its part of a checkpoint while the training waits" in ran.stderr


@pytest.mark.parametrize("engine", ENGINES)
def test_the_weights_of_a_checkpoint_are_written_by_one_process(trained, engine, tmp_path, capsys):
    """They are those of the model that was saved at the same step."""
    folder = trained(engine)
    newest = Checkpoints(folder).newest()
    assert main(["weights", str(newest.path), str(tmp_path / "model.safetensors")]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'model.safetensors'}: 7 tensors, ")
    written = load_file(tmp_path / "model.safetensors")
    assert json.loads((folder / "best_valid_loss" / "saving.json").read_text())["step"] == newest.step
    assert written.keys() == saved(folder).keys()
    assert all(torch.equal(written[name], value) for name, value in saved(folder).items())
