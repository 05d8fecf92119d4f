"""Inputs are padded to the longest; labels, which are no sequences, stay as they are."""

import pickle

import numpy as np
import pytest
import torch

from accmt.collate_fns import DataCollatorForLongestSequence
from accmt.hyperparameters import ConfigError


def x(*ids, **more):
    return {"input_ids": list(ids), "attention_mask": [1] * len(ids), **more}


def assert_padded(batch):
    assert batch["input_ids"].tolist() == [[2, 5, 6, 3], [2, 7, 3, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]


LONG, SHORT = x(2, 5, 6, 3), x(2, 7, 3)


@pytest.mark.proves("collate_fns.DataCollatorForLongestSequence")
def test_a_dictionary_alone(tokenizer):
    batch = DataCollatorForLongestSequence(tokenizer)([LONG, SHORT])
    assert type(batch) is dict
    assert list(batch) == ["input_ids", "attention_mask"]
    assert_padded(batch)


@pytest.mark.proves("collate_fns.DataCollatorForLongestSequence(tokenizer)")
def test_on_the_left(tokenizer):
    tokenizer.padding_side = "left"
    batch = DataCollatorForLongestSequence(tokenizer)([LONG, SHORT])
    assert batch["input_ids"].tolist() == [[2, 5, 6, 3], [0, 2, 7, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [0, 1, 1, 1]]


@pytest.mark.parametrize(
    ("first", "second", "stacked"),
    [
        (1, 0, torch.tensor([1, 0])),
        (0.5, 2.0, torch.tensor([0.5, 2.0], dtype=torch.float64)),
        (torch.tensor(1), torch.tensor(0), torch.tensor([1, 0])),
        (torch.tensor([1]), torch.tensor([0]), torch.tensor([[1], [0]])),
        ([0, 1, 1], [1, 0, 0], torch.tensor([[0, 1, 1], [1, 0, 0]])),
        (np.array([0.5, 1], dtype=np.float32), np.zeros(2, dtype=np.float32), torch.tensor([[0.5, 1], [0, 0]])),
        # as long as the text of both samples, and yet not padded
        ([1, 2, 3, 4], [5, 6, 7, 8], torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])),
    ],
)
def test_labels_are_stacked_beside_and_inside_of_the_dictionary(tokenizer, first, second, stacked):
    collator = DataCollatorForLongestSequence(tokenizer)
    inputs, labels = collator([(LONG, first), (SHORT, second)])
    assert_padded(inputs)
    batch = collator([{**LONG, "labels": first}, {**SHORT, "labels": second}])
    assert_padded(batch)
    for made in (labels, batch["labels"]):
        assert torch.equal(made, stacked)
        assert made.dtype == stacked.dtype


@pytest.mark.proves("collate_fns.DataCollatorForLongestSequence")
def test_several_dictionaries_and_labels(tokenizer):
    batch = DataCollatorForLongestSequence(tokenizer)([(LONG, x(5), 1, "one"), (SHORT, x(6, 7), 0, "two")])
    assert type(batch) is tuple
    assert_padded(batch[0])
    assert batch[1]["input_ids"].tolist() == [[5, 0], [6, 7]]
    assert batch[2].tolist() == [1, 0]
    assert batch[3] == ["one", "two"]


def test_a_dictionary_of_labels_is_collated_by_default(tokenizer):
    _, labels = DataCollatorForLongestSequence(tokenizer)([(LONG, {"stars": 3}), (SHORT, {"stars": 5})])
    assert labels["stars"].tolist() == [3, 5]


def test_a_tuple_of_labels_is_collated_by_default(tokenizer):
    _, labels = DataCollatorForLongestSequence(tokenizer)([(LONG, (1, 2)), (SHORT, (3, 4))])
    assert [column.tolist() for column in labels] == [[1, 3], [2, 4]]


@pytest.mark.proves("collate_fns.DataCollatorForLongestSequence(torch_stack)")
def test_without_stacking_labels_may_differ_in_shape(tokenizer):
    collator = DataCollatorForLongestSequence(tokenizer, torch_stack=False)
    boxes = [torch.ones(2, 4), torch.ones(3, 4)]
    inputs, labels, numbers = collator([(LONG, boxes[0], 1), (SHORT, boxes[1], 2)])
    assert_padded(inputs)
    assert labels == boxes
    assert numbers == [1, 2]
    batch = collator([{**LONG, "labels": [1, 2]}, {**SHORT, "labels": [3]}])
    assert_padded(batch)
    assert isinstance(batch["labels"], list)
    assert [labels.tolist() for labels in batch["labels"]] == [[1, 2], [3]]


def test_other_keys_that_follow_the_tokens_are_padded(tokenizer):
    batch = DataCollatorForLongestSequence(tokenizer)(
        [x(2, 5, 6, 3, token_type_ids=[0, 0, 1, 1], row=7), x(2, 7, 3, token_type_ids=[0, 1, 1], row=8)]
    )
    assert_padded(batch)
    assert batch["token_type_ids"].tolist() == [[0, 0, 1, 1], [0, 1, 1, 0]]
    assert batch["row"].tolist() == [7, 8]


def test_what_the_tokenizer_returns(tokenizer):
    encoded = [tokenizer(text, return_tensors="pt") for text in ("a b", "c")]
    inputs, labels = DataCollatorForLongestSequence(tokenizer)(list(zip(encoded, [1, 0], strict=True)))
    assert_padded(inputs)
    assert labels.tolist() == [1, 0]


def test_it_can_be_pickled(tokenizer):
    collator = pickle.loads(pickle.dumps(DataCollatorForLongestSequence(tokenizer, torch_stack=False)))
    assert collator([(LONG, 1), (SHORT, 0)])[1] == [1, 0]


ADVICE = "make them alike, give torch_stack=False, or pad sequences of labels with DataCollatorForSeq2Seq"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            [(x(5), [1, 2]), (x(5), [1])],
            f"element 1 of the samples of the batch cannot be combined, found shapes (2,), (1,): {ADVICE}",
        ),
        (
            [{**LONG, "labels": [1] * 4}, {**SHORT, "labels": [1] * 3}],
            f"'labels' of the batch cannot be combined, found shapes (4,), (3,): {ADVICE}",
        ),
        (
            [torch.ones(2)],
            "DataCollatorForLongestSequence needs samples that are a dictionary with 'input_ids', or a tuple with one "
            "in it, but sample 0 of the batch is an object of type Tensor",
        ),
        (
            [{"ids": [1], "mask": [1]}],
            "DataCollatorForLongestSequence needs samples that are a dictionary with 'input_ids', or a tuple with one "
            "in it, but sample 0 of the batch is a dictionary with 'ids', 'mask'",
        ),
        (
            [([1, 2], 1)],
            "DataCollatorForLongestSequence needs samples that are a dictionary with 'input_ids', or a tuple with one "
            "in it, but sample 0 of the batch is a tuple of 2",
        ),
        ([], "the batch has no samples: the dataset or the batch sampler returned an empty list"),
    ],
)
def test_samples_that_do_not_fit_together(tokenizer, given, text):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (the whole text is compared)
        DataCollatorForLongestSequence(tokenizer)(given)
    assert str(caught.value) == text


def test_bad_arguments(make_tokenizer):
    with pytest.raises(ConfigError) as caught:
        DataCollatorForLongestSequence(make_tokenizer(pad_token=None), torch_stack=1)
    assert str(caught.value) == (
        "2 mistakes in DataCollatorForLongestSequence(...):\n"
        "  tokenizer: has no pad token: set its pad_token, for example to its eos_token, or add one to it\n"
        "  torch_stack: must be True or False, not 1 (int)"
    )
