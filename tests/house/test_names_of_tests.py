"""The names of tests are the same in every process: pytest-xdist refuses to run them otherwise."""

import os
import subprocess
import sys

import pytest

from paths import ROOT


def collected(seed):
    """Return the names of all tests, as pytest lists them with this seed of hashes."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-n", "0", "-m", ""]
    environment = os.environ | {"PYTHONHASHSEED": str(seed)}
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return [line for line in done.stdout.splitlines() if "::" in line]


@pytest.mark.slow
def test_names_do_not_depend_on_the_order_of_sets():
    first = collected(1)
    assert len(first) > 3000
    assert first == collected(2)
