"""Trainings whose rules ask for standard errors: what is resampled, recorded, resumed and said."""

import json
import textwrap

import pytest
import torch
from launching import launch
from torch import nn
from torch.utils.data import TensorDataset

from accmt import AcceleratorModule, ConfigError, FunctionMetric, MetricParallel, RuleError, Trainer, set_seed
from accmt.cli.main import main
from accmt.tracking.history import TrainingHistory

QUICK = {"disable_model_saving": True, "enable_checkpointing": False, "quiet": True, "sanity_check": False}


class Classes(AcceleratorModule):
    """A linear classifier, with a loss for each sample in validation if asked for."""

    def __init__(self, reduction="none"):
        self.model = nn.Linear(8, 2)
        self.reduction = reduction

    def training_step(self, batch):
        return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    def validation_step(self, key, batch):
        inputs, targets = batch
        outputs = self.model(inputs)
        loss = nn.functional.cross_entropy(outputs, targets, reduction=self.reduction)
        return {"loss": loss, "accuracy": (outputs, targets)}


def accuracy(kind=FunctionMetric):
    return kind("accuracy", lambda outputs, targets: outputs.argmax(1) == targets, True, per_sample=True)


def labels(count, seed=0):
    """Return samples whose classes are drawn by chance."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 8, generator=generator)
    return TensorDataset(inputs, torch.randint(0, 2, (count,), generator=generator))


def from_file(folder, number, rule="best_valid_loss by 2 se", **arguments):
    """Return a trainer whose configuration says how many replicates there are."""
    config = {"hps": {"epochs": 1, "batch_size": 4}, "rules": {"save": [rule], "replicates": number}}
    return Trainer(config, folder / str(len([*folder.iterdir()])), dataloader_num_workers=0, **arguments)


def recorded(model_path):
    lines = (model_path / "replicates.jsonl").read_text().splitlines()
    return {line["evaluation"]: line["replicates"] for line in map(json.loads, lines)}


@pytest.mark.proves("Trainer(replicates)")
def test_luck_is_not_taken_for_quality(trainer, full):
    """Models that cannot learn anything: chosen by luck alone, and by `by 2 se` hardly ever."""
    seeds = 100 if full else 25
    kept = {"best_accuracy": 0, "careful": 0}
    for seed in range(seeds):
        set_seed(seed)
        training = trainer(str(seed), epochs=12, batch_size=50, lr=0.3, metrics=accuracy(), **QUICK)
        training.register_model_saving("best_accuracy")
        training.register_model_saving("best_accuracy by 2 se", name="careful")
        training.fit(Classes("mean"), labels(100, 2 * seed), labels(300, 2 * seed + 1))
        for verdict in training.decisions[-1].verdicts:
            kept[verdict.rule] += verdict.kept[0].evaluation == 1
    assert kept["careful"] >= 0.8 * seeds
    assert kept["best_accuracy"] <= 0.36 * seeds


def test_only_what_a_rule_asks_for_is_resampled(trainer):
    training = trainer(metrics=[accuracy(), FunctionMetric("other", lambda o: 0.0, True)], eval_when_start=True)
    training.register_model_saving("best_accuracy@b by 2 se")
    module = Classes()
    module.validation_step = lambda key, batch: {**Classes.validation_step(module, key, batch), "other": batch[1]}
    training.fit(module, labels(8), {"a": labels(30), "b": labels(30, 1)})
    found = recorded(training.model_path)
    assert [*found] == [1, 2]  # not of the evaluation before the first step, which decides nothing
    assert [[*one, *one["b"]] for one in found.values()] == [["b", "accuracy"]] * 2
    history = TrainingHistory.load(training.model_path).observations
    read = [one.replicates["b"]["accuracy"] for one in history[1:]]
    assert read == [tuple(one["b"]["accuracy"]) for one in found.values()]
    assert [len(each) for each in read] == [200, 200]
    assert history[0].replicates == {}


def test_nothing_is_resampled_without_such_a_rule(trainer, monkeypatch):
    monkeypatch.setattr("accmt.metrics.replicates.Draws.of", None)
    training = trainer(metrics=accuracy())
    training.register_model_saving("best_accuracy by 1%")
    training.fit(Classes(), labels(8), labels(30))
    assert not (training.model_path / "replicates.jsonl").exists()


def test_a_loss_for_each_sample(trainer, capsys):
    """It is the same loss, and its replicates are of samples; those of losses of batches are of batches."""
    runs = {}
    for reduction in ("none", "mean"):
        set_seed(0)
        training = trainer(reduction, batch_size=20)
        training.register_model_saving("best_valid_loss by 2 se")
        training.fit(Classes(reduction), labels(40), labels(95, 1))
        runs[reduction] = training.state.best_valid_loss, recorded(training.model_path)
    assert runs["none"][0] == pytest.approx(runs["mean"][0])
    said = [
        line for line in capsys.readouterr().out.splitlines() if "standard error" in line and line.startswith("warning")
    ]
    assert said == [
        "warning: the standard errors of 'valid_loss' on 'valid' are those of 5 batches, not of 95 samples, because "
        "validation_step returns one loss for a batch, not one for each of its samples"
    ]
    spreads = {name: torch.tensor(found[1]["0"]["valid_loss"]).std() for name, (_, found) in runs.items()}
    assert spreads["none"] != spreads["mean"]


@pytest.mark.parametrize(
    ("loss", "shape"), [(torch.ones(3), "(3,)"), (torch.ones(4, 1), "(4, 1)"), (torch.ones(0), "(0,)"), (0.5, "float")]
)
def test_a_loss_that_is_neither_of_a_batch_nor_of_samples(trainer, loss, shape):
    module = Classes()
    module.validation_step = lambda key, batch: {"loss": loss}
    with pytest.raises(ValueError, match="the loss of validation_step") as caught:
        trainer().fit(module, labels(8), labels(4))
    assert str(caught.value) == (
        "the loss of validation_step for 'valid' must be a scalar tensor, or one loss for each of the 4 samples of the "
        f"batch, not {shape}"
    )


def test_what_has_no_standard_error_is_said(trainer, capsys):
    def area(outputs, targets):
        if len(outputs) != len(outputs.unique(dim=0)):
            raise ValueError("a sample is there twice")
        return 0.5 + outputs.mean()

    metrics = [FunctionMetric("accuracy", area, True), FunctionMetric("rows", lambda o: o.mean(), True)]
    training = trainer(metrics=metrics)
    module = Classes()
    module.validation_step = lambda key, batch: {
        **Classes.validation_step(module, key, batch),
        "rows": batch[0].ravel(),
    }
    for rule in ("best_accuracy by 2 se", "best_rows by 2 se", "best_valid_loss@one by 2 se"):
        training.register_model_saving(rule)
    training.fit(module, labels(8), {"many": labels(30), "one": labels(1)})
    said = [
        line for line in capsys.readouterr().out.splitlines() if "standard error" in line and line.startswith("warning")
    ]
    twice = "because most of its resamples give no value (ValueError: a sample is there twice)"
    rows = "not of {} samples: give it one row for each sample"
    assert said == [
        f"warning: 'accuracy' on 'many' has no standard error, {twice}",
        f"warning: the standard errors of 'rows' on 'many' are those of 240 rows, {rows.format(30)}",
        "warning: 'valid_loss' on 'one' has no standard error, because most of its resamples give no value "
        "(there is only one)",
        "warning: 'accuracy' on 'one' has no standard error, because most of its resamples give no value "
        "(there is only one)",
        f"warning: the standard errors of 'rows' on 'one' are those of 8 rows, {rows.format(1)}",
    ]


def test_losses_that_are_not_a_number_have_no_standard_error(trainer, capsys):
    class Unknown(Classes):
        def validation_step(self, key, batch):
            return {"loss": torch.full((len(batch[1]),), torch.nan)}

    training = trainer(epochs=1)
    training.register_model_saving("best_valid_loss by 2 se")
    training.fit(Unknown(), labels(8), {"dev": labels(8)})
    said = "'valid_loss' on 'dev' has no standard error, because most of its resamples give no value (they are nan)"
    assert f"warning: {said}" in " ".join(capsys.readouterr().out.split())


def test_a_metric_that_each_process_computes_is_refused(trainer):
    class Parallel(MetricParallel):
        def compute(self, outputs, targets):
            return {"accuracy": 0.5}

    training = trainer(metrics=Parallel("accuracy"))
    training.register_model_saving("best_accuracy by 2 se")
    with pytest.raises(RuleError) as caught:
        training.fit(Classes(), labels(8), labels(8))
    assert str(caught.value) == textwrap.dedent(
        """\
        'accuracy' has no standard error, which 'by 2 se' needs
            best_accuracy by 2 se
                 ^^^^^^^^
          Parallel computes it on each process apart, which a Metric does not: """
        "write an amount, such as by 0.01 or by 1%"
    )


@pytest.mark.parametrize("value", [19, 10_001, 200.0, True, "200", None])
def test_numbers_of_replicates_that_are_refused(trainer, tmp_path, value):
    with pytest.raises(ConfigError) as caught:
        trainer(replicates=value)
    said = "replicates: must be a whole number from 20 to 10,000"
    assert f"{said}, not {value!r}" in str(caught.value)
    if value is not None:
        with pytest.raises(ConfigError) as caught:
            from_file(tmp_path, value)
        assert f"rules.{said}, or None, not {value!r}" in str(caught.value)


def test_the_number_of_replicates_from_a_file_or_the_argument(tmp_path, capsys):
    for number, given in ((30, {}), (40, {"replicates": 40})):
        training = from_file(tmp_path, 30, **given)
        training.fit(Classes(), labels(8), labels(8))
        assert len(recorded(training.model_path)[1]["0"]["valid_loss"]) == number
    capsys.readouterr()
    training = from_file(tmp_path, 30, rule="best_valid_loss")
    training.fit(Classes(), labels(8), labels(8))
    said = "warning: replicates has no effect: no rule asks for standard errors, such as by 2 se"
    assert said in capsys.readouterr().out.splitlines()


def decided(training):
    lines = (training.model_path / "decisions.jsonl").read_text().splitlines()
    return [[verdict["reason"] for verdict in json.loads(line)["verdicts"]] for line in lines]


def test_a_replay_decides_the_same_and_needs_what_was_recorded(trainer, capsys):
    training = trainer(epochs=6, metrics=accuracy())
    training.register_model_saving("best_accuracy by 0.5 se")
    training.fit(Classes(), labels(8), labels(30))
    place = str(training.model_path)
    capsys.readouterr()
    assert main(["replay", place, "--json"]) == 0
    replayed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [[verdict["reason"] for verdict in line["verdicts"]] for line in replayed if "verdicts" in line] == decided(
        training
    )
    (training.model_path / "replicates.jsonl").unlink()
    assert main(["replay", place]) != 0
    assert "has no standard error" in capsys.readouterr().err


def test_other_replicates_do_not_pair_with_former_ones(trainer, capsys):
    for epochs, count in ((1, 20), (2, 30)):
        training = trainer(epochs=epochs, metrics=accuracy(), replicates=count)
        training.register_model_saving("best_accuracy by 2 se")
        training.register_model_saving("best_accuracy", name="plain")
        capsys.readouterr()
        training.fit(Classes(), labels(8), labels(30))
    text = " ".join(capsys.readouterr().out.split())
    assert "replicates was 20 and is 30" in text
    assert "the rule 'best_accuracy' has another number of replicates: it starts fresh" in text
    assert "the rule 'plain'" not in text
    assert [len(one["0"]["accuracy"]) for one in recorded(training.model_path).values()] == [20, 30]
    trainer(resume=False, metrics=accuracy()).fit(Classes(), labels(8), labels(30))
    assert not (training.model_path / "replicates.jsonl").exists()
    assert (training.model_path / "earlier-2" / "replicates.jsonl").exists()


PROCESSES = """
    import os, sys
    import torch
    from torch import nn
    from torch.utils.data import TensorDataset
    from torchmetrics import classification
    from accmt import AcceleratorModule, FunctionMetric, HyperParameters, TorchMetric, Trainer

    class Module(AcceleratorModule):
        def __init__(self):
            self.model = nn.Linear(1, 1)
        def training_step(self, batch):
            return self.model(batch[1].float()[:, None]).mean()
        def validation_step(self, key, batch):
            scores, targets = batch[0] + 0.3 * self.state.epoch * batch[0].flip(1), batch[1]
            loss = nn.functional.cross_entropy(scores, targets, reduction="none" if key == "a" else "mean")
            return {"loss": loss, **dict.fromkeys(("each", "all", "object"), (scores, targets))}

    def is_right(scores, targets):
        return scores.argmax(1) == targets

    def data(count):
        generator = torch.Generator().manual_seed(count)
        targets = torch.randint(0, 2, (count,), generator=generator)
        return TensorDataset(torch.randn(count, 2, generator=generator), targets)

    metrics = [
        FunctionMetric("each", is_right, True, per_sample=True),
        FunctionMetric("all", lambda scores, targets: scores[is_right(scores, targets)].mean(), True),
        TorchMetric("object", classification.MulticlassAUROC(2), True),
    ]
    trainer = Trainer(
        HyperParameters(2, batch_size=4), sys.argv[1], metrics=metrics, dataloader_num_workers=0, replicates=20
    )
    for rule in ("best_each by 1 se", "best_all by 1 se", "best_valid_loss by 1 se", "best_object by 1 se"):
        trainer.register_model_saving(rule)
    trainer.fit(Module(), data(16), {"a": data(37), "b": data(23)})
"""


@pytest.mark.xdist_group("processes")
def test_replicates_do_not_depend_on_the_number_of_processes(tmp_path):
    found = {}
    for processes in (None, 2):
        folder = tmp_path / str(processes)
        launch(textwrap.dedent(PROCESSES), folder, processes=processes).check()
        found[processes] = recorded(folder)
    assert found[None] == found[2]
    for table in found[2].values():
        for each in table.values():
            assert each.keys() == {"each", "all", "object", "valid_loss"}
            assert all(len(set(values)) > 3 for values in each.values())
