"""The one exception for what a user can mend."""


class BadInput(ValueError):
    """Input that cannot be used: one sentence saying what is wrong, where, and what to do.

    The binaries print it as a single line and exit with code 2; anything else keeps its traceback,
    since it is a fault of ours.
    """
