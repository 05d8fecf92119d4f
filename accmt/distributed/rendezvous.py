"""Rendezvous of processes where the agent of torchrun keeps one store for all attempts.

After a restart that store still holds the addresses of the processes that have died, and torch.distributed waits for
them: https://github.com/pytorch/pytorch/issues/135712. So each attempt uses its own part of the store.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous

_SCHEME = "accmt-restartable"
_PAUSE = 0.005


def init_method() -> str | None:
    """Return the `init_method` for processes that may have been restarted; None for the usual one."""
    return f"{_SCHEME}://" if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else None


def _meet(url: str, timeout: timedelta, **options: Any) -> Iterator[tuple[Store, int, int]]:
    store, rank, size = next(iter(rendezvous("env://", timeout=timeout, **options)))
    yield PrefixStore(common_name(store, rank, size, timeout), store), rank, size


register_rendezvous_handler(_SCHEME, _meet)  # type: ignore[no-untyped-call]


def common_name(store: Store, rank: int, size: int, timeout: timedelta) -> str:
    """Return a name that only the processes of this attempt have in common: the main process creates it.

    The others ask for it under their own names, so that none takes an answer that is older than its question. Questions
    of processes that have died are answered as well, which does no harm.

    Raises:
        TimeoutError, torch.distributed.DistStoreError: Not all of them joined in time.
    """
    own = uuid.uuid4().hex
    if rank > 0:
        store.set(f"asks/{rank}", own)
        name = str(store.get(f"answer/{own}").decode())
        store.add(f"answered/{name}", 1)
        return name
    until = time.monotonic() + timeout.total_seconds()
    answered: set[str] = set()
    while store.add(f"answered/{own}", 0) < size - 1:
        if time.monotonic() > until:
            raise TimeoutError(f"not all of the {size} processes came within {timeout}")
        for key in (f"asks/{other}" for other in range(1, size)):
            asking = store.get(key).decode() if store.check([key]) else None
            if asking is not None and asking not in answered:
                store.set(f"answer/{asking}", own)
                answered.add(asking)
        time.sleep(_PAUSE)
    return own
