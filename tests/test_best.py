"""The best model of a training: loaded in another script, found by a later process, left in the module by `fit`."""

import json
import os
import shutil
import signal

import pytest
import torch
from launching import launch
from torch import nn

from accmt import AcceleratorModule, Callback, ConfigError, load_best, load_saving
from accmt.checkpoint import loading
from accmt.checkpoint.stateful import Mismatch
from accmt.distributed.signals import Terminated


def weights_of(module):
    return [value.clone() for value in module.model.parameters()]


def are_equal(some, others):
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


class Kept(Callback):
    """Keeps the weights at each evaluation."""

    def __init__(self):
        self.weights = []

    def on_evaluation_end(self):
        self.weights.append(weights_of(self.module))


class Worsening(AcceleratorModule):
    """Its first evaluation is the best."""

    def __init__(self):
        self.model = nn.Sequential(nn.Linear(4, 1), nn.Dropout(0.1))

    def training_step(self, batch):
        return self.model(batch[0]).square().mean()

    def validation_step(self, key, batch):
        return {"loss": torch.tensor(float(self.state.evaluations_done)), "error": (batch[1], batch[1])}


@pytest.fixture
def trained(trainer, data):
    """A training with one rule, and the weights of its evaluations."""
    kept = Kept()
    training = trainer(epochs=3, callback=kept)
    training.fit(Worsening(), data(8), data(4))
    assert not are_equal(kept.weights[0], kept.weights[-1])
    return training, kept.weights


@pytest.mark.proves("load_best", "load_best(folder)", "load_best(module)")
def test_it_is_loaded_in_evaluation_mode(trained):
    training, weights = trained
    for module in (Worsening(), Worsening().model):
        saved = load_best(training.model_path, module)
        model = getattr(module, "model", module)
        assert (saved.rule, saved.epoch, saved) == ("best_valid_loss", 1, training.best("valid_loss"))
        assert are_equal(model.parameters(), weights[0])
        assert not any(part.training for part in model.modules())


@pytest.mark.proves("load_best(device)")
def test_it_is_put_on_the_device(trained):
    training, _ = trained
    module = Worsening()
    load_best(training.model_path, module, device="meta")
    assert module.model[0].weight.device.type == module.device.type == "meta"
    plain = Worsening().model
    load_best(str(training.model_path), plain, "valid_loss", device=torch.device("meta"))
    assert plain[0].weight.device.type == "meta"


def test_without_a_device_it_is_that_of_the_process(trained, monkeypatch):
    """A process that was told to use its CPU does so, whatever else there is."""
    training, _ = trained
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("meta"))
    module = Worsening()
    load_best(training.model_path, module)
    assert module.model[0].weight.device.type == module.device.type == "cpu"
    monkeypatch.setattr("accmt.setup.best.is_initialized", lambda: False)
    load_best(training.model_path, module)
    assert module.model[0].weight.device.type == "meta"


def test_methods_of_the_user_are_not_called(trained):
    class Own(Worsening):
        train = to = eval = parameters = None

    training, weights = trained
    module = Own()
    load_best(training.model_path, module, device="cpu")
    assert are_equal(module.model.parameters(), weights[0])
    assert not module.model.training


@pytest.fixture
def two_rules(trainer, data):
    training = trainer(epochs=2)
    training.register_model_saving("best_valid_loss")
    training.register_model_saving("best_train_loss if valid_loss < 0", name="other")
    training.register_model_saving("best_train_loss", name="close")
    training.fit(Worsening(), data(8), data(4))
    return training


@pytest.mark.proves("load_best(rule)")
def test_errors_say_what_to_do(two_rules, trainer, data, tmp_path):
    path, module = two_rules.model_path, Worsening()
    before = weights_of(module)
    several = trainer("b", epochs=1)
    several.register_model_saving("best_valid_loss keep 2")
    several.fit(Worsening(), data(8), data(4))
    (tmp_path / "none yet").mkdir()
    for arguments, kind, text in [
        (
            (tmp_path / "none",),
            FileNotFoundError,
            f"there is no folder {tmp_path / 'none'}: give the model_path of a training",
        ),
        (
            (tmp_path,),
            FileNotFoundError,
            f"no rule has saved a model in {tmp_path} yet; in it, these folders have models: b, model",
        ),
        ((tmp_path / "none yet",), FileNotFoundError, f"no rule has saved a model in {tmp_path / 'none yet'} yet"),
        (
            (path / "close",),
            ValueError,
            f"{path / 'close'} is the folder of a rule: give its parent, or call load_saving",
        ),
        ((path,), ValueError, "name one of the rules; the rules are: best_valid_loss, other, close"),
        ((path, "other"), FileNotFoundError, f"'other' has not saved a model in {path} yet"),
        (
            (path, "clos"),
            ValueError,
            "there is no rule 'clos'; the rules are: best_valid_loss, other, close; did you mean 'close'?",
        ),
    ]:
        folder, *rule = arguments
        with pytest.raises(kind) as caught:
            load_best(folder, module, *rule)
        assert str(caught.value) == text
    with pytest.raises(Mismatch, match="nothing was loaded"):
        load_best(path, nn.Linear(2, 2), "close")
    file = path / "close" / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match="cannot be used"):
        load_best(path, module, "close")
    assert are_equal(module.model.parameters(), before)
    assert load_best(path, module, "valid_loss").rule == "best_valid_loss"


def test_only_the_folders_of_a_training_are_left(two_rules):
    (two_rules.model_path / "training.json").write_text("{")
    with pytest.warns(UserWarning, match="the rules of the training are not known") as caught:
        assert load_best(two_rules.model_path, Worsening(), "close").rule == "close"
    assert len(caught) == 1
    (two_rules.model_path / "training.json").unlink()
    shutil.rmtree(two_rules.model_path / "close")
    assert load_best(two_rules.model_path, Worsening()).rule == "best_valid_loss"


def test_a_training_that_is_not_finished(trainer, data):
    class Loading(Callback):
        def __init__(self):
            self.found = []

        def on_evaluation_start(self):
            try:
                self.found.append(load_best(self.trainer.model_path, Worsening()).epoch)
            except FileNotFoundError as error:
                self.found.append(str(error))

    loading = Loading()
    training = trainer(callback=loading)
    training.fit(Worsening(), data(8), data(4))
    assert loading.found == [f"'best_valid_loss' has not saved a model in {training.model_path} yet", 1]


@pytest.mark.parametrize("step", ["read_weights", "read_beside"])
def test_a_model_that_is_replaced_while_it_is_read(trained, trainer, data, tmp_path, monkeypatch, step):
    """The description and the weights are of one model."""
    training, _ = trained
    place, newer = training.model_path / "best_valid_loss", tmp_path / "newer" / "best_valid_loss"
    trainer("newer", epochs=1, lr=0.5).fit(Worsening(), data(8, 1), data(4))
    about = json.loads((newer / "saving.json").read_text())
    read = getattr(loading, step)

    def replacing(folder):
        found = read(folder)
        if newer.exists():
            shutil.rmtree(place)
            newer.rename(place)
        return found

    monkeypatch.setattr(loading, step, replacing)
    module, other = Worsening(), Worsening()
    assert load_best(training.model_path, module).values == about["values"]
    monkeypatch.undo()
    load_saving(place, other)
    assert are_equal(module.model.parameters(), other.model.parameters())


@pytest.mark.proves("Trainer.best", "Trainer.best(rule)")
def test_a_later_process_finds_it(two_rules, trainer, tmp_path):
    later = trainer()
    assert later.best("best_valid_loss") == two_rules.best("best_valid_loss")
    assert later.best("close") == two_rules.best("close")
    assert later.best("other") is None
    later.register_model_saving("best_error")
    assert later.best("error") is None
    with pytest.raises(
        ValueError, match=r"^there is no rule 'f'; the rules are: best_error, best_valid_loss, other, close$"
    ):
        later.best("f")


def test_the_only_rule_need_not_be_named(two_rules, trainer, data):
    alone = trainer("alone")
    alone.fit(Worsening(), data(8), data(4))
    assert alone.best() == trainer("alone").best() == alone.best("valid_loss") != None  # noqa: E711
    with pytest.raises(ValueError, match=r"^name one of the rules; the rules are: best_valid_loss, other, close$"):
        two_rules.best()
    with pytest.raises(
        ValueError, match=r"^name one of the rules; the rules are: none, because nothing was trained yet$"
    ):
        trainer("empty").best()


@pytest.mark.proves("Trainer(restore_best)")
@pytest.mark.parametrize("wanted", [True, "valid_loss", False])
def test_the_best_weights_are_left_in_the_module(trainer, data, wanted):
    kept, module = Kept(), Worsening()
    for _ in range(2):  # the second time it is finished
        training = trainer(epochs=3, callback=kept, restore_best=wanted)
        training.fit(module, data(8), data(4))
        assert are_equal(module.model.parameters(), kept.weights[0 if wanted else -1])
        assert module.model.training
        module = Worsening()
    trainer(epochs=4, callback=kept, restore_best=wanted).fit(module, data(8), data(4))
    assert are_equal(module.model.parameters(), kept.weights[0 if wanted else -1])
    assert len(kept.weights) == 4
    assert not are_equal(kept.weights[3], kept.weights[2])  # trained from its last step, not from its best


def test_a_training_that_is_not_finished_keeps_its_last_weights(trainer, data, monkeypatch):
    class Ends(Kept):
        def on_after_optimizer_step(self, optimizer):
            if self.state.global_step == 4:
                os.kill(os.getpid(), signal.SIGTERM)

    former = signal.signal(signal.SIGTERM, lambda *_: None)  # the script goes on
    try:
        kept, module = Ends(), Worsening()
        with pytest.raises(Terminated):
            trainer(epochs=3, callback=kept, restore_best=True).fit(module, data(8), data(4))
    finally:
        signal.signal(signal.SIGTERM, former)
    assert len(kept.weights) == 2
    assert not any(are_equal(module.model.parameters(), weights) for weights in kept.weights)
    trainer(epochs=3, callback=kept, restore_best=True).fit(module, data(8), data(4))
    assert are_equal(module.model.parameters(), kept.weights[0])


def test_other_networks_are_restored_too(trainer, data):
    class Headed(Worsening):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(1, 1)

        def training_step(self, batch):
            return self.head(self.model(batch[0])).square().mean()

        def get_optimizer(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    class KeptHead(Callback):
        def __init__(self):
            self.weights = []

        def on_evaluation_end(self):
            self.weights.append(self.module.head.weight.clone())

    kept, module = KeptHead(), Headed()
    trainer(callback=kept, restore_best=True).fit(module, data(8), data(4))
    assert not torch.equal(kept.weights[0], kept.weights[1])
    assert torch.equal(module.head.weight, kept.weights[0])


def test_nothing_to_restore_is_said(trainer, data, capsys):
    kept, module = Kept(), Worsening()
    training = trainer(callback=kept, restore_best=True)
    training.register_model_saving("best_valid_loss if train_loss < 0")
    training.fit(module, data(8), data(4))
    said = " ".join(capsys.readouterr().out.split())
    name = next(iter(training.state.patience_left))
    assert f"restore_best: '{name}' has saved no model, so the module keeps its weights of the last step" in said
    assert are_equal(module.model.parameters(), kept.weights[-1])


def test_what_cannot_be_restored_is_refused(trainer, data):
    for arguments, text in [
        ({"restore_best": True, "disable_model_saving": True}, "restore_best: disable_model_saving is given, so that"),
        ({"restore_best": None}, "restore_best: must be True, False, or the name of a rule, not None"),
        ({"restore_best": ""}, "restore_best: must be True, False, or the name of a rule, not ''"),
        ({"restore_best": 1}, "restore_best: must be True, False, or the name of a rule, not 1"),
    ]:
        with pytest.raises(ConfigError) as caught:
            trainer(**arguments)
        assert text in str(caught.value)
    for wanted, text in [
        (True, "restore_best: name one of the rules; the rules are: best_valid_loss, close"),
        ("clse", "restore_best: there is no rule 'clse'; the rules are: best_valid_loss, close; did you mean 'close'?"),
    ]:
        training, module = trainer(restore_best=wanted), Worsening()
        training.register_model_saving("best_valid_loss")
        training.register_model_saving("best_train_loss", name="close")
        with pytest.raises(ConfigError) as caught:
            training.fit(module, data(8), data(4))
        assert str(caught.value) == f"1 mistake in Trainer(...):\n  {text}"
        assert training.state.global_step == 0
        assert not training.model_path.exists()


SHARDED = """
import os, sys
import torch
from torch import nn
from torch.utils.data import TensorDataset
from accelerate import PartialState
from accelerate.utils import DistributedType

os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"}
PartialState(cpu=True)
PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU  # Accelerate shards on GPUs alone
from accmt import AcceleratorModule, ConfigError, Trainer

class Module(AcceleratorModule):
    def __init__(self):
        self.model = nn.Linear(2, 1)

    def training_step(self, batch):
        os._exit(7)

trainer = Trainer({"batch_size": 2}, sys.argv[1], restore_best=True, dataloader_num_workers=0)
try:
    trainer.fit(Module(), TensorDataset(torch.zeros(8, 2)))
except ConfigError as error:
    print(error)
"""


@pytest.mark.xdist_group("processes")
def test_a_sharded_model_is_refused(tmp_path):
    ran = launch(SHARDED, tmp_path / "model", processes=2).check()
    text = "restore_best: a model that FSDP or DeepSpeed holds is not restored: leave it out, and call load_best"
    assert ran.stdout.count(f"{text} afterwards") == 2
    assert not (tmp_path / "model").exists()
