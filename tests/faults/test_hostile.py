"""Manipulated checkpoints

Checkpoints contain pickles that would execute something, sizes larger than any memory, names that lead out of the
folder, or values of every wrong kind, with a manifest whose hashes fit; and the process may use half a gigabyte of
memory. It has **survived** if nothing was executed and nothing outside of the folder was read, and the training used
the previous checkpoint (with a warning), or the content was harmless (and it ended bit by bit as an undisturbed one),
or it refused to start with an error that names the checkpoint, before it changed anything in the model or the folder.
"""

import hashlib
import itertools
import json
import os
import re

import pytest
import torch
from harmful import ALIEN, MEMORY, pickled, safetensors, seal
from injected import STARTED
from safetensors.torch import load_file, save_file
from trainings import CHANGED
from trials import tree

NEWEST, BEFORE = "checkpoint-0004-step-4", "checkpoint-0003-step-3"
REFUSED = re.compile(r"^accmt\.checkpoint\.\w+\.(NoCheckpoint|Mismatch|Damaged\w*): ", re.MULTILINE)
FILES = ["model.safetensors", "optimizer.safetensors", "rng-0.safetensors", "trainer.json", "process-0.json"]


def check_harmless(trial, expected):
    """It goes on from something that is not harmful, or refuses to."""
    before = tree(trial.path)
    child = trial.start(MEMORY)
    code, printed = child.end(), child.printed()
    assert CHANGED not in printed
    if code == 0:
        ended = trial.ending()
        passed_over = {**expected, "newest": "checkpoint-0007-step-6"}
        assert ended == (passed_over if f"{NEWEST} cannot be used: " in printed else expected)
        return
    assert STARTED not in printed, printed[-1500:]
    assert REFUSED.search(printed), printed[-1500:]
    assert NEWEST in printed[REFUSED.search(printed).start() :]
    assert tree(trial.path) == before


def test_pickles_in_a_checkpoint(tally, cut_short, expected, payload):
    """Under each name that there is, and under names that other trainers load, with a manifest that lists them."""
    places = [*itertools.product([*FILES, "MANIFEST.json", *ALIEN], ["binary", "text", "archive"])]
    order = sorted(places, key=lambda place: hashlib.sha256(str(place).encode()).digest())
    for attempt in tally("a pickle in a checkpoint", small=8, full=len(places)):
        with attempt:
            trial = cut_short()
            name, way = order[attempt.number]
            attempt.plan = f"{name}, {way}"
            (trial.checkpoints / NEWEST / name).write_bytes(pickled(payload, way))
            if name != "MANIFEST.json":
                seal(trial.checkpoints / NEWEST)
            check_harmless(trial, expected)
            assert not payload.mark.exists(), "the payload was executed"
            trial.clear()


def entry(dtype="F32", shape=(4,), offsets=(0, 16)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def with_aliases(aliases):
    return lambda path: save_file(load_file(path), path, metadata={"format": "pt", "aliases": aliases})


def changed(change):
    """Change the tensors of a file."""

    def rewrite(path):
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return rewrite


def each(function):
    def change(tensors):
        for name in list(tensors):
            tensors[name] = function(tensors[name])

    return change


def positioned(tensors):
    for name in tensors:
        if name.endswith("numpy.position"):
            tensors[name] = torch.tensor([10**9, 0])


def of_zeros(size):
    """A file that takes no room on the disk."""

    def write(path):
        path.write_bytes(safetensors({"0.weight": entry("U8", (size,), (0, size))}))
        os.truncate(path, path.stat().st_size + size)

    return write


KINDS = {
    "longer": lambda tensor: tensor.reshape(-1).repeat(2),
    "empty": lambda tensor: tensor.reshape(-1)[:0].clone(),
    "booleans": lambda tensor: tensor.bool(),
    "complex": lambda tensor: tensor.to(torch.complex64),
    "scalars": lambda tensor: torch.tensor(3, dtype=tensor.dtype),
}
TENSORS = {
    "nothing": b"",
    "a header of 2**63 bytes": safetensors({}, claimed=2**63),
    "a header of 2**64 - 1 bytes": safetensors({}, claimed=2**64 - 1),
    "a header that is longer than the file": safetensors({"a": entry()}, claimed=10**6),
    "no JSON in the header": safetensors(b"\xff" * 100),
    "a header nested 100,000 deep": safetensors(b'{"a":' + b"[" * 100_000),
    "a list as the header": safetensors([]),
    "offsets behind the end": safetensors({"a": entry(offsets=(0, 2**40), shape=(2**38,))}),
    "offsets that run backwards": safetensors({"a": entry(offsets=(16, 0))}, bytes(16)),
    "negative offsets": safetensors({"a": entry(offsets=(-16, 0))}, bytes(16)),
    "overlapping tensors": safetensors({"a": entry(), "b": entry(offsets=(8, 24))}, bytes(24)),
    "a hole between tensors": safetensors({"a": entry(), "b": entry(offsets=(32, 48))}, bytes(48)),
    "bytes that belong to no tensor": safetensors({"a": entry()}, bytes(1000)),
    "a shape whose size has no number": safetensors({"a": entry(shape=(2**40, 2**40, 2**40))}, bytes(16)),
    "a negative shape": safetensors({"a": entry(shape=(-4,))}, bytes(16)),
    "a dtype that there is not": safetensors({"a": entry(dtype="PICKLE")}, bytes(16)),
    "a dtype that is a list": safetensors({"a": entry(dtype=["F32"])}, bytes(16)),
    "no tensors": safetensors({}),
    "other tensors": safetensors({"__class__": entry(), "\0": entry(offsets=(16, 32))}, bytes(32)),
    "aliases that are no JSON": with_aliases("{"),
    "aliases that are a list": with_aliases("[1]"),
    "aliases nested 100,000 deep": with_aliases("[" * 100_000),
    "an alias of nothing": with_aliases('{"x": "nowhere"}'),
    "an alias of a list": with_aliases('{"x": []}'),
    "an alias in the place of another tensor": with_aliases('{"0.bias": "5.bias"}'),
    "a tensor is missing": changed(lambda tensors: tensors.popitem()),
    "a tensor is one too many": changed(lambda tensors: tensors.update({"extra": torch.ones(2)})),
    **{f"all tensors are {kind}": changed(each(change)) for kind, change in KINDS.items()},
    "a position far behind the end of the random words": changed(positioned),
    "two gigabytes of zeros": of_zeros(2_000_000_000),
}
# Numbers are taken as they are; what an optimizer makes of those in its state, only its next step shows.
NUMBERS = {
    "model.safetensors": {"all tensors are booleans"},
    "optimizer.safetensors": {"a tensor is one too many", *(f"all tensors are {kind}" for kind in KINDS)},
    "rng-0.safetensors": set(),
}


def test_tensors(tally, cut_short, expected):
    cases = [(what, name) for what, name in itertools.product(TENSORS, NUMBERS) if what not in NUMBERS[name]]
    order = sorted(cases, key=lambda case: hashlib.sha256(str(case).encode()).digest())
    for attempt in tally("a file of tensors that is none", small=12, full=len(cases)):
        with attempt:
            trial = cut_short()
            what, name = order[attempt.number]
            attempt.plan = f"{name}: {what}"
            path = trial.checkpoints / NEWEST / name
            content = TENSORS[what]
            content(path) if callable(content) else path.write_bytes(content)
            seal(trial.checkpoints / NEWEST)
            check_harmless(trial, expected)
            trial.clear()


NUMBERS_OF_NO_USE = [True, -1, 10**18, -(10**30), 0.5, 1e308]
VALUES = [*NUMBERS_OF_NO_USE, None, "x", "", "../x", [], {}, [[]], {"$tuple": []}, {"$dtype": "load"}]


def nodes(data, path=()):
    """The places of all values in a piece of JSON."""
    yield path
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from nodes(value, (*path, key))


def replaced(data, path, value):
    if not path:
        return value
    changed = data.copy()
    changed[path[0]] = replaced(data[path[0]], path[1:], value)
    return changed


def without(data, path):
    changed = data.copy()
    if len(path) == 1:
        del changed[path[0]]
    else:
        changed[path[0]] = without(data[path[0]], path[1:])
    return changed


TEXTS = {
    "nothing": "",
    "a list": "[]",
    "a number": "3",
    "null": "null",
    "an empty object": "{}",
    "nested 100,000 deep": "[" * 100_000 + "]" * 100_000,
    "nested 100,000 deep in a value": '{"schema": 1, "position": ' + '{"a":' * 100_000 + "1" + "}" * 100_000 + "}",
    "NaN": '{"schema": NaN}',
    "infinity": '{"schema": -Infinity}',
    "a number of 100,000 digits": '{"schema": ' + "9" * 100_000 + "}",
    "a number without end": '{"schema": 1e99999}',
    "no text": b"\xff\xfe\x00\x01",
    "half a surrogate": '{"schema": "\\ud800"}',
    "a newer schema": '{"schema": 99}',
}


@pytest.mark.parametrize("name", ["trainer.json", "process-0.json"])
def test_descriptions(tally, cut_short, expected, name):
    for attempt in tally(f"a {name} that describes nothing", small=4, full=len(TEXTS)):
        with attempt:
            trial = cut_short()
            attempt.plan = [*TEXTS][attempt.number]
            text = TEXTS[attempt.plan]
            (trial.checkpoints / NEWEST / name).write_bytes(text if isinstance(text, bytes) else text.encode())
            seal(trial.checkpoints / NEWEST)
            check_harmless(trial, expected)
            trial.clear()


@pytest.mark.parametrize("name", ["trainer.json", "process-0.json"])
def test_values(tally, cut_short, name):
    """A value of another kind, or none, anywhere in the description. The training may take what could be right, such as
    another number of steps; of a wrong state of the optimizer or scheduler may only their next step tell."""
    for attempt in tally(f"wrong values in {name}", small=8, full=300):
        with attempt:
            trial = cut_short()
            path = trial.checkpoints / NEWEST / name
            data = json.loads(path.read_text())
            place = attempt.chance.choice([*nodes(data)][1:])
            if attempt.chance.random() < 0.2:
                attempt.plan, data = f"{place} is missing", without(data, place)
            else:
                value = attempt.chance.choice(VALUES)
                attempt.plan, data = f"{place} is {value!r}", replaced(data, place, value)
            path.write_text(json.dumps(data))
            seal(trial.checkpoints / NEWEST)
            before = tree(trial.path)
            child = trial.start(MEMORY)
            code, printed = child.end(), child.printed()
            assert CHANGED not in printed
            if code != 0 and not (place[0] == "parts" and STARTED in printed):
                assert STARTED not in printed, printed[-1500:]
                assert REFUSED.search(printed), printed[-1500:]
                assert tree(trial.path) == before
            trial.clear()


OUTSIDE = f"../{BEFORE}/model.safetensors"


def manifest_with(**files):
    return lambda manifest: {**manifest, "files": {**manifest["files"], **files}}


def manifest_without(name, **files):
    return lambda manifest: {"files": {**{k: v for k, v in manifest["files"].items() if k != name}, **files}}


FALSE = {"size": 3, "sha256": "0" * 64}
MANIFESTS = {
    "a name above the folder": manifest_with(**{"../x": FALSE}),
    "a name of the system": manifest_with(**{"/etc/passwd": FALSE}),
    "a name with a NUL": manifest_with(**{"a\0b": FALSE}),
    "the folder itself": manifest_with(**{".": FALSE}),
    "the folder above": manifest_with(**{"..": FALSE}),
    "no name": manifest_with(**{"": FALSE}),
    "its own name": manifest_with(**{"MANIFEST.json": FALSE}),
    "a very long name": manifest_with(**{"a" * 100_000: FALSE}),
    "a name that is no text": manifest_with(**{"\ud800": FALSE}),
    "a negative size": manifest_with(**{"trainer.json": {"size": -1, "sha256": ""}}),
    "an enormous size": manifest_with(**{"trainer.json": {"size": 10**30, "sha256": ""}}),
    "a size without end": manifest_with(**{"trainer.json": {"size": float("inf"), "sha256": ""}}),
    "a size that is a text": manifest_with(**{"trainer.json": {"size": "x", "sha256": ""}}),
    "a hash that is a list": manifest_with(**{"trainer.json": {"size": 1, "sha256": []}}),
    "an entry that is a list": manifest_with(**{"trainer.json": []}),
    "files that are a list": lambda manifest: {"files": []},
    "no files": lambda manifest: {"files": {}},
    "a list": lambda manifest: [],
    "a text": lambda manifest: "x",
    "nested 100,000 deep": lambda manifest: "[" * 100_000,
    "one gigabyte of blanks": lambda manifest: None,
}


def test_manifests(tally, cut_short, expected):
    for attempt in tally("a manifest that somebody made", small=6, full=len(MANIFESTS)):
        with attempt:
            trial = cut_short()
            what = attempt.plan = [*MANIFESTS][attempt.number]
            path = trial.checkpoints / NEWEST / "MANIFEST.json"
            made = MANIFESTS[what](json.loads(path.read_text()))
            if made is None:
                os.truncate(path, 2**30)
            else:
                path.write_text(made if what.startswith("nested") else json.dumps(made))
            check_harmless(trial, expected)
            trial.clear()


def test_files_that_are_elsewhere(tally, cut_short, expected):
    """Each with its right size and hash: by a name that leads there, by links, by a hard link."""
    for attempt in tally("a manifest that lists what is elsewhere", small=4, full=4):
        with attempt:
            trial = cut_short()
            newest, other = trial.checkpoints / NEWEST, trial.checkpoints / BEFORE / "model.safetensors"
            content = other.read_bytes()
            listed = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            manifest = json.loads((newest / "MANIFEST.json").read_text())
            (newest / "model.safetensors").unlink()
            ways = ["by a name", "by an absolute name", "by a link", "by a link to a folder"]
            attempt.plan = ways[attempt.number]
            names = [OUTSIDE, str(other), "model.safetensors", "elsewhere/model.safetensors"]
            made = manifest_without("model.safetensors", **{names[attempt.number]: listed})(manifest)
            (newest / "MANIFEST.json").write_text(json.dumps(made))
            if attempt.number == 2:
                (newest / "model.safetensors").symlink_to(other)
            if attempt.number == 3:
                (newest / "elsewhere").symlink_to(other.parent)
            check_harmless(trial, expected)
            trial.clear()
