"""The type checker of the tests: annotated shapes and types of every call; an int is a float."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
