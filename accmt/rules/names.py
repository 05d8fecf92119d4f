"""Names of the files and folders that a training writes into its `model_path`, and those that no rule may have there.

Whoever writes there takes the name from here, so that a name given by a user never meets one of ours.
"""

from __future__ import annotations

import unicodedata

LOCK = ".lock"
CHECKPOINTS = "checkpoints"
OUTBOX = "outbox"
HISTORY = "history.jsonl"
DECISIONS = "decisions.jsonl"
TRAINING = "training.json"
TEMPORARY = ".tmp-"
TRASH = ".trash-"
REPLACED = ".old-"
EARLIER = "earlier-"  # and a number

# In the folder of a model or a checkpoint; a training that finds one in its own folder takes that for a model.
MANIFEST = "MANIFEST.json"
SAVING = "saving.json"
SAVINGS = "index.json"

_TAKEN = (LOCK, CHECKPOINTS, OUTBOX, HISTORY, DECISIONS, TRAINING, MANIFEST, SAVING, SAVINGS)
_TAKEN_BEGINNINGS = (TEMPORARY, TRASH, REPLACED)


def is_taken(name: str) -> bool:
    """Whether a name belongs to a training, or is the same as one that does on some file system."""
    same = as_on_disk(name)
    is_earlier = same.startswith(EARLIER) and same.removeprefix(EARLIER).isdigit()
    return is_earlier or same in map(as_on_disk, _TAKEN) or same.startswith(_TAKEN_BEGINNINGS)


def as_on_disk(name: str) -> str:
    """A text that two names have in common if there is a file system on which they are the same name: most of macOS
    and Windows know neither upper and lower case nor composed characters, and some drop dots and spaces at the end."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold()).rstrip(". ")
