"""Griffe extension: read the section "Example" of rankmon's docstrings as code, like "Examples"."""

import re
from typing import Any

from griffe import Extension, Object


class Examples(Extension):
    """Rename the section, which Griffe would render as text otherwise."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rename the section in the docstring of a module, a class, a function or an attribute."""
        if obj.docstring:
            text = obj.docstring.value
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
