"""Types of the values in the JSON of a checkpoint, which someone else may have written.

A key that may be missing is one that checkpoints of earlier versions lack.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from accmt.rules.codec import count_from, from_text


def _number(value: Any) -> float:
    if type(value) not in (int, float, str):
        raise ValueError("not a number")
    return from_text(value)


def _interval(value: list[Any]) -> list[Any]:
    total, count = value
    return [_number(total), count_from(count)]


Count: TypeAlias = Annotated[int, Field(ge=0)]
Number: TypeAlias = Annotated[Any, AfterValidator(_number)]
Interval: TypeAlias = Annotated[list[Any], AfterValidator(_interval)]


class Written(BaseModel):
    """Mapping with these keys, each of its type."""

    model_config = ConfigDict(strict=True)


class _Unit(Written):
    counts: Literal["samples", "batches"]
    batch_size: Count | None
    processes: Count
    readers: Count


class _Position(Written):
    step: Count
    epoch: Count
    batch: Count
    step_in_epoch: Count
    evaluation: Count
    samples_before: Count
    place: Count = 0
    unit: _Unit | None = None
    ended_epoch: bool = False


class _Group(Written):
    parameters: str
    settings: dict[str, Any]


class _Schedule(Written):
    per_epoch: bool
    length: list[Count | None] | None
    kind: str
    state: dict[str, Any]
    functions: list[Any]
    parts: list[Any]


class _Data(Written):
    type: str
    length: Count | None
    samples: str | None


class _Configuration(Written):
    settings: dict[str, Any]
    data: _Data | None
    order: list[Any]
    groups: list[_Group]
    schedule: _Schedule | None


class _Listed(Written):
    frozen: list[str]
    evaluating: list[str]
    shapes: dict[str, list[Count]]


class _Modes(Written):
    now: _Listed
    start: _Listed
    buffers: dict[str, Any]


class _Beside(Written):
    modes: _Modes
    extra: dict[str, Any]
    attributes: dict[str, Any]


class TrainerFile(Written):
    """State shared by all processes: see `checkpointer._trainer` and `contents.state_files`."""

    parts: dict[str, Any]
    kinds: dict[str, str]
    model: dict[str, Any]
    beside: Annotated[_Beside | None, BeforeValidator(lambda value: None if value == {} else value)] = None
    deepspeed: dict[str, Any] | None = None
    position: _Position
    settled: bool = True
    elapsed: float
    nan_reported: list[str]
    history: Count
    decisions: Count
    tracker: dict[str, Any]
    data_seed: int
    processes: Count
    steps_per_epoch: Count | None
    configuration: _Configuration | None = None


class _Losses(Written):
    unit: str = ""
    sum: Number
    count: Count
    log: Interval
    evaluation: Interval


class _Reading(Written):
    reading: dict[str, Any]
    generators: dict[str, Any]


class Process(Written):
    """State of a single process: see `checkpointer._own`."""

    losses: _Losses
    training: dict[str, Interval] = Field(default_factory=dict)
    data: _Reading | None
    objects: dict[str, Any] = Field(default_factory=dict)


def check_written(kind: type[Written], data: Mapping[str, Any]) -> None:
    """Check that a piece of JSON is of a given type.

    Raises:
        ValueError: It is not; the message says where.
    """
    try:
        kind.model_validate(data)
    except ValidationError as error:
        wrong = error.errors()[0]
        place = ".".join(map(str, wrong["loc"]))
        is_there = wrong["type"] != "missing"
        raise ValueError(f"{place} is {wrong['input']!r:.100}" if is_there else f"{place} is missing") from None
