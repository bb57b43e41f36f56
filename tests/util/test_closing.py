"""Context managers that close: which exception leaves the block."""

import pytest

from rankmon._util.closing import ClosesOnExit


class Opened(ClosesOnExit):
    def __init__(self, error=None):
        self.error, self.said = error, []

    def close(self):
        self.said.append("closed")
        if self.error:
            raise self.error

    def _note_failure(self):
        self.said.append("failed")


def test_closing_alone_raises_its_own_error():
    with pytest.raises(OSError, match="disk"), Opened(OSError("disk")) as opened:
        pass
    assert opened.said == ["closed"]


@pytest.mark.parametrize("error", [None, OSError("disk")], ids=["closes", "cannot close"])
def test_the_exception_of_the_block_is_what_counts(error):
    opened = Opened(error)
    with pytest.raises(KeyError, match="mine") as caught, opened:
        raise KeyError("mine")
    assert opened.said == ["failed", "closed"]
    assert len(getattr(caught.value, "__notes__", [])) == (error is not None)
