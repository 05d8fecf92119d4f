"""Collators that pad: one for labels that are sequences, one for other labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from accmt.collate_fns.columns import ALIKE, as_tensor, batch_columns, read_columns, stack
from accmt.collate_fns.samples import collate, require_tokenized
from accmt.collate_fns.tokenizer import LABEL_PAD, is_label, padding_of, padding_problems
from accmt.config.errors import raise_problems
from accmt.config.kinds import FLAG, WHOLE


@dataclass(frozen=True, eq=False)
class DataCollatorForSeq2Seq:
    """Pads tokenized samples to the longest of their batch, and their labels to the longest labels.

    A sample is a dictionary with `input_ids`, or a tuple of such dictionaries and other values; the batch of tuples is
    a tuple, collated element by element. All values other than dictionaries with `input_ids` go through torch's
    default collation.

    The values of a dictionary may be lists, numpy arrays or tensors, also with a batch dimension of 1. All its keys
    are kept, and none is added: there is an `attention_mask` if the samples have one. Padding is on the tokenizer's
    `padding_side`. It applies to `input_ids`, `labels`, and each key whose values are as long as these in every sample:
    `..input_ids` (such as `decoder_input_ids`) with the pad token, `.._labels` with `label_pad_token_id`,
    `..token_type_ids` with the tokenizer's pad type, `..special_tokens_mask` with 1, all others (other masks and
    `position_ids` too) with 0. Padded integers become int64. Other values are stacked unchanged.

    Args:
        tokenizer: A tokenizer like those of Hugging Face, with a pad token.
        label_pad_token_id: The id that labels are padded with; losses ignore -100.

    Raises:
        ConfigError: The tokenizer cannot pad, or the label pad id is not an integer.
    """

    tokenizer: Any = field(repr=False)
    label_pad_token_id: int = LABEL_PAD

    def __post_init__(self) -> None:
        problems = padding_problems(self.tokenizer) + WHOLE.problems("label_pad_token_id", self.label_pad_token_id)
        raise_problems(problems, f"{type(self).__name__}(...)")

    def __call__(self, samples: Sequence[Any]) -> Any:
        """Return the batch of these samples.

        Raises:
            ValueError: They do not fit together.
        """
        return collate(samples, self._dictionaries, stack)

    def _dictionaries(self, dictionaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        columns = read_columns(dictionaries)
        if "labels" in columns:
            columns["labels"] = [_one_sequence(labels) for labels in columns["labels"]]
        return batch_columns(columns, padding_of(self.tokenizer, self.label_pad_token_id), stack)


@dataclass(frozen=True, eq=False)
class DataCollatorForLongestSequence:
    """Pads tokenized samples to the longest of their batch and leaves their labels unchanged.

    For labels that are not sequences; for sequences see `DataCollatorForSeq2Seq`.

    If a sample is a dictionary `x` with `input_ids`, the batch is a dictionary with the same keys. If it is a tuple
    with such a dictionary in it, usually `(x, y)`, the batch is a tuple, `(x, y)` with the padded `x` and the stacked
    `y`. In a dictionary, `label`, `labels` and `.._labels` are never padded; for all other keys see
    `DataCollatorForSeq2Seq`. No key is added.

    Args:
        tokenizer: A tokenizer like those of Hugging Face, with a pad token.
        torch_stack: Stack values that are not padded, in dictionaries and outside: numbers, lists of numbers, arrays
            and tensors as tensors, all others by torch's default collation. If False, they become a list of the
            samples' values, which may differ in shape (arrays and lists of numbers are tensors in it).

    Raises:
        ConfigError: The tokenizer cannot pad, or torch_stack is neither True nor False.
    """

    tokenizer: Any = field(repr=False)
    torch_stack: bool = True

    def __post_init__(self) -> None:
        problems = padding_problems(self.tokenizer) + FLAG.problems("torch_stack", self.torch_stack)
        raise_problems(problems, f"{type(self).__name__}(...)")

    def __call__(self, samples: Sequence[Any]) -> Any:
        """Return the batch of these samples.

        Raises:
            ValueError: They do not fit together, or they have no `input_ids`.
        """
        require_tokenized(type(self).__name__, samples)
        return collate(samples, self._dictionaries, self._as_they_are)

    def _dictionaries(self, dictionaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        columns, padding = read_columns(dictionaries), padding_of(self.tokenizer, LABEL_PAD)
        return batch_columns(columns, padding, self._as_they_are, follows=lambda key: not is_label(key))

    def _as_they_are(self, name: str, values: Sequence[Any]) -> Any:
        values = [value if isinstance(value, tuple) else as_tensor(value) for value in values]
        advice = f"{ALIKE}, give torch_stack=False, or pad sequences of labels with DataCollatorForSeq2Seq"
        return stack(name, values, advice) if self.torch_stack else values


def _one_sequence(labels: Any) -> Any:
    """Return token ids without a batch dimension, which labels may have even if the input has none."""
    has_batch = isinstance(labels, Tensor) and labels.dim() == 2 and len(labels) == 1
    return labels[0] if has_batch and not labels.is_floating_point() else labels
