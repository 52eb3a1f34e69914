"""Every binary in a process of its own, as Python starts it."""

import pytest


@pytest.mark.parametrize("module", ["convert", "plan", "report", "sample"])
def test_an_unknown_flag_is_one_line_and_a_failure(binary, module):
    assert "nonsense" in binary.refuse(module, "--nonsense")


@pytest.mark.parametrize(
    "module",
    ["sample", *(pytest.param(it, marks=pytest.mark.slow) for it in ("convert", "plan", "report"))],
)
def test_a_binary_starts_as_python_starts_it(binary, module):
    process = binary.start(module, "--nonsense")
    out, err = process.communicate(timeout=300)
    (line,) = err.strip().splitlines()
    assert (process.returncode, out) == (2, "")
    assert line.startswith("error: ") and "nonsense" in line
