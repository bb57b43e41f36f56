"""One way to test what is said to the user: what was expected, what came, and what to do.

Keys are the few words that a reader needs: names of arguments, the value that came, the remedy's
option. The rest of a sentence may be written better without a test that fails.
"""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from rankmon import RankmonWarning

_SHAPE = re.compile(r"expected\b.*\bgot\b.*;", re.IGNORECASE | re.DOTALL)


def assert_explains(said: object, *keys: str) -> None:
    """The text reads "expected ..., got ...; remedy" and holds every key."""
    text = str(said)
    assert _SHAPE.search(text), f"expected 'expected ..., got ...; remedy', got {text!r}"
    missing = [key for key in keys if key not in text]
    assert not missing, f"{missing} not in {text!r}"


@contextmanager
def refused(kind: type[Exception], *keys: str) -> Iterator[pytest.ExceptionInfo[Exception]]:
    """The block raises such an error, and it explains itself."""
    with pytest.raises(kind) as caught:
        yield caught
    assert_explains(caught.value, *keys)


@contextmanager
def warned(*keys: str, kind: type[Warning] = RankmonWarning) -> Iterator[pytest.WarningsRecorder]:
    """The block warns, and one of its warnings explains itself with these keys."""
    with pytest.warns(kind) as caught:
        yield caught
    texts = [str(warning.message) for warning in caught]
    assert any(_SHAPE.search(text) and all(key in text for key in keys) for text in texts), texts


@contextmanager
def unwarned() -> Iterator[None]:
    """The block gives no warning of ours: made errors, they would be logged instead."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    texts = [str(w.message) for w in caught if issubclass(w.category, RankmonWarning)]
    assert not texts, texts
