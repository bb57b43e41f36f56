"""Run TensorBoard in a process of its own, and fetch data from its routes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def tensorboard_server(logdir: Path, *flags: str, python: str = sys.executable, **environment: str):
    """Start a server on a free port of the loopback interface; yield its address."""
    command = [python, "-m", "tensorboard.main", "--logdir", str(logdir)]
    command += ["--host", "127.0.0.1", "--port", "0", *flags]
    log = logdir.with_name(f"{logdir.name}.log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | environment
        )
    try:
        deadline = time.monotonic() + 60
        while not (found := re.search(r"http://127\.0\.0\.1:\d+/", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield found[0]
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:  # now and then TensorBoard misses the signal
            process.kill()
            process.wait()


def fetch(address: str, route: str, **query: str):
    url = f"{address}data/plugin/{route}?{urllib.parse.urlencode(query, doseq=True)}"
    with urllib.request.urlopen(url, timeout=30) as response:
        return json.load(response)


def fetch_until(address: str, route: str, ready, **query: str):
    """Fetch a route until `ready` accepts the answer, which takes until the folder is read."""
    deadline = time.monotonic() + 30
    while not ready(answer := fetch(address, route, **query)):
        assert time.monotonic() < deadline, answer
        time.sleep(0.2)
    return answer
