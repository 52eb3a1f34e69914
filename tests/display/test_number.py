import pytest

from sedd_jax.display.number import plain, with_error


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (50.917, "50.92"), (1234.4, "1,234"), (123456.0, "123,456"), (9.99996, "10.00"),
        (0.12344, "0.1234"), (-3.9, "-3.900"), (1.234e-7, "1.234e-07"), (0.0, "0"),
        (float("inf"), "inf"), (float("nan"), "nan"),
    ],
)  # fmt: skip
def test_a_number_has_four_digits(value, text):
    assert plain(value) == text


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (50.907, 0.1324, "50.91 +- 0.13"), (1234.5, 41.0, "1,234 +- 41"),
        (1234.5, 130.0, "1,234 +- 130"), (41.2, 0.0996, "41.20 +- 0.10"),
        (3.93, 0.0, "3.930"), (3.93, float("nan"), "3.930 +- nan"), (float("inf"), 1.0, "inf"),
    ],
)  # fmt: skip
def test_a_number_has_the_digits_of_its_error(value, error, text):
    assert with_error(value, error) == text
