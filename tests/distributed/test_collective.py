"""Collectives give the same on every process, and when one process fails, all know it and none waits for it."""

import json
from pathlib import Path

import pytest
from launching import launch

from accmt.distributed.collective import Failed, agreed, everywhere, from_each, from_main, on_main, raise_on_all

SCRIPT = Path(__file__).parent / "agreeing.py"


def fail():
    raise KeyError("weights")


def test_results():
    assert everywhere(lambda: 3) == [3]
    assert on_main(lambda: 3) == 3
    assert from_main(lambda: None) is None
    assert from_each(lambda: 3) == [3]
    assert agreed(3) == 3
    raise_on_all(None)


@pytest.mark.parametrize("function", [everywhere, on_main])
def test_failure_names_the_exception_and_keeps_it_as_the_cause(function):
    with pytest.raises(Failed) as caught:
        function(fail)
    assert str(caught.value) == "KeyError: 'weights'"
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize("function", [from_each, from_main])
def test_the_type_is_kept(function):
    with pytest.raises(KeyError, match="weights"):
        function(fail)
    with pytest.raises(KeyError, match="weights"):
        raise_on_all(KeyError("weights"))


@pytest.mark.parametrize("function", [everywhere, on_main, from_main])
def test_an_interruption_is_no_failure(function):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        function(interrupt)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Results of two processes, by name."""
    folder = tmp_path_factory.mktemp("agreeing")
    launch(SCRIPT, folder, processes=2).check()
    first, second = (json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1))
    return {name: [first[name], second[name]] for name in first}


@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize(
    ("name", "main", "other"),
    [
        ("everywhere", [0, 1], [0, 1]),
        ("everywhere fails on one", "Failed(NoneType): {1}", "Failed(KeyError): {1}"),
        ("everywhere fails on both", "Failed(KeyError): {0}; {1}", "Failed(KeyError): {0}; {1}"),
        ("from_each", [0, 1], [0, 1]),
        ("from_each fails on one", "Failed(NoneType): {1}", "KeyError(NoneType): 'weights of 1'"),
        ("on_main", 0, 0),
        ("on_main fails", "Failed(KeyError): {main}", "Failed(NoneType): {main}"),
        ("from_main fails", "KeyError(NoneType): 'weights of 0'", "Failed(NoneType): {main}"),
        ("agreed", {"rank": 0}, {"rank": 0}),
        ("raise_on_all", None, None),
        ("raise_on_all of one", "Failed(NoneType): process 1: ValueError: nan", "ValueError(NoneType): nan"),
        ("metric on all", {"total": 2.0}, None),
        ("metric fails on one", "Failed(NoneType): {1}", "KeyError(NoneType): 'weights of 1'"),
        ("metric that main cannot join", "ValueError(NoneType): the batches of metric 'total' differ in", None),
        ("gradients", [[[0, 1, 2]], [0.5, 1.0, 1.5], 0.5, None], [[[0, 1, 2]], [0.5, 1.0, 1.5], 0.5, None]),
        ("told", ["process 0", "process 1"], ["process 0", "process 1"]),
        ("told by one", "did not come", None),
        ("in step", [["a", True], ["b", True], ["c", True]], [["a", True], ["a", False], ["a", False]]),
        ("in step, none here", [["a", True]], [["a", False]]),
        ("in step, unknown", [["a", True], ["b", True]], [["b", True], ["b", False]]),
        ("in step, unknown, none here", [["a", True]], [["a", False]]),
        ("still together", [0, 1], [0, 1]),
    ],
)
def test_two_processes(both, name, main, other):
    texts = {"main": "KeyError: 'weights of 0'"}
    places = [f"process {rank}: KeyError: 'weights of {rank}'" for rank in (0, 1)]
    for got, expected in zip(both[name], (main, other), strict=True):
        if isinstance(expected, str):
            assert got.startswith(expected.format(*places, **texts))
        else:
            assert got == expected
