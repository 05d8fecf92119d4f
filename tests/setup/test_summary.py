"""The header of a training and its end, as a run of the trainer prints them."""

import re

import pytest
import torch

from accmt import HyperParameters, RuleError, Trainer


def lines_of(capsys):
    return capsys.readouterr().out.splitlines()


def facts(lines):
    return dict(line.split(": ", 1) for line in lines if re.match(r"[\w ]+: ", line))


def test_the_header_says_how_the_model_is_trained(regression, data, capsys, tmp_path):
    torch.manual_seed(7)
    hps = HyperParameters(
        epochs=2,
        batch_size=4,
        optimizer="AdamW",
        optim_kwargs={"lr": 0.25},
        scheduler="LinearWithWarmup",
        scheduler_kwargs={"warmup_ratio": 0.5},
    )
    training = Trainer(
        hps,
        tmp_path / "model",
        clip_grad=0.5,
        stop_when="train_loss < 0",
        grad_accumulation_steps=2,
        mixed_precision="bf16",
        dataloader_num_workers=0,
    )
    training.fit(regression(), data(16), data(8))
    said = facts(lines_of(capsys))
    assert said["optimizer"] == "AdamW, fused, learning rate 0.25"
    assert said["scheduler"] == "LinearWithWarmup, every step"
    assert said["precision"] == "bf16, mixed"
    assert said["clipping"] == "gradients to a norm of 0.5"
    assert said["stop when"] == "train_loss < 0"
    assert said["seed"] == "7"
    assert said["batch"] == "8 samples (4 a process, 2 batches accumulated a step)"
    assert said["evaluates"] == "every epoch, on valid (in rules: 0)"


def test_the_header_says_nothing_of_what_is_not_set(trainer, regression, data, capsys):
    trainer(epochs=1, clip_grad=None).fit(regression(), data(16))
    said = facts(lines_of(capsys))
    assert said["precision"] == "float32"
    assert not said.keys() & {"scheduler", "clipping", "stop when", "evaluates", "metrics", "sends to"}


def test_optimizers_and_schedulers_of_the_module(trainer, regression, data, capsys):
    class Own(regression):
        def get_optimizer(self):
            first, second = (list(layer.parameters()) for layer in (self.model[0], self.model[3]))
            return torch.optim.SGD([{"params": first, "lr": 0.5}, {"params": second, "lr": 0.25}])

        def get_scheduler(self, optimizer, steps_per_epoch, epochs):
            return torch.optim.lr_scheduler.StepLR(optimizer, 1)

    trainer(epochs=1).fit(Own(), data(16))
    said = facts(lines_of(capsys))
    assert said["optimizer"] == "SGD, learning rate 0.25 to 0.5"
    assert said["scheduler"] == "StepLR, every step"


def test_directions_also_of_training_metrics(trainer, regression, data, capsys):
    trainer(epochs=1, training_metrics={"norm": "max"}).fit(regression(), data(16), {"dev": data(8)})
    assert facts(lines_of(capsys))["metrics"] == "higher is better for norm (training); lower is better for valid_loss"


def test_one_line_a_rule_at_the_end(trainer, regression, data, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("accmt.files.paths._STARTED", tmp_path)
    training = trainer(epochs=3, evaluate_every="2 steps")
    training.register_model_saving("best_valid_loss")
    training.register_model_saving("best_valid_loss if step > 100", name="never")
    training.fit(regression(), data(16), data(8))
    lines = lines_of(capsys)
    end = lines[lines.index("Saved models") :]
    saved = training.best("best_valid_loss")
    folder = saved.folder.relative_to(tmp_path)
    epoch = {2: "1.5", 4: "1", 6: "2.5", 8: "2", 10: "3.5", 12: "3"}[saved.step]
    value = f"{saved.values['valid_loss']:.6g}"
    assert re.fullmatch(
        rf"best_valid_loss  valid_loss {value} [▁-█]{{6}}  step {saved.step}, epoch {epoch}  {folder}", end[1]
    )
    assert re.fullmatch(r"never  valid_loss [▁-█]{6}  nothing was saved", end[2])
    assert end[3:] == [
        f"every decision and its reason: accmt explain {folder.parent}",
        "",
        "the training is complete, after 12 steps",
    ]
    assert "Decisions" not in lines
    assert all(line == line.rstrip() for line in lines)
    assert any(re.fullmatch(r"epoch 1/3  step 4/12  loss \S+  \S+ steps/s, \S+ left", line) for line in lines)


def test_valid_is_written_0_in_rules(trainer, regression, data):
    training = trainer(epochs=1)
    training.register_model_saving("best_valid_loss@0")
    training.fit(regression(), data(16), data(8))
    assert training.best("best_valid_loss@0") is not None
    training = trainer("other", epochs=1)
    training.register_model_saving("best_valid_loss@valid")
    with pytest.raises(RuleError) as caught:
        training.fit(regression(), data(16), data(8))
    assert str(caught.value) == (
        "unknown dataset 'valid'\n"
        "    best_valid_loss@valid\n"
        "                    ^^^^^\n"
        "  the only dataset is called 0 in rules: write valid_loss@0, or valid_loss alone"
    )


def test_the_name_of_the_validation_loss_in_trackers(trainer, regression, data, capsys, tmp_path):
    arguments = {"log_with": "tensorboard", "logging_dir": str(tmp_path / "logs")}
    trainer(epochs=1, **arguments).fit(regression(), data(16), data(8))
    assert facts(lines_of(capsys))["sends to"] == "tensorboard, where valid_loss is called val_loss"
    trainer("other", epochs=1, val_loss_metric_name="valid_loss", **arguments).fit(regression(), data(16), data(8))
    assert facts(lines_of(capsys))["sends to"] == "tensorboard"
