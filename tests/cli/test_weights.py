"""`accmt weights`: the weights of checkpoints and saved models, as others load them, or an error and no file."""

import json
import os
from pathlib import Path

import accelerate
import pytest
import safetensors.torch
import torch
from torch import nn

from accmt import set_seed
from accmt.checkpoint import export, publish
from accmt.checkpoint.tensor_files import read_tensors, write_tensors
from accmt.checkpoint.weights import WeightsFormat
from accmt.cli.main import main


@pytest.fixture
def weights(capsys):
    """Arguments -> status, stdout, stderr."""

    def run(*arguments):
        capsys.readouterr()
        status = main(["weights", *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


class Tied(nn.Module):
    """An embedding whose weight is that of the output too, a norm that counts, and a state that is no tensor."""

    def __init__(self):
        super().__init__()
        self.words, self.norm = nn.Embedding(8, 4), nn.BatchNorm1d(4)
        self.out = nn.Linear(4, 8, bias=False)
        self.out.weight = self.words.weight

    def forward(self, inputs):
        return self.out(self.norm(inputs + self.words.weight.mean(0)))


@pytest.fixture
def fitted(trainer, regression, data, error_metric):
    """Makes the model, and arguments of the trainer -> the trained module, and the folder."""

    def fit(make=None, beside=None, **arguments):
        class Module(regression):
            def __init__(self):
                super().__init__()
                if make is not None:
                    self.model = make()
                if beside is not None:
                    self.critic = beside

            def training_step(self, batch):
                return self.model(batch[0]).square().mean() + 0 * (
                    0 if beside is None else self.critic(batch[0]).mean()
                )

            def get_optimizer(self):
                others = [] if beside is None else beside.parameters()
                return torch.optim.SGD([*self.model.parameters(), *others], lr=0.1)

            def validation_step(self, key, batch):
                outputs = self.model(batch[0]).mean(1, keepdim=True)
                return {"loss": outputs.square().mean(), "error": (outputs, batch[1])}

        set_seed(0)
        arguments.setdefault("disable_model_saving", False)
        training = trainer(metrics=error_metric(), quiet=True, **arguments)
        training.register_model_saving("best_valid_loss keep 2")
        module = Module()
        training.fit(module, data(16), data(8))
        return module, training.model_path

    return fit


def newest(folder):
    return max((folder / "checkpoints").iterdir())


def loaded(out, model):
    """Do what the command says, with a model that was made anew."""
    call = out.splitlines()[-1].removeprefix("load them with ")
    eval(call, {"safetensors": safetensors, "accelerate": accelerate, "model": model})
    return model.state_dict()


def assert_equal(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in second)


@pytest.mark.parametrize("target", ["model.safetensors", "exported"])
def test_a_checkpoint(fitted, weights, tmp_path, target):
    module, folder = fitted(Tied)
    status, out, err = weights(newest(folder), tmp_path / target)
    assert (status, err) == (0, "")
    assert out.startswith(f"{tmp_path / target}: 7 tensors, ")
    assert "float32, int64\n" in out
    assert_equal(loaded(out, Tied()), module.model.state_dict())


def test_tied_weights_are_written_once_and_stay_tied(fitted, weights, tmp_path):
    module, folder = fitted(Tied)
    assert weights(newest(folder), tmp_path / "x.safetensors", "--dtype", "bfloat16")[0] == 0
    assert len(safetensors.torch.load_file(tmp_path / "x.safetensors")) == 6
    written = read_tensors(tmp_path / "x.safetensors")
    assert written["words.weight"] is written["out.weight"]
    assert torch.equal(written["out.weight"], module.model.out.weight.bfloat16())
    assert written["norm.num_batches_tracked"].dtype == torch.int64


@pytest.mark.parametrize("safe", [True, False])
def test_a_saved_model(fitted, weights, tmp_path, safe):
    """The folder of a rule that keeps several stands for its best."""
    _, folder = fitted(Tied, safe_serialization=safe)
    status, out, err = weights(folder / "best_valid_loss", tmp_path / "x.safetensors")
    assert (status, err) == (0, "")
    best, other = sorted((folder / "best_valid_loss").glob("evaluation-*"), reverse=True)
    expected = export.read_weights(best)
    assert_equal(loaded(out, Tied()), expected)
    assert weights(other, tmp_path / "y.safetensors")[0] == 0
    assert not torch.equal(read_tensors(tmp_path / "y.safetensors")["out.weight"], expected["out.weight"])


def test_large_weights_are_written_in_several_files(fitted, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "WeightsFormat", lambda safe: WeightsFormat(safe, 100))
    module, folder = fitted(Tied)
    status, out, _ = weights(newest(folder), tmp_path / "exported")
    assert status == 0
    assert len(list((tmp_path / "exported").glob("model-*-of-*.safetensors"))) > 1
    assert (tmp_path / "exported" / "model.safetensors.index.json").is_file()
    assert_equal(loaded(out, Tied()), module.model.state_dict())


def test_networks_beside_the_model(fitted, weights, tmp_path):
    module, folder = fitted(beside=nn.Linear(4, 1))
    for source in (newest(folder), folder / "best_valid_loss"):
        status, _, err = weights(source, tmp_path / f"{source.name}.safetensors")
        assert status == 0
        assert err == (
            "not written: trained alongside the model: critic "
            "(a folder as the target has them as well, in modules.safetensors)\n"
        )
        assert weights(source, tmp_path / source.name)[::2] == (0, "")
        written = read_tensors(tmp_path / source.name / "modules.safetensors")
        assert written["critic.weight"].shape == module.critic.weight.shape
    assert torch.equal(
        read_tensors(tmp_path / newest(folder).name / "modules.safetensors")["critic.weight"], module.critic.weight
    )


def test_what_is_no_tensor_is_said(fitted, weights, tmp_path):
    class Counting(Tied):
        def get_extra_state(self):
            return {"calls": 3}

        def set_extra_state(self, state):
            pass

    _, folder = fitted(Counting)
    status, _, err = weights(newest(folder), tmp_path / "x.safetensors")
    assert (status, err) == (0, "not written: not tensors: _extra_state\n")


def test_a_value_that_a_dtype_cannot_hold(fitted, weights, tmp_path):
    def make():
        model = Tied()
        model.norm.running_mean += 1e6
        return model

    _, folder = fitted(make)
    status, out, err = weights(newest(folder), tmp_path / "x.safetensors", "--dtype", "float16")
    assert (status, out) == (1, "")
    assert "'norm.running_mean' has values up to " in err
    assert "; float16 holds up to 6.55e+04\n" in err
    assert not (tmp_path / "x.safetensors").exists()
    assert weights(newest(folder), tmp_path / "x.safetensors", "--dtype", "bfloat16")[0] == 0


def everything_in(folder):
    return sorted(folder.rglob("*"))


def test_a_damaged_source_is_not_written(fitted, weights, tmp_path):
    _, folder = fitted(Tied, safe_serialization=True)
    for source in (newest(folder), next((folder / "best_valid_loss").glob("evaluation-0001*"))):
        content = bytearray((source / "model.safetensors").read_bytes())
        content[-1] ^= 1
        (source / "model.safetensors").write_bytes(content)
        before = everything_in(tmp_path)
        for target in ("x.safetensors", "exported"):
            status, out, err = weights(source, tmp_path / target)
            assert (status, out) == (1, "")
            assert err.startswith(f"{source} is damaged: model.safetensors ")
        assert everything_in(tmp_path) == before


def test_what_is_there_is_not_replaced(fitted, weights, tmp_path):
    _, folder = fitted()
    (tmp_path / "x.safetensors").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("x.safetensors", "model", "link"):
        said = f"{tmp_path / name} exists already: give the name of a new file or folder\n"
        assert weights(newest(folder), tmp_path / name) == (1, "", said)
    assert (tmp_path / "x.safetensors").read_text() == "mine"
    said = f"there is no folder {tmp_path}/no to write x.safetensors into\n"
    assert weights(newest(folder), tmp_path / "no" / "x.safetensors") == (1, "", said)


def test_other_sources(weights, tmp_path):
    for source in (tmp_path, tmp_path / "no"):
        status, out, err = weights(source, tmp_path / "x.safetensors")
        assert (status, out) == (1, "")
        assert err.startswith(f"{source} is not the folder of a checkpoint or a saved model: ")
    with pytest.raises(SystemExit):
        main(["weights", str(tmp_path), "x", "--dtype", "int8"])


def test_a_write_that_fails_leaves_nothing(fitted, weights, tmp_path, monkeypatch):
    _, folder = fitted()

    def full(path, tensors):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "write_tensors", full)
    monkeypatch.setattr("accmt.checkpoint.weights.write_tensors", full)
    before = everything_in(tmp_path)
    for target in ("x.safetensors", "exported"):
        said = f"{tmp_path / target} cannot be written: No space left on device\n"
        assert weights(newest(folder), tmp_path / target) == (1, "", said)
        assert everything_in(tmp_path) == before


def changed(source, tmp_path, change):
    """Change the files of a published folder, with a manifest that fits."""
    os.unlink(source / publish.MANIFEST)
    copy = source.rename(tmp_path / "copy")
    change(copy)
    publish.publish(copy, source, publish.describe(path for path in copy.rglob("*") if path.is_file()))
    assert publish.folder_problem(source) is None


def test_an_intact_checkpoint_with_odd_contents(fitted, weights, tmp_path):
    _, folder = fitted()
    changed(newest(folder), tmp_path, lambda copy: (copy / "model.safetensors").write_bytes(b"no tensors"))
    status, out, err = weights(newest(folder), tmp_path / "x.safetensors")
    assert (status, out) == (1, "")
    assert err.startswith(f"{newest(folder)} cannot be read: ")


def sharded(copy):
    """Write the weights as two processes write theirs under FSDP, each a part of the rows."""
    whole = read_tensors(copy / "model.safetensors")
    words = whole.pop("words.weight")
    del whole["out.weight"]
    write_tensors(copy / "model.safetensors", whole)
    for rank, (start, end) in enumerate([(0, 5), (5, 8)]):
        part = words[start:end].clone()
        parts = {"model.words.weight": part, "model.out.weight": part}
        write_tensors(copy / f"shards-{rank}.safetensors", parts)
        places = {name: {"shape": [8, 4], "offset": [start, 0]} for name in parts}
        (copy / f"shards-{rank}.json").write_text(json.dumps(places))


def test_shards_are_put_together_and_tied_weights_stay_tied(fitted, weights, tmp_path):
    module, folder = fitted(Tied)
    changed(newest(folder), tmp_path, sharded)
    status, out, err = weights(newest(folder), tmp_path / "x.safetensors")
    assert (status, err) == (0, "")
    assert len(safetensors.torch.load_file(tmp_path / "x.safetensors")) == 6
    assert_equal(loaded(out, Tied()), module.model.state_dict())


def test_a_file_that_would_execute_something_is_not_read(fitted, weights, tmp_path):
    _, folder = fitted()
    marker = tmp_path / "executed"

    class Payload:
        def __reduce__(self):
            return (Path.touch, (marker,))

    def plant(copy):
        trainer = json.loads((copy / "trainer.json").read_text())
        (copy / "trainer.json").write_text(json.dumps({**trainer, "deepspeed": {"stage": 0}}))
        (copy / "deepspeed" / "state").mkdir(parents=True)
        torch.save({"module": Payload()}, copy / "deepspeed" / "state" / "mp_rank_00_model_states.pt")

    changed(newest(folder), tmp_path, plant)
    said = f"{newest(folder)} is not read, because a file in it would execute code\n"
    assert weights(newest(folder), tmp_path / "x.safetensors") == (1, "", said)
    assert not marker.exists()
