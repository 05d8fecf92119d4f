"""In a training: the collators are what a trainer's `collate_fn` may be."""

import inspect

import pytest
from torch import nn

from accmt import AcceleratorModule, set_seed
from accmt.collate_fns import (
    DataCollatorForLanguageModeling,
    DataCollatorForLongestSequence,
    DataCollatorForSeq2Seq,
)


class Words(AcceleratorModule):
    """Predicts each token from its embedding alone."""

    def __init__(self):
        self.model = nn.Sequential(nn.Embedding(16, 8), nn.Linear(8, 16))
        self.seen, self.losses = [], []

    def training_step(self, batch):
        self.seen.append(batch["input_ids"].tolist())
        loss = nn.functional.cross_entropy(self.model(batch["input_ids"]).flatten(0, 1), batch["labels"].flatten())
        self.losses.append(loss.item())
        return loss


@pytest.fixture
def texts():
    return [{"input_ids": [2, *range(5, 5 + 1 + index % 9), 3]} for index in range(24)]


@pytest.mark.proves("collate_fns.DataCollatorForLanguageModeling")
@pytest.mark.parametrize("mlm", [True, False])
def test_a_language_model_is_trained(trainer, tokenizer, texts, mlm):
    collator = DataCollatorForLanguageModeling(tokenizer, mlm, 0.5)
    module = Words()
    trainer(collate_fn=collator, epochs=4, lr=1.0).fit(module, texts)
    assert len(module.losses) == 24
    assert sum(module.losses[-6:]) < sum(module.losses[:6])
    assert mlm == any(4 in ids for batch in module.seen for ids in batch)


def test_a_seed_reproduces_the_training(trainer, tokenizer, texts):
    def fitted(path, seed):
        set_seed(seed)
        module = Words()
        trainer(path, collate_fn_train=DataCollatorForLanguageModeling(tokenizer, True, 0.5)).fit(module, texts)
        return module.seen

    first = fitted("one", 1)
    assert fitted("two", 1) == first
    assert fitted("three", 2) != first


class Stars(AcceleratorModule):
    """A class for each text, from the mean of its words."""

    def __init__(self):
        self.model = nn.EmbeddingBag(16, 2, padding_idx=0)

    def training_step(self, batch):
        inputs, targets = batch
        return nn.functional.cross_entropy(self.model(inputs["input_ids"]), targets)

    def validation_step(self, key, batch):
        return {"loss": self.training_step(batch)}


@pytest.mark.proves("collate_fns.DataCollatorForLongestSequence")
def test_a_classifier_is_trained_and_evaluated(trainer, tokenizer, texts):
    dataset = [(text, index % 2) for index, text in enumerate(texts)]
    of_stars = trainer(collate_fn=DataCollatorForLongestSequence(tokenizer))
    of_stars.fit(Stars(), dataset, {"dev": dataset})
    assert 0 < of_stars.state.best_valid_loss < 2


@pytest.mark.parametrize(
    ("collator", "signature"),
    [
        (DataCollatorForSeq2Seq, "(tokenizer: 'Any', label_pad_token_id: 'int' = -100) -> None"),
        (
            DataCollatorForLanguageModeling,
            "(tokenizer: 'Any', mlm: 'bool' = True, mlm_probability: 'float' = 0.15, ignore_index: 'int' = -100, "
            "masked_to_mask: 'float' = 0.8, apply_random_words: 'bool' = True, force_one_output: 'bool' = False)"
            " -> None",
        ),
        (DataCollatorForLongestSequence, "(tokenizer: 'Any', torch_stack: 'bool' = True) -> None"),
    ],
)
def test_the_arguments_are_the_documented_ones(collator, signature):
    assert str(inspect.signature(collator)) == signature
