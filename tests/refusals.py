"""Test messages to the user: each says what was expected, what came, and what to do.

Keys are the few words that a reader needs: names of arguments, the value that came, the remedy's
option. The rest of a sentence can be improved without breaking a test.
"""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from rankmon import RankmonWarning

_SHAPE = re.compile(r"expected\b.*\bgot\b.*;", re.IGNORECASE | re.DOTALL)


def assert_explains(said: object, *keys: str) -> None:
    """Assert that a text reads "expected ..., got ...; remedy" and contains every key."""
    text = str(said)
    assert _SHAPE.search(text), f"expected 'expected ..., got ...; remedy', got {text!r}"
    missing = [key for key in keys if key not in text]
    assert not missing, f"{missing} not in {text!r}"


@contextmanager
def refused(kind: type[Exception], *keys: str) -> Iterator[pytest.ExceptionInfo[Exception]]:
    """Assert that the block raises this kind of error with a message that has these keys."""
    with pytest.raises(kind) as caught:
        yield caught
    assert_explains(caught.value, *keys)


@contextmanager
def warned(*keys: str, kind: type[Warning] = RankmonWarning) -> Iterator[pytest.WarningsRecorder]:
    """Assert that the block warns, and that one of the warnings has these keys."""
    with pytest.warns(kind) as caught:
        yield caught
    texts = [str(warning.message) for warning in caught]
    assert any(_SHAPE.search(text) and all(key in text for key in keys) for text in texts), texts


@contextmanager
def unwarned() -> Iterator[None]:
    """Assert that the block gives no warning of rankmon.

    Warnings turned into errors would not show it: rankmon logs them instead.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    texts = [str(w.message) for w in caught if issubclass(w.category, RankmonWarning)]
    assert not texts, texts
