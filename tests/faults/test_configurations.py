"""Manipulated configurations

A configuration, as a file or a dictionary, contains a bomb of aliases, endless nesting, names of Python objects, values
of every kind in every place, or text that is cut, mixed up, or not text at all. It has **survived** if the result is a
trainer, or a ConfigError or RuleError that says what is wrong (a *hit*), and nothing was executed or written.
"""

import math

import yaml
from answers import is_made, watched

from accmt import Trainer

VALID = {
    "hps": {
        "epochs": 2,
        "max_steps": 100,
        "batch_size": 4,
        "optimizer": {"type": "AdamW", "lr": 0.001, "weight_decay": 0.1},
        "scheduler": {"type": "CosineWithWarmup", "num_warmup_steps": 2},
    },
    "rules": {
        "save": ["best_valid_loss", {"rule": "best_train_loss", "name": "low", "patience": 3, "saving_below": 2.0}],
        "checkpoint_every": "2 steps",
        "evaluate_every": "epoch",
        "stop_when": ["valid_loss < 0.1"],
    },
}


def nested(depth):
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


VALUES = [
    *(None, True, 0, -1, 2**31, -(2**63), 10**400, 1e308, 1e-320, math.inf, -math.inf, math.nan, 1j, b"\xff"),
    *("", " ", "1", "1e999", "nan", "yes", "../../out", "/etc/passwd", "a\0b", "x" * 100_000, "\ud800", "__class__"),
    *([], [[]], {}, {None: None}, {1: 2}, {("a",): 1}, set(), object(), print, int, nested(2_000), ["step"] * 1_000),
    *(
        {"type": "AdamW", "lr": "high"},
        {"type": "__import__"},
        {"type": "torch.optim.SGD"},
        {"__init__": 1},
        "os.system",
    ),
]


def places_in(data, path=()):
    """The paths of all values, at every level."""
    yield path
    entries = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in entries:
        yield from places_in(value, (*path, key))


def changed(data, path, value):
    """A copy with another value in this place."""
    if not path:
        return value
    copied = dict(data) if isinstance(data, dict) else list(data)
    copied[path[0]] = changed(data[path[0]], path[1:], value)
    return copied


CHANGES = [(place, number) for place in places_in(VALID) for number in range(len(VALUES))]


def test_values(tally, tmp_path):
    for attempt in tally("another value in a configuration", small=len(CHANGES), full=len(CHANGES), hits=0.5):
        with attempt:
            place, number = CHANGES[attempt.number]
            attempt.plan = f"{place}: value {number} of {len(VALUES)}"
            configuration = changed(VALID, place, VALUES[number])
            with watched() as done:
                made = is_made(lambda given=configuration: Trainer(given, tmp_path / "model"))
            assert done == []
            if not made:
                attempt.hit()
    assert list(tmp_path.iterdir()) == []


TAGS = [
    "!!python/object/apply:os.system ['touch RUN']",
    "!!python/object/apply:subprocess.check_output [['touch', 'RUN']]",
    "!!python/object/new:os.system ['touch RUN']",
    "!!python/object/apply:builtins.open ['RUN', 'w']",
    "!!python/object/apply:builtins.eval [\"open('RUN', 'w')\"]",
    "!!python/object:__main__.Anything {}",
    "!!python/name:os.system",
    "!!python/module:os",
    "!!python/tuple [1, 2]",
    "!!python/bytes aGVsbG8=",
    "!!binary aGVsbG8=",
    "!!set {a, b}",
    "!!omap [a: 1]",
    "!!timestamp 2001-12-14",
    "!!merge <<",
    "!include /etc/passwd",
    "!ENV ${HOME}",
    "!<tag:yaml.org,2002:python/object/apply:os.system> ['touch RUN']",
    "!!int ten",
    "!!float {}",
    "!!str []",
    "!!map []",
]
LAUGHS = [
    f"{name}: &{name} [{', '.join([f'*{last}'] * 9)}]\n" for last, name in zip("abcdefgh", "bcdefghi", strict=True)
]
TEXTS = [
    "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(LAUGHS),
    *("a: &a [*a]", "&a {*a : *a}", "a: &a {b: *a}", "a: *a", "a: &a 1\nb: &a 2\nc: *a"),
    *("x: " + "[" * 100_000, "x: " + "{a: " * 10_000, "- " * 100_000, "? " * 50_000),
    *("x: " + "9" * 100_000, "x: 0x" + "f" * 100_000, "x: 1e" + "9" * 10_000, "x: " + "1_" * 10_000, "x: 190:20:30"),
    *("epochs: 1\nepochs: 2", "hps: {epochs: 1, epochs: 1}", "1: a\n1: b\n1.0: c\ntrue: d", "? [a, b]\n: c"),
    *("? {a: b}\n: c", "<<: {epochs: 1}", "epochs: 1\n---\nepochs: 2", "%YAML 9.9\n---\nepochs: 1"),
    "%TAG ! tag:yaml.org,2002:python/\n---\nx: !object/apply:os.system ['touch RUN']",
    *(
        "\x00",
        "\ufeff\ufeffepochs: 1",
        "epochs: \x07",
        "\t- a",
        "epochs: 1\n\tmax_steps: 2",
        "'",
        '"\\x',
        '"\\ud800": 1',
    ),
    *("|", "@", "`", "%", "&", "*", "---", "...", "!", "~", 'optimizer: {type: "\\ud800"}'),
    *("x: |\n" + " a\n" * 300_000, "# " + "a" * 2**20, "a" * 2**21, "[" + "1," * 200_000 + "]"),
    "".join(f"k{i}: {i}\n" for i in range(20_000)),
]
PIECES = [b"", b"&a ", b"*a", b"\n", b": ", b"[", b"{", b"\xff", b"!!", b"- ", b"<<", b"\t", b"'"]


def mixed_up(chance, text):
    """The bytes of a text with some changed."""
    content = bytearray(text.encode())
    for _ in range(chance.randint(1, 8)):
        place = chance.randrange(len(content))
        content[place : place + chance.randint(0, 3)] = chance.choice(PIECES)
    return bytes(content)


def tagged(chance, text):
    """A text in which a value has a tag."""
    key = chance.choice(["epochs", "type", "lr", "save", "checkpoint_every"])
    start = text.index(f"{key}:") + len(key) + 1
    stop = min(place for place in (text.find(mark, start) for mark in "\n,}") if place > 0)
    return f"{text[:start]} {chance.choice(TAGS)}{text[stop:]}".encode()


def content_of(attempt):
    """What stands in the file: each text once with all tries."""
    chance = attempt.chance
    text = yaml.safe_dump(VALID, sort_keys=False, default_flow_style=chance.choice([None, True, False]))
    match attempt.number % 4:
        case 0:
            return TEXTS[attempt.number // 4 * 7 % len(TEXTS)].encode("utf-8", "surrogatepass")
        case 1:
            return tagged(chance, text)
        case 2:
            return mixed_up(chance, text)
        case _:
            return bytes(chance.randrange(256) for _ in range(chance.randrange(2_000)))


def test_files(tally, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "config.yaml"
    for attempt in tally("a configuration file that somebody made", small=80, full=2_000, hits=0.5):
        with attempt:
            content = content_of(attempt)
            attempt.plan = f"{content[:300]!r}"
            file.write_bytes(content)
            with watched() as done:
                made = is_made(lambda: Trainer(str(file), tmp_path / "model"))
            assert done == []
            assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
            if not made:
                attempt.hit()
    assert len(TEXTS) % 7
