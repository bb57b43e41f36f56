"""Check annotated shapes and types at every call in the tests; an int counts as a float."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
