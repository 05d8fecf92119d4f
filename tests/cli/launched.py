"""A script that tests/cli/test_launch.py launches: `launched.py WHAT ...`."""

import json
import os
import signal
import sys
import time

what, *arguments = sys.argv[1:]
rank = os.environ.get("RANK", "0")


def tell(**values):
    sys.stdout.write(json.dumps({"rank": rank, **values}) + "\n")  # not flushed: whoever launched this sees to it


if what == "tell":
    tell(arguments=arguments, module=__spec__ is not None, environment=dict(os.environ))
elif what == "exit":
    sys.exit(int(arguments[0]))
elif what == "raise" and rank == "1":
    raise ValueError("broken on rank 1")
elif what == "kill" and rank == "1":
    os.kill(os.getpid(), int(arguments[0]))
elif what == "count":
    signals = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]
    for number in signals:
        signal.signal(number, lambda number, frame: tell(got=signal.Signals(number).name))
    tell(ready=True)
elif what == "obey":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(int(arguments[0])))
    tell(ready=True)
if what in ("raise", "kill", "count", "obey"):
    while True:
        time.sleep(0.1)
