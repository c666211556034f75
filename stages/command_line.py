"""What the commands share: how their arguments are described, and how they write."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.errors import InputError


def new_parser(name: str, text: str | None) -> argparse.ArgumentParser:
    """The parser of `python -m stages NAME`, whose help starts with the text, the docstring of the command's module."""
    layout = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(f"python -m stages {name}", description=text, formatter_class=layout)


def new_fold_parser(name: str, text: str | None) -> argparse.ArgumentParser:
    """The parser of a command that makes a folder of a cross-validation's experiments, whose revisions it takes."""
    parser = new_parser(name, text)
    add = parser.add_argument
    add("revisions", metavar="REV", nargs="*", help="of each fold (default: the experiments of HEAD)")
    add("--output", type=new_folder, required=True, metavar="DIR", help="folder to write, which must not exist yet")
    return parser


def new_folder(text: str) -> Path:
    """A folder that can be made, for `argparse`; an InputError where it is there, or below a file."""
    output = Path(text)
    if output.exists():
        raise InputError(f"--output is {text!r}, which exists; name a folder that does not")
    if files := [parent for parent in output.parents if parent.is_file()]:
        raise InputError(f"--output is {text!r}; {files[0]} is a file, not a folder")
    return output


def new_file(text: str) -> Path:
    """A file to write, for `argparse`; an InputError where it is there as something else, as /dev/null is."""
    path = Path(text)
    if path.exists() and not path.is_file():
        raise InputError(f"{text} is not a file; name the one to write")
    return path


def print_text(text: str) -> None:
    """Print bytes: the same on every platform, whatever encoding its terminal has."""
    try:
        sys.stdout.buffer.write(text.encode("utf-8"))
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough; without a place to go, the interpreter's own flush would fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def pair(text: str) -> tuple[str, str | None]:
    """`a=b` as (a, b), `a=` as (a, None); for `argparse`."""
    name, sign, value = text.rpartition("=")
    if not sign:
        raise argparse.ArgumentTypeError(f"{text!r} is not a pair NAME=VALUE")
    return name, value or None


@contextmanager
def naming_options() -> Iterator[None]:
    """Have an InputError on the columns and labels of a table say what mends it here: options, not params.yaml."""
    try:
        yield
    except InputError as error:
        text = re.sub(r"data\.columns\.(\w+)", r"--columns \1=", str(error))
        text = re.sub(r"data\.(columns|classes|taxonomy)\b", r"--\1", text)
        text = re.sub(r"\{([^{}:]+): ([^{}]*)\}", lambda pair: f"{pair[1]}={pair[2]}".removesuffix("null"), text)
        raise InputError(text.replace("null to leave it out", "nothing to leave it out")) from None


def whole_number(most: int | None = None) -> Callable[[str], int]:
    """A reader of whole numbers from 1, for `argparse`."""
    allowed = "a whole number, at least 1" if most is None else f"a whole number from 1 to {most}"

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < 1 or (most is not None and int(text) > most):
            raise argparse.ArgumentTypeError(f"{text!r} must be {allowed}")
        return int(text)

    return read


@contextmanager
def writing(option: str, path: Path) -> Iterator[None]:
    """Raise an InputError where a block cannot write what an option names."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{option} {path} cannot be written ({error})") from None
