"""Test the natural order of names."""

import pytest

from rankmon._util.tags import natural_order


@pytest.mark.parametrize(
    "names",
    [
        ("lr_0.003", "lr_0.01", "lr_0.03", "lr_0.1"),
        ("lr_5e-4", "lr_1e-3", "lr_0.01"),
        ("layer_2", "layer_10"),
        ("blocks.2.w", "blocks.10.w"),
        ("v1.9.3", "v1.10.2"),
        ("width_1.25", "width_1.5"),
        ("S3/a", "S22/a"),
        ("a", "a_1", "a_1/b"),
    ],
    ids=lambda names: names[0],
)
def test_numbers_are_sorted_by_value(names):
    assert sorted(reversed(names), key=natural_order) == list(names)


def test_any_names_can_be_compared():
    names = ["", "1", "²", "1e999", "-1", "0x1f", "1.", ".5", "1..2", "٣"]
    assert len(sorted(names, key=natural_order)) == len(names)
