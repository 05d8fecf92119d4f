"""Manipulated texts and names

Any text is given as a rule, most often a broken sentence of the language; it *hits* if it is a valid rule all the same.
A dataset, a metric, a rule or the experiment of a tracker has the name of a path; it *hits* if a training accepts it.
It has **survived** if the result is a rule, a training, or a ConfigError or RuleError that says what is wrong, and
nothing else; if a text took no more function calls than its length allows; and if no file was written outside of the
folders meant for it.
"""

import random
import sys
from pathlib import Path

import pytest
from answers import counted, is_made

from accmt import FunctionMetric, RuleError
from accmt.rules import CadenceRule, Facts, Length, Reported, Rules, SavingRule, StopCondition, check

sys.path.insert(0, str(Path(__file__).parents[1] / "fuzz"))

from test_fuzz import texts

# The most that was seen for one of the texts below is 190, and 1,000 characters are read at most.
CALLS_PER_CHARACTER = 400
BOTH = ("dev", "test")
METRICS = {"accuracy": Reported(BOTH, True), "f1": Reported(("dev",), True), "valid_loss": Reported(BOTH, False)}
FACTS = Facts(METRICS, BOTH, Length(60, 10, 4))
RULE = SavingRule.parse("train_loss")
SENTENCES = [text for _, text in texts()]
WORDS = [
    *("best_", "@", "/", "then", "if", "by", "keep", "after", "and", "or", "not", "is", "nan", "every", "(", ")", ","),
    *(
        "+",
        "-",
        "*",
        "<",
        "<=",
        "==",
        "!=",
        "%",
        "'",
        '"',
        ";",
        "#",
        "\\",
        ":",
        "$",
        "{",
        "}",
        "[",
        "]",
        "`",
        "~",
        "..",
    ),
    *("0", "1", "-1", "1e400", "0x10", ".5", "1_000", "²", "9" * 40, "inf", "accuracy", "dev", "valid_loss", "epoch"),
    *("step", "elapsed", "train_loss", "avg(", "worst(", "stalled(", "prev(", "_", "__class__", "\0", "\n", "\t"),
    *("\x1b", "\ud800", "\u202e", "\u3000", "é", "損失", "﷽", "👩\u200d👩\u200d👧"),
]
LONG = [
    *(
        "(" * 1_001,
        "(" * 999,
        "not " * 249,
        '"' * 1_000,
        "1" * 1_000,
        "é" * 1_000,
        " " * 1_000,
        "a" * 1_000,
        "a" * 99_999,
    ),
    *(
        "a" + 499 * "+a",
        "a" + 499 * "/a",
        "a" + 499 * "@a",
        "a" + 499 * "@*",
        "a" + 166 * " and a",
        "a" + 142 * " is nan",
    ),
    *(
        "a" + 199 * " by 1",
        "a" + 142 * " then a",
        "1 step" + 99 * " or 1 step",
        249 * "a<b ",
        200 * "best_",
        333 * "'a'",
    ),
    *("avg(" * 250, f"worst(a{490 * ',a'})", 200 * "((a))", 500 * "- ", "a" + 900 * "\n" + "b"),
]


def hostile(chance):
    """A long text, or a sentence of the language in which something was lost, added, doubled or moved."""
    if chance.random() < 0.1:
        return chance.choice(LONG)
    text = chance.choice(SENTENCES)
    for _ in range(chance.choice([0, 1, 1, 2, 4, 6])):
        start, end = sorted(chance.randint(0, len(text)) for _ in range(2))
        part, word = text[start:end], chance.choice(WORDS)
        changed = ["", word, f" {word} ", part * chance.randint(2, 9), part[::-1], part.swapcase(), f"({part})"]
        text = text[:start] + chance.choice(changed) + text[end:]
    return text


PARSED = {
    "register_model_saving": lambda text: Rules((SavingRule.parse(text),)),
    "checkpoint_every": lambda text: Rules((RULE,), checkpoint=CadenceRule.parse(text)),
    "evaluate_every": lambda text: Rules((RULE,), evaluate=CadenceRule.parse(text, evaluates=True)),
    "stop_when": lambda text: Rules((RULE,), (StopCondition.parse(text),)),
}


def test_texts_of_rules(tally, trainer):
    training = trainer()

    def give(place, text):
        if place == "register_model_saving":
            training.register_model_saving(text)
        else:
            trainer(**{place: text})
        check(PARSED[place](text), FACTS)

    for place in PARSED:  # what is made at the first call is not a matter of the text
        with pytest.raises(RuleError):
            give(place, "a is is")
    for attempt in tally("a text where a rule belongs", small=400, full=20_000, hits=0.02):
        with attempt:
            place, text = attempt.chance.choice(list(PARSED)), hostile(attempt.chance)
            attempt.plan = f"{place}, {text!r}"
            with counted() as calls:
                if is_made(lambda place=place, text=text: give(place, text)):
                    attempt.hit()
            assert calls[0] < 3 * CALLS_PER_CHARACTER * (min(len(text), 1_000) + 100)


NAMES = [
    *(
        "../out",
        "../../out",
        "ABSOLUTE",
        "..",
        ".",
        "",
        " ",
        "a/b",
        "a//../../../out",
        "a\\b",
        "..\\out",
        "C:\\out",
        "~",
    ),
    *("~root/out", "$HOME", "%2e%2e%2fout", "%", "a\0b", "\n", "\x1b[2J", "\ud800", "x" * 80, "x" * 300, "x" * 5_000),
    *(
        "é" * 120,
        "損" * 90,
        "🙈" * 70,
        "checkpoints",
        "Checkpoints",
        "history.jsonl",
        "decisions.jsonl",
        "training.json",
        "run.json",
        "log.jsonl",
        "report.html",
    ),
    *(".lock", ".tmp-x", ".trash-x", ".old-x-00000000", "earlier-1", "MANIFEST.json", "saving.json", "index.json"),
    *("evaluation-0001-step-2", "checkpoint-0001-step-1", "valid_loss", "train_loss", "best_valid_loss", "loss", "nan"),
    *("elapsed", "0", "-rf", "con", "*", "@", "'", '"', "'\"", "a'b", "=", "{}"),
]


def used(use, name):
    """Arguments of a trainer, the text of a rule and its name, in which a name is used."""
    quoted = f'"{name}"' if '"' not in name else f"'{name}'"
    match use:
        case "a dataset":
            return {}, f"best_valid_loss@{quoted}", None
        case "a metric":
            return {"metrics": FunctionMetric(name, lambda p, t: (p - t).abs().mean(), True)}, f"best_{quoted}", None
        case "a rule":
            return {}, "best_valid_loss keep 2", name
        case _:
            return {"track_name": name, "log_with": "tensorboard", "logging_dir": "logs"}, "best_valid_loss", None


def trains(trainer, module, sets, use, name):
    """Whether a training in the folder `model`, in which something has this name, takes place."""

    def train():
        arguments, text, given = used(use, name)
        training = trainer(Path.cwd() / "model", epochs=1, **arguments)
        training.register_model_saving(text, name=given)
        training.fit(module, *sets)
        assert training.best(given or text) is not None

    if use == "a metric" and not name:
        with pytest.raises(ValueError, match="a metric needs a name, not ''"):
            used(use, name)
        return False
    return is_made(train)


@pytest.mark.parametrize("use", ["a dataset", "a metric", "a rule", "an experiment"])
def test_names(tally, trainer, regression, data, tmp_path, monkeypatch, use):
    """Whatever has the name of a path, what a training writes stays in its folder, or in that of the tracker."""

    class Named(regression):
        def validation_step(self, key, batch):
            seen.append(key)
            outputs = super().validation_step(key, batch)
            return {**outputs, self.metric: outputs["error"]}

    names = random.Random(use).sample(NAMES, len(NAMES))
    for attempt in tally(f"{use} with the name of a path", small=6, full=len(NAMES), hits=0.15):
        with attempt:
            name, base, seen = names[attempt.number], tmp_path / str(attempt.number), []
            name = str(base / "out") if name == "ABSOLUTE" else name
            attempt.plan = repr(name[:60])
            (base / "deep" / "er").mkdir(parents=True)
            monkeypatch.chdir(base / "deep" / "er")
            module, key = Named(), name if use == "a dataset" else "dev"
            module.metric = name if use == "a metric" else "error"
            if trains(trainer, module, (data(8), {key: data(4)}), use, name):
                assert set(seen) == {key}
                attempt.hit()
            there = {path.relative_to(base).parts[:3] for path in base.rglob("*")}
            mine = {("deep",), ("deep", "er"), ("deep", "er", "model")}
            assert there <= mine | ({("deep", "er", "logs")} if use == "an experiment" else set())
