"""The training loop does what a loop written by hand does, and asks for everything at the right moments."""

import json
import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from accmt import Callback, FunctionMetric
from accmt.callbacks import HOOKS


def by_hand(module, loader_seed_order, targets, *, accumulation, clip, lr, epochs):
    """Plain PyTorch over a given order of sample indices per epoch."""
    data, batch_size = targets, 4
    optimizer = torch.optim.SGD(module.model.parameters(), lr=lr)
    losses = []
    for order in loader_seed_order[:epochs]:
        batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
        for start in range(0, len(batches), accumulation):
            window = batches[start : start + accumulation]
            for indices in window:
                batch = tuple(torch.stack(column) for column in zip(*(data[i] for i in indices), strict=True))
                loss = module.training_step(batch)
                losses.append(loss.item())
                (loss / len(window)).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(module.model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
    return losses


@pytest.mark.proves(
    "Trainer",
    "Trainer(grad_accumulation_steps)",
    "Trainer(clip_grad)",
    "Trainer.fit",
    "Trainer.fit(module)",
    "AcceleratorModule",
    "AcceleratorModule(model)",
    "AcceleratorModule.training_step",
)
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("clip", [None, 0.1])
def test_equals_a_loop_by_hand(trainer, regression, data, accumulation, clip):
    ours, theirs = regression(), regression()
    theirs.model.load_state_dict(ours.model.state_dict())
    dataset = data(21)
    trainer(grad_accumulation_steps=accumulation, clip_grad=clip, shuffle_train=False).fit(ours, dataset)
    by_hand(theirs, [list(range(21))] * 2, dataset, accumulation=accumulation, clip=clip, lr=0.05, epochs=2)
    for mine, other in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-7)


class Recorder(Callback):
    """Writes down every hook that is called, with the step."""

    def __init__(self):
        super().__init__()
        self.calls = []


def _record(name):
    def hook(self, *arguments):
        self.calls.append((name, self.state.global_step))

    return hook


for _name in HOOKS:
    setattr(Recorder, _name, _record(_name))


def test_order_of_hooks(trainer, regression, data):
    recorder = Recorder()
    trainer(epochs=1, callback=recorder, hps={"scheduler": "Constant"}).fit(regression(), data(8), data(4))
    step = [
        "on_before_training_step",
        "on_after_training_step",
        "on_before_backward",
        "on_after_backward",
        "on_before_optimizer_step",
        "on_after_optimizer_step",
        "on_before_scheduler_step",
        "on_after_scheduler_step",
        "on_before_zero_grad",
        "on_after_zero_grad",
    ]
    evaluation = [
        "on_evaluation_start",
        "on_before_validation_step",
        "on_after_validation_step",
        "on_evaluation_end",
    ]
    end = ["on_epoch_end", "on_save_checkpoint", "on_fit_end"]
    assert [name for name, _ in recorder.calls] == ["on_fit_start", "on_epoch_start", *step, *step, *evaluation, *end]


@pytest.mark.proves("Trainer(evaluate_every_n_steps)", "Trainer(eval_when_finish)", "Trainer(eval_when_start)")
@pytest.mark.parametrize(
    ("arguments", "evaluated"),
    [
        ({}, [5, 10]),
        ({"evaluate_every_n_steps": 3}, [3, 6, 9, 10]),
        ({"evaluate_every_n_steps": 3, "eval_when_finish": False}, [3, 6, 9]),
        ({"evaluate_every_n_steps": 5}, [5, 10]),
        ({"evaluate_every": "0.4 epochs"}, [2, 4, 6, 8, 10]),
        ({"evaluate_every": "8 samples after 50%"}, [6, 7, 8, 9, 10]),
        ({"max_steps": 7}, [5, 7]),
        ({"max_steps": 13}, [5, 10, 13]),
        ({"eval_when_start": True}, [0, 5, 10]),
    ],
)
def test_when_it_evaluates(trainer, regression, data, arguments, evaluated):
    training = trainer(**arguments)
    training.fit(regression(), data(20), data(6))
    history = [json.loads(line) for line in (training.model_path / "history.jsonl").read_text().splitlines()]
    expected = evaluated
    if "after 50%" in str(arguments):
        expected = [6, 8, 10]
    assert [entry["step"] for entry in history] == expected
    assert training.state.finished
    assert training.state.evaluations_done == len(expected)


def test_the_last_step_counts_as_the_end_of_its_epoch(trainer, regression, data):
    recorder = Recorder()
    training = trainer(max_steps=7, callback=recorder)
    training.fit(regression(), data(20), data(4))
    ends = [step for name, step in recorder.calls if name == "on_epoch_end"]
    assert ends == [5, 7]
    assert training.decisions[-1].progress.epoch == 2


@pytest.mark.proves("Trainer(checkpoint_every)")
@pytest.mark.parametrize(
    ("cadence", "made"),
    [
        ("epoch", [5, 10]),
        ("2 epochs", [10]),
        ("4 steps", [4, 8, 10]),
        ("2st", [2, 4, 6, 8, 10]),
        ("eval", [5, 10]),
        ("30%", [3, 6, 9, 10]),
        (None, []),
    ],
)
def test_when_it_checkpoints(trainer, regression, data, cadence, made):
    recorder = Recorder()
    training = trainer(checkpoint_every=cadence, callback=recorder, multiple_checkpoints=True)
    training.fit(regression(), data(20), data(4))
    assert [step for name, step in recorder.calls if name == "on_save_checkpoint"] == made
    folder = training.model_path / "checkpoints"
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    assert names == [f"checkpoint-{i:04d}-step-{step}" for i, step in enumerate(made, start=1)]


@pytest.mark.proves("Trainer(multiple_checkpoints)", "Trainer(max_checkpoints)")
def test_only_the_newest_checkpoints_are_kept(trainer, regression, data):
    training = trainer(checkpoint_every="2 steps", multiple_checkpoints=True, max_checkpoints=2)
    training.fit(regression(), data(20))
    names = sorted(path.name for path in (training.model_path / "checkpoints").iterdir())
    assert names == ["checkpoint-0004-step-8", "checkpoint-0005-step-10"]
    single = trainer("single", checkpoint_every="2 steps")
    single.fit(regression(), data(20))
    assert [p.name for p in (single.model_path / "checkpoints").iterdir()] == ["checkpoint-0005-step-10"]


def test_scheduler_per_step_and_per_epoch(trainer, regression, data):
    class Rates(Callback):
        def __init__(self):
            super().__init__()
            self.rates = []

        def on_before_optimizer_step(self, optimizer):
            self.rates.append(round(optimizer.param_groups[0]["lr"], 6))

    rates = Rates()
    hps = {"scheduler": "StepLR", "scheduler_kwargs": {"step_size": 2, "gamma": 0.1}}
    trainer(lr=1.0, callback=rates, hps=hps, epochs=3).fit(regression(), data(8))
    assert rates.rates == [1.0, 1.0, 0.1, 0.1, 0.01, 0.01]
    rates.rates.clear()
    hps = {**hps, "step_scheduler_per_epoch": True}
    trainer("other", lr=1.0, callback=rates, hps=hps, epochs=3).fit(regression(), data(8))
    assert rates.rates == [1.0, 1.0, 1.0, 1.0, 0.1, 0.1]


def test_a_linear_schedule_reaches_zero_at_the_end(trainer, regression, data):
    class Last(Callback):
        rate = math.nan

        def on_after_scheduler_step(self, scheduler):
            self.rate = scheduler.get_last_lr()[0]

    last = Last()
    hps = {"scheduler": "LinearWithWarmup", "scheduler_kwargs": {"num_warmup_steps": 2}}
    trainer(callback=last, hps=hps, grad_accumulation_steps=3).fit(regression(), data(28))
    assert last.rate == 0.0


class Stream(IterableDataset):
    """Samples of unknown number."""

    def __init__(self, dataset):
        self._dataset = dataset

    def __iter__(self):
        return (self._dataset[i] for i in range(len(self._dataset)))


def test_data_of_unknown_length(trainer, regression, data):
    training = trainer(epochs=2, grad_accumulation_steps=2)
    training.fit(regression(), Stream(data(21)), data(4))
    assert training.state.global_step == 6
    assert [decision.progress.epoch for decision in training.decisions] == [1, 2]
    limited = trainer("limited", max_steps=5, grad_accumulation_steps=2)
    limited.fit(regression(), Stream(data(21)), Stream(data(9)))
    assert [decision.progress.step for decision in limited.decisions] == [3, 5]


@pytest.mark.proves("AcceleratorModule.validation_step")
def test_validation_loss_is_the_mean_over_samples(trainer, regression, data, error_metric):
    class Constant(regression):
        def validation_step(self, key, batch):
            targets = batch[1]
            return {"loss": targets.mean(), "error": (torch.zeros_like(targets), targets)}

    training = trainer(epochs=1, batch_size=(4, 4), metrics=error_metric())
    validation = data(10, seed=3)
    training.fit(Constant(), data(8), {"dev": validation})
    targets = validation.tensors[1]
    assert training.state.additional_metrics["dev"]["valid_loss"] == pytest.approx(targets.mean().item(), abs=1e-6)
    assert training.state.additional_metrics["dev"]["error"] == pytest.approx(targets.abs().mean().item(), abs=1e-6)


def test_evaluation_leaves_no_trace(trainer, regression, data):
    """Dropout draws the same numbers whether or not there are evaluations, and the model is in training mode."""

    class Modes(Callback):
        def __init__(self):
            super().__init__()
            self.modes = []

        def on_before_training_step(self, batch):
            self.modes.append(self.module.model.training)

        def on_before_validation_step(self, batch):
            self.modes.append(self.module.model.training)
            torch.rand(3)

    results = []
    for path, arguments in (("a", {"evaluate_every_n_steps": 2}), ("b", {})):
        torch.manual_seed(1)
        module, modes = regression(dropout=0.5), Modes()
        trainer(path, callback=modes, **arguments).fit(module, data(20), data(4))
        results.append(module.model.state_dict())
        assert True in modes.modes
        assert False in modes.modes
    for name in results[0]:
        assert torch.equal(results[0][name], results[1][name])


@pytest.mark.proves("Trainer.register_model_saving(model_saving)")
def test_rules_save_the_model_of_their_moment(trainer, regression, data):
    """The saved weights are those at the best evaluation, not the last."""

    class Weights(Callback):
        def __init__(self):
            super().__init__()
            self.at = {}

        def on_evaluation_end(self):
            self.at[self.state.global_step] = {k: v.clone() for k, v in self.module.model.state_dict().items()}

    class Worsening(regression):
        def validation_step(self, key, batch):
            step = self.state.global_step
            score = {0: 0.0, 5: 0.5, 10: 0.9, 15: 0.7}[step]  # at 0 in the trial before the first step
            return {"loss": torch.tensor(1.0), "score": torch.full((len(batch[0]),), score)}

    weights = Weights()
    metric = FunctionMetric("score", lambda values: values.mean(), greater_is_better=True)
    training = trainer(epochs=3, metrics=metric, callback=weights)
    training.register_model_saving("best_score")
    training.fit(Worsening(), data(20), data(4))
    saving = training.best("score")
    assert (saving.step, saving.epoch, saving.values) == (10, 2, {"score": pytest.approx(0.9)})
    saved = torch.load(saving.folder / "pytorch_model.bin", weights_only=True)
    for name, value in weights.at[10].items():
        assert torch.equal(saved[name], value)
    assert training.state.model_savings == {"best_score": (pytest.approx(0.9),)}


def test_without_validation_data_the_training_loss_decides(trainer, regression, data):
    training = trainer(epochs=3)
    training.fit(regression(), data(20))
    assert [decision.progress.step for decision in training.decisions] == [5, 10, 15]
    assert training.best("best_train_loss").values["train_loss"] == training.state.best_train_loss


@pytest.mark.proves("Trainer(disable_model_saving)")
def test_saving_can_be_switched_off_and_patience_still_stops(trainer, regression, data):
    class Stuck(regression):
        def validation_step(self, key, batch):
            return torch.tensor(1.0)

    training = trainer(epochs=10, disable_model_saving=True, patience=2)
    training.fit(Stuck(), data(8), data(4))
    assert training.state.evaluations_done == 3
    assert training.decisions[-1].stop.reason == "best_valid_loss has not improved for 2 evaluations"
    assert not list(training.model_path.glob("best_*"))
    assert training.state.patience_left == {"best_valid_loss": 0}


def test_stop_when(trainer, regression, data):
    training = trainer(epochs=100, stop_when="step >= 7", log_every=1)
    training.fit(regression(), data(20), data(4))
    assert training.state.global_step == 7
    assert training.decisions[-1].stop.asked_by == "step >= 7"
    by_epoch = trainer("b", epochs=100, stop_when=["valid_loss < 0", "epoch >= 2 epochs"])
    by_epoch.fit(regression(), data(20), data(4))
    assert by_epoch.state.global_step == 10


@pytest.mark.proves("Trainer.fit(train_dataset)")
def test_loaders_of_the_module_are_used(trainer, regression, data):
    class Own(regression):
        def get_train_dataloader(self, dataset):
            return DataLoader(data(12), batch_size=3)

        def get_validation_dataloader(self, dataset):
            return DataLoader(dataset, batch_size=2)

        def get_optimizer(self):
            return torch.optim.Adam(self.model.parameters(), lr=0.0)

        def validation_step(self, key, batch):
            assert len(batch[0]) == 2
            return super().validation_step(key, batch)

    module = Own()
    before = [p.clone() for p in module.model.parameters()]
    training = trainer(epochs=1)
    training.fit(module, None, data(4))
    assert training.state.global_step == 4
    assert all(torch.equal(a, b) for a, b in zip(before, module.model.parameters(), strict=True))


def test_log_every(trainer, regression, data, capsys):
    trainer(epochs=1, log_every=2).fit(regression(), data(20))
    lines = [line for line in capsys.readouterr().out.splitlines() if "loss" in line and "steps/s" in line]
    assert [line.split("step ")[1].split("/")[0] for line in lines] == ["2", "4"]
    trainer("b", epochs=1, log_every=None).fit(regression(), data(20))
    assert "steps/s" not in capsys.readouterr().out


def test_two_trainings_in_one_script_also_after_one_failed(trainer, regression, data):
    class Broken(regression):
        def training_step(self, batch):
            raise RuntimeError("broken")

    training = trainer()
    with pytest.raises(RuntimeError, match="broken"):
        training.fit(Broken(), data(8))
    training.fit(regression(), data(8))
    assert training.state.finished


def test_exceptions_reach_their_hook_once_and_the_caller_with_a_note(trainer, regression, data):
    for error, hook in (
        (ValueError("x"), "on_exception"),
        (RuntimeError("x"), "on_runtime_error"),
        (torch.OutOfMemoryError("x"), "on_cuda_out_of_memory"),
        (RuntimeError("CUDA out of memory. Tried"), "on_cuda_out_of_memory"),
        (KeyboardInterrupt(), "on_keyboard_interrupt"),
    ):

        class Broken(regression):
            def training_step(self, batch, error=error):
                if self.state.global_step == 2:
                    raise error
                return super().training_step(batch)

        recorder = Recorder()
        with pytest.raises(type(error)) as caught:
            trainer(callback=recorder, resume=False).fit(Broken(), data(20))
        failures = [name for name, _ in recorder.calls if name in HOOKS[10:14]]
        assert failures == [hook]
        if not isinstance(error, KeyboardInterrupt):
            assert caught.value.__notes__ == [
                "raised in Broken.training_step, epoch 1, step 2",
                "its batch: [float32 (4, 4), float32 (4, 1)]",
            ]


def test_an_exception_in_a_callback_names_it(trainer, regression, data):
    class Careless(Callback):
        def on_epoch_start(self):
            raise ValueError("oops")

    with pytest.raises(ValueError, match="oops") as caught:
        trainer(callback=Careless()).fit(regression(), data(8))
    assert caught.value.__notes__ == ["raised in Careless.on_epoch_start, epoch 1, step 0"]


class Uneven(Dataset):
    """Samples whose shapes differ from the eighth on."""

    def __len__(self):
        return 16

    def __getitem__(self, index):
        return torch.zeros(4 + (index > 8)), torch.zeros(1)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_loading_a_batch_says_which_data_and_what_to_do(trainer, regression, data, workers):
    training = trainer(shuffle_train=False, dataloader_num_workers=workers)
    with pytest.raises(RuntimeError, match="equal size") as caught:
        training.fit(regression(), Uneven())
    assert caught.value.__notes__ == [
        "raised in loading a batch of the training data, epoch 1, step 2",
        "samples that cannot be stacked need a collate_fn: give one to the trainer or the module",
    ]


@pytest.mark.parametrize("sanity_check", [True, False])
def test_an_error_in_loading_a_validation_batch_says_which_data(trainer, regression, data, sanity_check):
    class Broken(Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine") as caught:
        trainer(sanity_check=sanity_check).fit(regression(), data(16), {"dev": Broken()})
    step = 0 if sanity_check else 4
    assert caught.value.__notes__[0] == f"raised in loading a batch of the validation data 'dev', epoch 1, step {step}"
    assert not any("collate_fn" in note for note in caught.value.__notes__)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"losss": 1}, "validation_step for 'dev' returned no 'loss'; it returned: losss; is 'losss' meant for it?"),
        (
            {"loss": torch.zeros(()), "acuracy": 1},
            "validation_step for 'dev' returned nothing for the metric 'accuracy'; it returned: loss, acuracy; "
            "is 'acuracy' meant for it?",
        ),
    ],
)
def test_a_missing_output_is_told_in_a_sentence(trainer, regression, data, outputs, message):
    class Wrong(regression):
        def validation_step(self, key, batch):
            return outputs

    with pytest.raises(KeyError) as caught:
        trainer(metrics=FunctionMetric("accuracy", max, True)).fit(Wrong(), data(8), {"dev": data(4)})
    assert str(caught.value) == message
