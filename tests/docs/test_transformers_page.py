"""The page of the models of transformers: its programs run, one after the other, and its sessions are true."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parent.parent.parent / "docs" / "how-to" / "transformers.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
SESSIONS = re.findall(r"```pycon\n(.*?)```", PAGE, re.DOTALL)
NAME = "google-bert/bert-base-uncased"

# After the programs, where what they made is at hand.
CHECK = """
import doctest
import sys

test = doctest.DocTestParser().get_doctest(open("sessions.txt").read(), globals(), "page", None, 0)
results = doctest.DocTestRunner().run(test, out=sys.stderr.write)
print(f"sessions: {results.attempted} tried, {results.failed} failed")
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder in which all programs were run, with a tiny model in the place of the one named, and the output."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("page")
    words = ["[PAD]", "[UNK]", "what", "a", "joy", "dreadful", "and", "far", "too", "long"]
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, "[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]")
    sizes = {"vocab_size": 16, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(**sizes, intermediate_size=16, max_position_embeddings=16)
    for part in (transformers.BertModel(config), tokenizer):
        part.save_pretrained(folder / NAME)
    (folder / "program.py").write_text("\n".join([*PROGRAMS, CHECK]))
    (folder / "sessions.txt").write_text("\n".join(SESSIONS))
    command = [sys.executable, "-W", "error::UserWarning", "-W", "error::FutureWarning", "program.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout, done.stderr


def test_the_programs_run_and_the_sessions_are_true(ran):
    _, printed, errors = ran
    tried, failed = re.findall(r"sessions: (\d+) tried, (\d+) failed", printed)[0]
    assert failed == "0", errors
    assert tried == "4"


def test_new_weights_are_told(ran):
    _, printed, _ = ran
    text = " ".join(printed.split())
    of = "weights of BertForSequenceClassification are not in"
    assert f"{of} '{NAME}' and are newly initialized: classifier.bias, classifier.weight" in text


def test_a_saving_has_the_files_that_the_page_lists(ran):
    folder, _, _ = ran
    listed = PAGE.split("runs/reviews/best_accuracy/\n")[1].split("```")[0]
    names = {name for name in re.findall(r"[\w.]+\.(?:json|bin)", listed)}
    saving = folder / "runs" / "reviews" / "best_accuracy"
    assert {path.name for path in saving.iterdir()} == names
    assert json.loads((saving / "config.json").read_text())["architectures"] == ["BertForSequenceClassification"]
