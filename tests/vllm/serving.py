"""A real server: `antefix serve` in processes of its own, started and stopped by the test that wants it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
from openai import OpenAI

KEY, ADMIN_KEY = "a client's key", "the administrator's key"
ANTEFIX = [sys.executable, "-m", "antefix"]


class Server:
    """A running server, its address and its processes."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"

    @property
    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, timeout=120)

    def processes(self) -> list[psutil.Process]:
        main = psutil.Process(self.process.pid)
        return [main, *main.children(recursive=True)]


@contextmanager
def serving(arguments: Sequence[str], log: Path, port: int | None = None) -> Iterator[Server]:
    """Start `antefix serve` and yield it when it answers; stop it and all its processes by their pids."""
    port = port or _free_port()
    command = [*ANTEFIX, "serve", *arguments, "--host", "127.0.0.1", "--port", str(port)]
    environment = os.environ | {"ANTEFIX_ADMIN_KEY": ADMIN_KEY, "VLLM_API_KEY": KEY, "VLLM_LOGGING_LEVEL": "INFO"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    server = Server(process, port)
    watchdog = threading.Timer(300, process.kill)
    watchdog.start()
    try:
        assert process.stdout is not None
        with log.open("w") as file:
            for line in process.stdout:
                file.write(line)
                if "Application startup complete" in line:
                    break
            else:
                raise AssertionError(f"the server did not start: {log.read_text()[-3000:]}")
        watchdog.cancel()  # from here on each request has a limit of its own
        threading.Thread(target=_drain, args=(process, log), daemon=True).start()
        yield server
    finally:
        watchdog.cancel()
        _stop(server)


def _drain(process: subprocess.Popen[str], log: Path) -> None:
    assert process.stdout is not None
    with process.stdout as lines, log.open("a") as file:
        file.writelines(lines)


def _stop(server: Server) -> None:
    try:
        processes = server.processes()
    except psutil.NoSuchProcess:
        return
    os.kill(server.process.pid, signal.SIGTERM)
    _, alive = psutil.wait_procs(processes, timeout=30)
    for process in alive:
        process.kill()
    server.process.wait(30)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
