"""The progress bar of what takes longer than two seconds."""

import sys

from rich.console import Console
from rich.progress import Progress


def progress_bar() -> Progress:
    """A bar on standard error, if that is a terminal: a log needs none."""
    return Progress(console=Console(stderr=True), disable=not sys.stderr.isatty())
