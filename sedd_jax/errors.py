"""The exceptions that end a program with a sentence: what a user can mend, what stops a run."""


class BadInput(ValueError):
    """Input that cannot be used: one sentence saying what is wrong, where, and what to do.

    The binaries print it as a single line and exit with code 2; anything else keeps its traceback,
    since it is a fault of ours.
    """


class Halted(RuntimeError):
    """A run that cannot go on, or was told to stop; the message says why and what to do.

    Attributes:
      exit_code: of the process.
    """

    def __init__(self, message: str, exit_code: int = 1):
        super().__init__(message)
        self.exit_code = exit_code


def check_positive(**settings: int) -> None:
    """Raises BadInput unless every setting, by its name, is at least 1."""
    for name, value in settings.items():
        if value < 1:
            raise BadInput(f"{name} must be at least 1, got {value}.")
