"""Collators for tokenized text: objects that make a batch of a list of samples.

Give one to a trainer as `collate_fn` (or `collate_fn_train`, `collate_fn_val`), or to a DataLoader. They ask their
tokenizer for what they need and import no library of tokenizers.
"""

from accmt.collate_fns.language_modeling import DataCollatorForLanguageModeling
from accmt.collate_fns.sequences import DataCollatorForLongestSequence, DataCollatorForSeq2Seq

__all__ = ["DataCollatorForLanguageModeling", "DataCollatorForLongestSequence", "DataCollatorForSeq2Seq"]
