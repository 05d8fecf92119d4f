"""Manipulated saved models

As with checkpoints: pickles, archives that would fill the memory, names that lead out of the folder, and descriptions
of nothing, all with a manifest whose hashes fit. It has **survived** if `accmt.load_saving` executes nothing, and
either refuses the model with an error that names the folder, before it changes the model in memory, or loads what was
harmless.
"""

import hashlib
import itertools
import re
import shutil

from harmful import ALIEN, MEMORY, pickled, safetensors, seal, zip_bomb
from trainings import CHANGED

NOT_LOADED = re.compile(r"^(ValueError|FileNotFoundError|accmt\.checkpoint\.\w+\.\w+): ", re.MULTILINE)


NO_MEMORY = re.compile("memory|MemoryError|bad_alloc")
UNPICKLED = (False, "pytorch_model.bin")


def test_saved_models(tally, trial, payload, tmp_path):
    ways = {True: trial(safe_serialization=True), False: trial()}
    for original in ways.values():
        original.finish()
    bomb = tmp_path / "bomb"
    zip_bomb(bomb)
    contents = {
        "a pickle": pickled(payload, "binary"),
        "a pickle as text": pickled(payload, "text"),
        "an archive with a pickle": pickled(payload, "archive"),
        "an archive of 4 GB in a few MB": bomb.read_bytes(),
        "nothing": b"",
        "no text": b"\xff" * 100,
        "nested 100,000 deep": b"[" * 100_000,
        "a list": b"[]",
        "a header of 2**63 bytes": safetensors({}, claimed=2**63),
        "a name above the folder": b'{"schema": 1, "best_first": ["../../x"], "weight_map": {"a": "../x"}}',
    }
    names = ["saving.json", "model.safetensors", "pytorch_model.bin.index.json", "config.json", "MANIFEST.json"]
    files = [("best_train_loss", name) for name in [*ALIEN[:4], *names, "index.json"]] + [("best_age", "index.json")]
    cases = [(way, *file, what) for way, file, what in itertools.product(ways, files, contents)]
    # First those that are unpickled, with whatever care.
    order = sorted(
        cases, key=lambda case: (case[:1] + case[2:3] != UNPICKLED, hashlib.sha256(str(case).encode()).digest())
    )
    for attempt in tally("a file in a saved model", small=8, full=len(cases)):
        with attempt:
            tried = trial()
            way, rule, name, what = order[attempt.number]
            attempt.plan = f"{name} of {rule}: {what}"
            shutil.copytree(ways[way].path / rule, tried.path / rule)
            (tried.path / rule / name).write_bytes(contents[what])
            if name != "MANIFEST.json" and rule == "best_train_loss":
                seal(tried.path / rule)
            child = tried.load(tried.path / rule, MEMORY)
            code, printed = child.end(), child.printed()
            assert CHANGED not in printed
            assert not payload.mark.exists(), "the payload was executed"
            assert not NO_MEMORY.search(printed), "memory was asked for that only an archive says it needs"
            if code != 0:
                errors = [*NOT_LOADED.finditer(printed)]
                assert errors, printed[-1500:]
                assert str(tried.path / rule) in printed[errors[-1].start() :], printed[-1500:]
            tried.clear()
