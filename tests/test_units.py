"""How quantities are printed."""

import pytest

from gimlax import units


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (units.show_bytes(0), "0 B"),
        (units.show_bytes(1023), "1023 B"),
        (units.show_bytes(1024), "1.00 KiB"),
        (units.show_bytes(1.5 * units.GIB), "1.50 GiB"),
        (units.show_bytes(80e9), "74.5 GiB"),
        (units.show_seconds(0), "0 s"),
        (units.show_seconds(0.0123), "12.3 ms"),
        (units.show_seconds(0.99999), "1.00 s"),
        (units.show_seconds(7e-6), "7.00 us"),
        (units.show_seconds(float("inf")), "inf"),
        (units.show_flops(989e12), "989 TFLOP"),
        (units.show_flops(1.1535e15), "1.15 PFLOP"),
        (units.show_bytes_per_s(3.35e12), "3.35 TB/s"),
        (units.show_bytes_per_s(0), "0 B/s"),
    ],
)
def test_three_digits_in_the_unit_that_fits(shown, expected):
    assert shown == expected
