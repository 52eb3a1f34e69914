"""Exceptions that end a program with a sentence, warnings, and errors of libraries."""

import os
import re
import sys
import textwrap


class BadInput(ValueError):
    """Input that cannot be used: one sentence saying what is wrong, where, and what to do.

    The binaries print it as a single line and exit with code 2; anything else keeps its traceback,
    since it is a fault of ours.
    """


class Halted(RuntimeError):
    """A run that cannot continue, or was asked to stop; the message says why and what to do.

    Attributes:
      exit_code: of the process.
    """

    def __init__(self, message: str, exit_code: int = 1):
        super().__init__(message)
        self.exit_code = exit_code


def warn(text: str) -> None:
    """Prints a warning, a sentence without its full stop, on stderr."""
    print(f"warning: {text.rstrip('.')}.", file=sys.stderr, flush=True)


def check_positive(**settings: int) -> None:
    """Raises BadInput unless every setting, by its name, is at least 1."""
    for name, value in settings.items():
        if value < 1:
            raise BadInput(f"{name} must be at least 1, got {value}.")


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, without a full stop, or the error's type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0].rstrip(".")


def errno_of(error: BaseException | None) -> int | None:
    """Returns the errno behind an error, None if it has none.

    TensorStore raises ValueError, with the number in the message.
    """
    number = re.search(r"os_error_code='(\d+)'", str(error))
    return int(number[1]) if number else getattr(error, "errno", None)


def reason(error: BaseException) -> str:
    """Returns why an operation failed: by its errno, as TensorStore says, or its first line."""
    if number := errno_of(error):
        said = getattr(error, "strerror", None) or os.strerror(number)  # s3fs has words of its own
        return said.rstrip(".")
    # OUT_OF_RANGE: ..., after a long prefix or in the error that this one came from
    everything = f"{error}\n{error.__cause__}\n{error.__context__}"
    code = re.search(r"\b[A-Z_]{6,}: .*", everything)
    line = code[0] if code else first_line(error) if str(error).strip() else repr(error)
    line = re.split(r" \[(tensorstore_spec|http_response)", line)[0]
    if isinstance(error, FileNotFoundError) and not code:
        line = f"not found: {line}"
    return textwrap.shorten(line.rstrip("."), 240, placeholder=" ...")
