"""JSON is read by the types of dataclasses; an error says the place, what is there, and what is allowed."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from accmt.rules.codec import SPARSE, Count, Finite, from_plain, from_plain_at, to_plain


@dataclass(frozen=True)
class Part:
    size: Count
    share: Finite = field(default=1.0, metadata=SPARSE)


@dataclass(frozen=True)
class Whole:
    kind: Literal["one", "two"]
    parts: Mapping[str, Part]
    pair: tuple[float, Count]
    names: list[str | None]
    every: int | str | None
    rest: Any


WHOLE = Whole("one", {"a": Part(1), "b": Part(2, 0.5)}, (float("inf"), 3), ["x", None], "epoch", {"any": [1]})
JSON = {
    "kind": "one",
    "parts": {"a": {"size": 1}, "b": {"size": 2, "share": 0.5}},
    "pair": ["inf", 3],
    "names": ["x", None],
    "every": "epoch",
    "rest": {"any": [1]},
}


def test_there_and_back():
    assert to_plain(WHOLE) == JSON
    assert from_plain(Whole, JSON) == WHOLE
    assert from_plain(Whole, {**JSON, "unknown": 1, "every": 3}).every == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "three"}, "it.kind: 'three' is not 'one' or 'two'"),
        ({"parts": {"a": {}}}, "it.parts.a.size is missing"),
        ({"parts": {"a": {"size": True}}}, "it.parts.a.size: True is not a count"),
        ({"parts": {"a": {"size": 1, "share": "inf"}}}, "it.parts.a.share: 'inf' is not a finite number"),
        ({"parts": []}, "it.parts: [] is not of type dict"),
        ({"pair": [1.0]}, "it.pair: [1.0] is not a list of 2 values"),
        ({"pair": ["x", 1]}, "it.pair.0: 'x' is not a number; the texts for numbers are nan, inf, -inf"),
        ({"names": ["x", 1]}, "it.names.1: 1 is not of type str"),
        ({"every": 0.5}, "it.every: 0.5 is not of type int or str"),
    ],
)
def test_an_error_says_the_place(change, said):
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        from_plain_at("it", Whole, {**JSON, **change})
