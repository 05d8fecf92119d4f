"""Processes that were started again find each other, whatever the tries before have left in the store."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import HashStore, PrefixStore

from accmt.distributed.rendezvous import common_name, init_method

SOON = timedelta(seconds=300)


def names(store, size=3):
    """What each process of a try takes as the common name."""
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: common_name(store, rank, size, SOON), range(size)))


def test_all_of_a_try_have_one_name_and_each_try_its_own():
    store = HashStore()
    tries = [names(store) for _ in range(5)]
    assert all(len(set(each)) == 1 for each in tries)
    assert len({each[0] for each in tries}) == 5


def test_a_try_that_died_while_it_met_is_no_hindrance():
    store = HashStore()
    store.set_timeout(timedelta(seconds=0.2))
    for rank in (1, 2):
        with pytest.raises(Exception, match=r"timeout|Timeout|time out"):
            common_name(store, rank, 3, SOON)
    with pytest.raises(TimeoutError, match="not all of the 3 processes came within"):
        common_name(PrefixStore("", store), 0, 3, timedelta(seconds=0.1))
    store.set_timeout(SOON)
    assert len(set(names(store))) == 1


def test_only_where_an_agent_keeps_the_store(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    assert init_method() is None
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    assert init_method() is None
