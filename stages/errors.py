"""What a user is told when something they supplied is wrong."""

import sys
from collections.abc import Callable


class InputError(Exception):
    """A mistake in a parameter, a file or a table, described so that its user can mend it.

    The message names the file, key or row, the value found and what would be right.
    """


def run(main: Callable[[], None]) -> None:
    """Run a stage or command: an `InputError` ends it with its message and exit status 1, without a traceback."""
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
