"""The one exception for everything that a user can mend.

Commands print it as a single line and leave with exit code 1; every other exception is a defect
of the program and keeps its traceback.
"""


class IDCError(Exception):
    """Bad input, configuration or environment; its text says what, where and how to mend it."""


def listed(items: list[str], *, limit: int = 5) -> str:
    """Join names for a message, e.g. ``"a, b, c and 4 more"``.

    Args:
        items: Names, in the order in which they are shown.
        limit: How many of them are shown.
    """
    shown = ", ".join(items[:limit])
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"
