"""One sentiment classifier, four domains: which model is best depends on the domain.

    python examples/domains.py [--data FOLDER] [--model-path runs/domains] [--epochs 16] [--seed 0]

It trains on tweets, product reviews, film reviews and editorials together (Hutto and Gilbert 2014, see vader_data.py)
and evaluates on each of them. Readers rated most sentences of editorials as neutral, so there the classifier is best
early: later it sees feelings where they saw none, while on tweets it keeps improving. So the rules below keep models of
different epochs, and the training stops when none of them improves any more. It takes about a minute on two cores.

If it is interrupted, run it again: it resumes from its last checkpoint.
"""

import argparse
import os
import re
from itertools import pairwise
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import ConcatDataset, Subset, random_split
from torchmetrics.classification import MulticlassF1Score
from vader_data import Rated, rated_texts

from accmt import AcceleratorModule, HyperParameters, Metric, Optimizer, Trainer, set_seed
from accmt.metrics import TorchMetric

# Mean ratings up to -1, in between, and from 1: 31, 33 and 36 percent of all texts.
CLASSES = ("negative", "neutral", "positive")
BUCKETS = 2**15
RULES = (
    "best_accuracy",  # the mean over all domains
    "best_accuracy@news",
    "best_accuracy@tweets",
    "best_accuracy@tweets/accuracy@news",  # better on one of the two, and not worse on the other
    "best_macro_f1@tweets by 2 se",  # better by more than luck can explain
)


def features(text: str) -> Tensor:
    """Hash the words of a text, pairs of words and pieces of words into buckets; 0 is padding."""
    words = re.findall(r"[a-z']+|[0-9]+|[^\sa-z0-9]+", text.lower())
    pairs = [f"{first} {second}" for first, second in pairwise(words)]
    pieces = [f"<{word}>"[i : i + n] for word in words for n in (3, 4, 5) for i in range(len(word) + 3 - n)]
    # crc32, because hash() differs from run to run.
    buckets = [1 + crc32(feature.encode()) % (BUCKETS - 1) for feature in words + pairs + pieces]
    return torch.tensor(buckets, dtype=torch.long)


def split(rows: list[Rated]) -> list[Subset[tuple[Tensor, int]]]:
    """Split a domain into a training part and a validation part, in the same way in every run."""
    samples = [(features(row.text), (row.rating > -1) + (row.rating >= 1)) for row in rows]
    return random_split(samples, [0.75, 0.25], generator=torch.Generator().manual_seed(3))  # type: ignore[arg-type]


def collate(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    texts, labels = zip(*samples, strict=True)
    return pad_sequence(list(texts), batch_first=True), torch.tensor(labels)


class Sentiment(AcceleratorModule):
    def __init__(self) -> None:
        bag = nn.EmbeddingBag(BUCKETS, 16, padding_idx=0)
        self.model = nn.Sequential(bag, nn.Dropout(0.3), nn.Linear(16, len(CLASSES)))

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        texts, labels = batch
        return cross_entropy(self.model(texts), labels)

    def validation_step(self, key: str, batch: tuple[Tensor, Tensor]) -> dict[str, Any]:
        texts, labels = batch
        logits = self.model(texts)
        answers = (logits.argmax(dim=1), labels)
        return {"loss": cross_entropy(logits, labels), "accuracy": answers, "macro_f1": answers}


class Accuracy(Metric):
    def compute(self, predictions: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"accuracy": (predictions == targets).float().mean()}


def classify(text: str, folder: Path) -> str:
    """Classify a text with a saved model, whose weights are a plain PyTorch file."""
    model = Sentiment().model.eval()
    model.load_state_dict(torch.load(folder / "pytorch_model.bin", weights_only=True))
    return CLASSES[model(features(text)[None]).argmax()]


def main() -> None:
    parser = argparse.ArgumentParser(description="One sentiment classifier, four domains, and a best model for each.")
    parser.add_argument("--data", type=Path, help="folder of the archive with the texts (the user's cache)")
    parser.add_argument("--model-path", default="runs/domains", help="folder for the models (%(default)s)")
    parser.add_argument("--epochs", type=int, default=16, help="epochs to train at most (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="for the weights and the order of texts (%(default)s)")
    args = parser.parse_args()

    set_seed(args.seed)
    parts = {domain: split(rows) for domain, rows in rated_texts(args.data).items()}
    trainer = Trainer(
        HyperParameters(args.epochs, batch_size=(128, 512), optimizer=Optimizer.AdamW, optim_kwargs={"lr": 5e-3}),
        model_path=args.model_path,
        metrics=[Accuracy("accuracy"), TorchMetric("macro_f1", MulticlassF1Score(len(CLASSES)))],
        patience=3,
        collate_fn=collate,
        dataloader_num_workers=0,
    )
    for rule in RULES:
        trainer.register_model_saving(rule)
    everything: ConcatDataset[tuple[Tensor, int]] = ConcatDataset([training for training, _ in parts.values()])
    trainer.fit(Sentiment(), everything, {domain: validation for domain, (_, validation) in parts.items()})

    saving = trainer.best("best_accuracy@news")
    if saving and os.environ.get("RANK", "0") == "0":  # with several processes, only one prints
        print(f"\nA page about the training: {trainer.report().path}")
        print("\nThe model that is best on news says:")
        for text in ("The committee meets on Thursday.", "A shameful failure.", "Her courage is an inspiration."):
            print(f"  {classify(text, saving.folder):9} {text}")


if __name__ == "__main__":
    main()
