"""Models and configurations of transformers as `fit` takes them: trained in place, saved, evaluated, refused."""

import sys

import pytest
import torch

from accmt import ConfigError, FunctionMetric

GIVE = "AutoModelForSequenceClassification"


@pytest.mark.proves("Trainer.fit(module)")
def test_a_model_is_trained_in_place(trainer, tiny, transformers, assert_same, accuracy):
    model, samples = tiny.make("bert"), tiny.texts(12)
    before = model.classifier.weight.detach().clone()
    training = trainer(epochs=1, metrics=accuracy(), collate_fn=tiny.collate)
    training.register_model_saving("best_accuracy")
    history = training.fit(model, samples, {"dev": samples})
    assert not torch.equal(model.classifier.weight, before)
    saving = training.best("best_accuracy")
    assert_same(transformers.AutoModelForSequenceClassification.from_pretrained(saving.folder), model)
    values = training.evaluate(model, {"dev": samples})
    assert values["dev"]["accuracy"] == saving.values["accuracy"]
    assert training.evaluate(saving.folder, {"dev": samples}) == values
    assert history.observations[-1].values == values


def test_a_model_continues_from_its_checkpoint(trainer, tiny, watcher, assert_same):
    samples = tiny.texts(8)
    whole, cut = tiny.make("bert"), tiny.make("bert")
    cut.load_state_dict(whole.state_dict())
    resumed = tiny.make("bert")
    for model in (whole, cut, resumed):
        model.config.hidden_dropout_prob = 0.0
    settings = {"collate_fn": tiny.collate, "checkpoint_every": "1 step", "epochs": 2}
    torch.manual_seed(0)
    trainer("whole", **settings).fit(whole, samples)
    torch.manual_seed(0)
    with pytest.raises(KeyboardInterrupt):
        trainer("cut", callback=watcher(cut=3), **settings).fit(cut, samples)
    trainer("cut", callback=watcher(), **settings).fit(resumed, samples)
    assert_same(resumed, whole)


@pytest.mark.parametrize("way", ["alone", "name", "class", "own class"])
def test_a_configuration_makes_a_new_model(trainer, tiny, transformers, watcher, assert_same, way):
    config = transformers.AutoConfig.from_pretrained(tiny.folder / "bert")
    config.dtype = torch.float64
    kinds = {
        "alone": config,
        "name": (config, "BertForSequenceClassification"),
        "class": (config, transformers.AutoModelForSequenceClassification),
        "own class": (config, type("Own", (transformers.BertForSequenceClassification,), {})),
    }
    seen = watcher()
    training = trainer(epochs=1, collate_fn=tiny.collate, callback=seen)
    training.fit(kinds[way], tiny.texts(8))
    assert isinstance(seen.model, transformers.BertForSequenceClassification)
    assert seen.model.dtype is torch.float64
    old = transformers.AutoModelForSequenceClassification.from_pretrained(tiny.folder / "bert")
    assert not torch.allclose(seen.model.bert.pooler.dense.weight.float(), old.bert.pooler.dense.weight, atol=0.01)
    loaded = transformers.BertForSequenceClassification.from_pretrained(training.best("best_train_loss").folder)
    assert_same(loaded, seen.model)


def refusal(training, module, samples, method="fit", **kwargs):
    with pytest.raises(ConfigError) as caught:
        getattr(training, method)(module, samples, **kwargs)
    assert not training.model_path.exists()
    title, line = str(caught.value).split("\n", 1)
    assert title == f"1 mistake in {method}(...):"
    return line.strip()


def test_mistakes(trainer, tiny, transformers):
    samples, model = tiny.texts(4), tiny.make("bert")
    new = transformers.BertConfig()
    of_bert = transformers.AutoConfig.from_pretrained(tiny.folder / "bert")

    def refused(module, method="fit", **kwargs):
        return refusal(trainer(), module, samples, method, **kwargs)

    assert refused(new) == (
        f'module: BertConfig does not name the class of its model: give a class, (config, "{GIVE}")'
    )
    assert refused((new, "BertModel")) == (
        f'module: BertModel computes no loss, because it has no head: give a class that has one, (config, "{GIVE}")'
    )
    assert refused(tiny.make("base")) == (
        f"module: BertModel computes no loss, because it has no head: give a class that has one, {GIVE}"
    )
    assert refused((new, "AutoModelForCTC")).startswith(
        "module: AutoModelForCTC cannot be made of BertConfig: ValueError: Unrecognized configuration class"
    )
    assert refused((new, "AutoModelForNothing")).startswith(
        "module: 'AutoModelForNothing' is not a model class of transformers"
    )
    assert refused((of_bert, 3)).startswith("module: must be a name or path, or a pair such as ")
    hint = "Only for a model given by its name there are more: those of from_pretrained"
    assert refused(of_bert, num_labels=2) == f"num_labels: unknown argument. {hint}"
    assert refused(model, los_fn=1) == f"los_fn: unknown argument, did you mean 'loss_fn'? {hint}"
    of = "is for a plain torch.nn.Module, and BertForSequenceClassification is not one"
    assert refused(model, loss_fn=torch.nn.MSELoss()) == f"loss_fn: {of}: the loss is that of the module"
    assert refused(model, "evaluate", metrics="mae") == f"metrics: {of}: give them to Trainer(metrics=...)"
    assert refused(tiny.folder / "nosuch", "evaluate").startswith("module: there is no folder '")


def test_new_weights_are_reported_by_an_evaluation_too(trainer, tiny, capsys):
    samples = [sample | {"labels": 0} for sample in tiny.texts(4)]
    training = trainer(collate_fn=tiny.collate)
    training.evaluate((tiny.folder / "base", "BertForSequenceClassification"), {"dev": samples})
    assert "2 of 41 weights of BertForSequenceClassification are not in" in " ".join(capsys.readouterr().out.split())


def test_without_transformers_nothing_is_one_of_its_models(trainer, monkeypatch):
    monkeypatch.delitem(sys.modules, "transformers", raising=False)
    data = torch.utils.data.TensorDataset(torch.randn(4, 4), torch.randn(4, 1))
    bias = FunctionMetric("bias", lambda output, target: (output - target).mean(), greater_is_better=False)
    training = trainer(epochs=1, metrics=bias)
    training.fit(torch.nn.Linear(4, 1), data, data, loss_fn=torch.nn.MSELoss())
    assert "transformers" not in sys.modules
