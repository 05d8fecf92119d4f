"""A real MLflow server that can be killed, paused and started again, and a proxy in front of one that misbehaves."""

from __future__ import annotations

import http.client
import http.server
import json
import signal
import socket
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest
from launching import start

from accmt.tracking.trust import names_of

# `mlflow server`, which serves in its own process instead of starting an interpreter for it.
_PROGRAM = """
import os, runpy, subprocess, sys
from mlflow.cli import cli

def serve(command, env, **_):
    os.environ.clear()
    os.environ |= env
    sys.argv = command[2:]
    runpy.run_module("uvicorn", run_name="__main__", alter_sys=True)

subprocess.Popen = serve
cli(["server", *sys.argv[1:]])
"""
_HOP = ("connection", "keep-alive", "transfer-encoding", "content-length", "host")


class Server:
    """A server and the processes that it starts, in a session of their own. What it was told outlives it."""

    def __init__(self, folder):
        self._folder = folder
        self.address = f"127.0.0.1:{free_port()}"
        self._running = None

    def start(self):
        """Start it, and return when it answers."""
        port = self.address.split(":")[1]
        options = ["--host", "127.0.0.1", "--port", port, "--workers", "1"]
        options += ["--backend-store-uri", f"sqlite:///{self._folder / 'server.db'}"]
        options += ["--artifacts-destination", self._folder / "artifacts"]
        variables = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # or it starts seven processes more
        preload = ("mlflow.cli", "mlflow.server.fastapi_app", "uvicorn")
        self._running = start(_PROGRAM, *options, folder=self._folder, environment=variables, preload=preload)
        while self._running.is_running():
            with suppress(OSError), urllib.request.urlopen(f"http://{self.address}/health", timeout=60):
                return
            time.sleep(0.01)
        pytest.fail(f"the server does not answer:\n{self._running.end()}")

    def freeze(self):
        """Let it take connections and answer none."""
        self._running.send_to_all(signal.SIGSTOP)

    def thaw(self):
        self._running.send_to_all(signal.SIGCONT)

    def kill(self):
        """End it at once, with all that it started; nothing if it is not running."""
        if self._running is not None:
            with self._running:
                pass
        self._running = None


class Proxy:
    """Stands in front of a server.

    Attributes:
        mode: "well": it passes everything on. "down": it hangs up. "500": it answers so. "slow": it takes its time.
            "deaf": it passes on what is asked, and hangs up in the place of the answer.
        asked: The paths that were asked for and passed on.
        pause: How slow, in seconds.

    Whoever asks for `/mode/500` changes the mode, so that another process can do so.
    """

    def __init__(self, server):
        self.mode = "well"
        self.pause = 0.2
        self.asked = []
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                proxy._answer(self, server.address)

            do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

            def log_message(self, *arguments):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, request, address):
        if request.path.startswith("/mode/"):
            self.mode = request.path.removeprefix("/mode/")
            request.send_response(204)
            request.end_headers()
            return
        mode = self.mode
        body = request.rfile.read(int(request.headers.get("content-length") or 0))
        request.close_connection = True
        if mode == "down":
            return
        if mode == "500":
            request.send_error(500)
            return
        if mode == "slow":
            time.sleep(self.pause)
        self.asked.append(request.path)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP}
        connection = http.client.HTTPConnection(address)
        try:
            connection.request(request.command, request.path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
        except OSError:
            return
        finally:
            connection.close()
        if mode == "deaf":
            return
        with suppress(OSError):
            request.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in _HOP:
                    request.send_header(name, value)
            request.send_header("content-length", str(len(content)))
            request.end_headers()
            request.wfile.write(content)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def syncing(path: Path) -> list[str]:
    """The arguments of a sync that names all places to send to, and allows artifacts beside the folder."""
    recipients = [json.loads(file.read_text())["recipient"] for file in (path / "outbox").glob("*.json")]
    places = dict.fromkeys(place for each in recipients for place in names_of(each["tracker"], each["location"]))
    named = [text for place in places for text in ("--to", place)]
    return ["sync", str(path), *named, "--artifacts-from", str(path.parent)]
