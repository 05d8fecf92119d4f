"""Inputs and labels are padded to the longest, each with its own value, whatever form the samples have."""

import pickle
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch

from accmt.collate_fns import DataCollatorForSeq2Seq
from accmt.hyperparameters import ConfigError

IDS = [[2, 5, 6, 3], [2, 7, 3]]
LABELS = [[8, 3], [9, 10, 11, 12, 3]]


def samples(form=list, **more):
    return [
        {
            "input_ids": form(ids),
            "attention_mask": form([1] * len(ids)),
            "labels": form(labels),
            **{key: form(values[index]) for key, values in more.items()},
        }
        for index, (ids, labels) in enumerate(zip(IDS, LABELS, strict=True))
    ]


def as_lists(batch):
    return {key: value.tolist() for key, value in batch.items()}


PADDED_RIGHT = {
    "input_ids": [[2, 5, 6, 3], [2, 7, 3, 0]],
    "attention_mask": [[1, 1, 1, 1], [1, 1, 1, 0]],
    "labels": [[8, 3, -100, -100, -100], [9, 10, 11, 12, 3]],
}
PADDED_LEFT = {
    "input_ids": [[2, 5, 6, 3], [0, 2, 7, 3]],
    "attention_mask": [[1, 1, 1, 1], [0, 1, 1, 1]],
    "labels": [[-100, -100, -100, 8, 3], [9, 10, 11, 12, 3]],
}

FORMS = [
    list,
    tuple,
    torch.tensor,
    np.array,
    lambda ids: np.array(ids, dtype=np.uint16),
    lambda ids: np.array(ids[::-1], dtype=np.int32)[::-1],
    lambda ids: torch.tensor([ids], dtype=torch.int32),
    lambda ids: np.array([ids]),
    lambda ids: [ids],
    lambda ids: [torch.tensor(ids)],
    lambda ids: [np.array(ids)],
]


@pytest.mark.proves("collate_fns.DataCollatorForSeq2Seq")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("side", "expected"), [("right", PADDED_RIGHT), ("left", PADDED_LEFT)])
def test_lists_arrays_and_tensors_are_padded_alike(tokenizer, form, side, expected):
    tokenizer.padding_side = side
    batch = DataCollatorForSeq2Seq(tokenizer)(samples(form))
    assert as_lists(batch) == expected
    assert {value.dtype for value in batch.values()} == {torch.int64}


@pytest.mark.proves("collate_fns.DataCollatorForSeq2Seq(tokenizer)")
def test_the_side_may_change_later(tokenizer):
    collator = DataCollatorForSeq2Seq(tokenizer)
    assert as_lists(collator(samples())) == PADDED_RIGHT
    tokenizer.padding_side = "left"
    assert as_lists(collator(samples())) == PADDED_LEFT


@pytest.mark.parametrize("tensors", [None, "pt", "np"])
def test_what_the_tokenizer_returns(tokenizer, tensors):
    def encode(source, target):
        encoded = tokenizer(source, return_tensors=tensors)
        encoded["labels"] = tokenizer(target, return_tensors=tensors)["input_ids"]
        return encoded

    batch = DataCollatorForSeq2Seq(tokenizer)([encode("a b", "c"), encode("c", "e f g")])
    assert as_lists(batch) == {
        "input_ids": [[2, 5, 6, 3], [2, 7, 3, 0]],
        "attention_mask": [[1, 1, 1, 1], [1, 1, 1, 0]],
        "labels": [[2, 7, 3, -100, -100], [2, 9, 10, 11, 3]],
    }
    assert type(batch) is dict


def test_labels_may_have_a_batch_dimension_alone(tokenizer):
    given = [{"input_ids": ids, "labels": torch.tensor([labels])} for ids, labels in zip(IDS, LABELS, strict=True)]
    assert DataCollatorForSeq2Seq(tokenizer)(given)["labels"].tolist() == PADDED_RIGHT["labels"]


def test_labels_may_be_distributions(tokenizer):
    given = [{"input_ids": [5], "labels": torch.full((count, 3), 0.5)} for count in (1, 2)]
    labels = DataCollatorForSeq2Seq(tokenizer)(given)["labels"]
    assert labels.tolist() == [[[0.5] * 3, [-100.0] * 3], [[0.5] * 3, [0.5] * 3]]


def test_no_key_is_added(tokenizer):
    batch = DataCollatorForSeq2Seq(tokenizer)([{"input_ids": ids} for ids in IDS])
    assert as_lists(batch) == {"input_ids": PADDED_RIGHT["input_ids"]}


@pytest.mark.proves("collate_fns.DataCollatorForSeq2Seq(label_pad_token_id)")
def test_labels_are_padded_with_the_given_id(tokenizer):
    batch = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=0)(samples())
    assert batch["labels"].tolist() == [[8, 3, 0, 0, 0], [9, 10, 11, 12, 3]]
    assert DataCollatorForSeq2Seq(tokenizer, 77)(samples())["labels"].tolist()[0] == [8, 3, 77, 77, 77]


@pytest.mark.parametrize(
    ("key", "values", "expected"),
    [
        ("token_type_ids", [[0, 0, 1, 1], [0, 1, 1]], [[0, 0, 1, 1], [0, 1, 1, 0]]),
        ("special_tokens_mask", [[1, 0, 0, 1], [1, 0, 1]], [[1, 0, 0, 1], [1, 0, 1, 1]]),
        ("position_ids", [[0, 1, 2, 3], [0, 1, 2]], [[0, 1, 2, 3], [0, 1, 2, 0]]),
        ("global_attention_mask", [[1, 0, 0, 0], [1, 0, 0]], [[1, 0, 0, 0], [1, 0, 0, 0]]),
        ("is_name", [[False, True, True, False], [True] * 3], [[False, True, True, False], [True, True, True, False]]),
        ("weights", [[0.5, 1, 1, 0.5], [0.5, 1.5, 0.5]], [[0.5, 1, 1, 0.5], [0.5, 1.5, 0.5, 0]]),
        ("whole_then_broken", [[1, 1, 1, 1], [0.5, 1.5, 0.5]], [[1, 1, 1, 1], [0.5, 1.5, 0.5, 0]]),
        ("word_labels", [[1, 2, 3, 4], [1, 2, 3]], [[1, 2, 3, 4], [1, 2, 3, -100]]),
        ("flag_labels", [[True] * 4, [False] * 3], [[1, 1, 1, 1], [0, 0, 0, -100]]),
        ("offset_mapping", [[(0, 0), (0, 1), (2, 3), (0, 0)], [(0, 0), (0, 1), (0, 0)]],
         [[[0, 0], [0, 1], [2, 3], [0, 0]], [[0, 0], [0, 1], [0, 0], [0, 0]]]),
        # as long as the labels
        ("decoder_input_ids", [[2, 8], [2, 9, 10, 11, 12]], [[2, 8, 0, 0, 0], [2, 9, 10, 11, 12]]),
        ("decoder_attention_mask", [[1, 1], [1] * 5], [[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]),
        # of its own length
        ("title_input_ids", [[5, 6, 7], [5]], [[5, 6, 7], [5, 0, 0]]),
        # not one entry for each token
        ("features", [[1, 2, 3], [4, 5, 6]], [[1, 2, 3], [4, 5, 6]]),
    ],
)  # fmt: skip
def test_other_keys_of_a_dictionary(tokenizer, key, values, expected):
    batch = DataCollatorForSeq2Seq(tokenizer)(samples(**{key: values}))
    assert as_lists(batch) == {**PADDED_RIGHT, key: expected}


@pytest.mark.proves("collate_fns.DataCollatorForSeq2Seq(tokenizer)")
@pytest.mark.parametrize(("pad_type", "used"), [(3, 3), (None, 0)])
def test_token_types_are_padded_with_the_type_of_the_tokenizer(pad_type, used):
    given = [{"input_ids": [5, 6], "token_type_ids": [0, 1]}, {"input_ids": [5], "token_type_ids": [1]}]
    batch = DataCollatorForSeq2Seq(SimpleNamespace(pad_token_id=9, pad_token_type_id=pad_type))(given)
    assert as_lists(batch) == {"input_ids": [[5, 6], [5, 9]], "token_type_ids": [[0, 1], [1, used]]}


def test_values_that_are_no_sequences_are_collated_by_default(tokenizer):
    given = [{**sample, "id": index, "text": "ab"[index], "score": 0.5} for index, sample in enumerate(samples())]
    batch = DataCollatorForSeq2Seq(tokenizer)(given)
    assert batch["id"].tolist() == [0, 1]
    assert batch["text"] == ["a", "b"]
    assert torch.equal(batch["score"], torch.tensor([0.5, 0.5], dtype=torch.float64))


def test_pictures_lose_the_batch_dimension_with_the_text(tokenizer):
    picture = {"pixel_values": torch.ones(1, 3, 2, 2), "boxes": torch.ones(5, 4)}
    batch = DataCollatorForSeq2Seq(tokenizer)([{"input_ids": torch.tensor([ids]), **picture} for ids in IDS])
    assert batch["pixel_values"].shape == (2, 3, 2, 2)
    assert batch["boxes"].shape == (2, 5, 4)
    given = [{"input_ids": torch.tensor(ids), "pixel_values": torch.ones(1, 3, 2, 2)} for ids in IDS]
    assert DataCollatorForSeq2Seq(tokenizer)(given)["pixel_values"].shape == (2, 1, 3, 2, 2)


def test_class_labels_are_not_padded(tokenizer):
    batch = DataCollatorForSeq2Seq(tokenizer)([{"input_ids": [5, 6], "labels": 1}, {"input_ids": [5], "labels": 0}])
    assert batch["labels"].tolist() == [1, 0]


def test_an_empty_text_is_padding(tokenizer):
    given = [{"input_ids": [], "attention_mask": [], "labels": []}, samples()[1]]
    batch = DataCollatorForSeq2Seq(tokenizer)(given)
    assert batch["input_ids"].tolist() == [[0, 0, 0], [2, 7, 3]]
    assert batch["attention_mask"].tolist() == [[0, 0, 0], [1, 1, 1]]
    assert batch["labels"].tolist()[0] == [-100] * 5
    assert {value.dtype for value in batch.values()} == {torch.int64}


class Pair(NamedTuple):
    question: dict
    answer: dict
    score: float


@pytest.mark.proves("collate_fns.DataCollatorForSeq2Seq")
@pytest.mark.parametrize("kind", [lambda *values: values, lambda *values: list(values), Pair])
def test_tuples_of_several_dictionaries_and_other_values(tokenizer, kind):
    first, second = samples()
    batch = DataCollatorForSeq2Seq(tokenizer)(
        [kind(first, {"input_ids": [5]}, 0.5), kind(second, {"input_ids": [6, 7]}, 1)]
    )
    assert type(batch) is (Pair if kind is Pair else tuple)
    assert as_lists(batch[0]) == PADDED_RIGHT
    assert as_lists(batch[1]) == {"input_ids": [[5, 0], [6, 7]]}
    assert torch.equal(batch[2], torch.tensor([0.5, 1.0], dtype=torch.float64))


def test_what_is_not_tokenized_is_collated_by_default(tokenizer):
    collator = DataCollatorForSeq2Seq(tokenizer)
    assert torch.equal(collator([torch.ones(2), torch.zeros(2)]), torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    ones, lists = collator([(np.ones(2), [1, 2]), (np.ones(2), [3, 4])])
    assert torch.equal(ones, torch.ones(2, 2, dtype=torch.float64))
    assert [column.tolist() for column in lists] == [[1, 3], [2, 4]]  # torch transposes lists
    lists = collator([[1, 2], [3, 4]])
    assert type(lists) is list
    assert [column.tolist() for column in lists] == [[1, 3], [2, 4]]
    assert collator([{"x": 1}, {"x": 2}])["x"].tolist() == [1, 2]


def test_samples_are_not_changed(tokenizer):
    given = samples(torch.tensor)
    DataCollatorForSeq2Seq(tokenizer)(given)["input_ids"].fill_(0)
    assert [sample["input_ids"].tolist() for sample in given] == IDS
    assert all(list(sample) == ["input_ids", "attention_mask", "labels"] for sample in given)


def test_it_can_be_pickled(tokenizer):
    collator = pickle.loads(pickle.dumps(DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-1)))
    assert collator(samples())["labels"].tolist()[0] == [8, 3, -1, -1, -1]


BAD = [
    ([], "the batch has no samples: the dataset or the batch sampler returned an empty list"),
    (
        [{"input_ids": [1], "labels": [1]}, {"input_ids": [1]}],
        "sample 0 of the batch has 'labels' and sample 1 does not: give all samples the same keys",
    ),
    (
        [{"input_ids": [1]}, {"input_ids": [1], "labels": [1]}],
        "sample 1 of the batch has 'labels' and sample 0 does not: give all samples the same keys",
    ),
    (
        [{"input_ids": [1]}, {"inputs_ids": [1]}],
        "the samples of the batch differ: sample 0 is a dictionary with 'input_ids', "
        "sample 1 is a dictionary with 'inputs_ids' (is 'inputs_ids' meant to be 'input_ids'?)",
    ),
    (
        [({"input_ids": [1]}, 1), ({"input_ids": [1]}, 1, 2)],
        "the samples of the batch differ: sample 0 is a tuple of 2, sample 1 is a tuple of 3",
    ),
    (
        [({"input_ids": [1]}, 1), {"input_ids": [1]}],
        "the samples of the batch differ: sample 0 is a tuple of 2, sample 1 is a dictionary with 'input_ids'",
    ),
    (
        [(1, {"input_ids": [1]}), (1, torch.ones(2))],
        "the samples of the batch differ: element 1 of sample 0 is a dictionary with 'input_ids', "
        "element 1 of sample 1 is an object of type Tensor",
    ),
    (
        [{"input_ids": [1]}, {"input_ids": "two words"}],
        "sample 1 of the batch: input_ids must be a sequence of numbers, not 'two words' (str)",
    ),
    (
        [{"input_ids": ["two", "words"]}],
        "sample 0 of the batch: input_ids must be a sequence of numbers, not ['two', 'words'] (list)",
    ),
    ([{"input_ids": 7}], "sample 0 of the batch: input_ids must be a sequence of numbers, not 7 (int)"),
    (
        [{"input_ids": [1], "attention_mask": None}],
        "sample 0 of the batch: attention_mask must be a sequence of numbers, not None",
    ),
    (
        [{"input_ids": [[1, 2], [3, 4]]}],
        "sample 0 of the batch: input_ids has the shape (2, 2), a sample is one sequence, (tokens,) or (1, tokens)",
    ),
    ([{"input_ids": [0.5, 1]}], "sample 0 of the batch: input_ids must be whole numbers, not torch.float32"),
    (
        [{"input_ids": [1, 2, 3], "attention_mask": [1, 1]}],
        "sample 0 of the batch: attention_mask has 2 entries for 3 of input_ids",
    ),
    (
        [{"input_ids": [1], "spans": [1, 2]}, {"input_ids": [1], "spans": [1, 2, 3]}],
        "'spans' of the batch cannot be combined, found shapes (2,), (3,): make them alike",
    ),
    (
        [{"input_ids": [1], "note": None}, {"input_ids": [1], "note": "a"}],
        "'note' of the batch cannot be combined, found types NoneType, str: make them alike",
    ),
    (
        [({"input_ids": [1]}, torch.ones(1)), ({"input_ids": [1]}, torch.ones(2))],
        "element 1 of the samples of the batch cannot be combined, found shapes (1,), (2,): make them alike",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("given", "text"), BAD)
def test_samples_that_do_not_fit_together(tokenizer, given, text):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (the whole text is compared)
        DataCollatorForSeq2Seq(tokenizer)(given)
    assert str(caught.value) == text


def test_bad_arguments(make_tokenizer):
    no_pad = make_tokenizer(pad_token=None)
    with pytest.raises(ConfigError) as caught:
        DataCollatorForSeq2Seq(no_pad, label_pad_token_id=0.5)
    assert str(caught.value) == (
        "2 mistakes in DataCollatorForSeq2Seq(...):\n"
        "  tokenizer: has no pad token: set its pad_token, for example to its eos_token, or add one to it\n"
        "  label_pad_token_id: must be a whole number, not 0.5 (float)"
    )
    with pytest.raises(ConfigError) as caught:
        DataCollatorForSeq2Seq("t5-small")
    assert str(caught.value) == (
        "1 mistake in DataCollatorForSeq2Seq(...):\n"
        "  tokenizer: must be a tokenizer (an object with pad_token_id), not 't5-small' (str)"
    )
    wrong_side = make_tokenizer()
    wrong_side.padding_side = "top"
    with pytest.raises(ConfigError) as caught:
        DataCollatorForSeq2Seq(wrong_side)
    assert str(caught.value) == (
        "1 mistake in DataCollatorForSeq2Seq(...):\n"
        "  tokenizer.padding_side: must be 'left' or 'right', not 'top' (str)"
    )
