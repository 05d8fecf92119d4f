"""On one process: what an action gives, and how its failure is told. (More processes: tests/distributed.)"""

import pytest

from accmt.distributed.collective import Failed, everywhere, from_main, on_main


def fail():
    raise KeyError("weights")


def test_results():
    assert everywhere(lambda: 3) == [3]
    assert on_main(lambda: 3) == 3
    assert from_main(lambda: None) is None


@pytest.mark.parametrize("function", [everywhere, on_main])
def test_failure_names_the_exception_and_keeps_it_as_the_cause(function):
    with pytest.raises(Failed) as caught:
        function(fail)
    assert str(caught.value) == "KeyError: 'weights'"
    assert isinstance(caught.value.__cause__, KeyError)


def test_from_main_keeps_the_type():
    with pytest.raises(KeyError, match="weights"):
        from_main(fail)


@pytest.mark.parametrize("function", [everywhere, on_main, from_main])
def test_an_interruption_is_no_failure(function):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        function(interrupt)
