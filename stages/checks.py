"""What YAML and JSON files hold as checked types: pydantic's, with one style of message."""

import reprlib
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Annotated, Any, TypeVar

from pydantic import Field, Strict, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from stages.errors import printable

T = TypeVar("T")
MAX_PROBLEMS_SHOWN = 50

# Strict: true is no number, "0.1" is text; but 1 is as good as 1.0. Neither infinite nor, as YAML and JSON allow, a
# whole number of a thousand digits.
LARGEST = 2**63 - 1
Flag = Annotated[bool, Strict()]
Text = Annotated[str, Strict()]
Whole = Annotated[int, Strict(), Field(ge=0, le=LARGEST)]
Count = Annotated[int, Strict(), Field(ge=1, le=LARGEST)]
Float = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Number = Annotated[Float, Field(ge=0)]
Positive = Annotated[Float, Field(gt=0)]
Share = Annotated[Float, Field(ge=0, le=1)]

_shown = reprlib.Repr()
_shown.maxstring = _shown.maxother = 200
_shown.maxlist = _shown.maxdict = 10
_shown.maxlevel = 3


def relation(message: str) -> PydanticCustomError:
    """To be raised by a validator of several fields together: a complete message that names them."""
    return PydanticCustomError("relation", "{message}", {"message": message})


def checked(content: Any, kind: type[T]) -> T:
    """`content`, as parsed from a file, as an instance of a pydantic type.

    Raises:
        ValueError: it is none; a line for each value that is wrong, which names it, says what it is and what it must
            be, the second and later lines indented.
    """
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        problems = _problems(error, content, kind)
    more = len(problems) - MAX_PROBLEMS_SHOWN
    raise ValueError("\n  ".join(problems[:MAX_PROBLEMS_SHOWN] + ([f"… and {more} more"] if more > 0 else [])))


def _problems(error: ValidationError, content: Any, kind: Any) -> list[str]:
    problems: list[str] = []
    expected: dict[str, list[str]] = {}
    for item in error.errors(include_url=False):
        place, value = _resolve(item["loc"], content)
        match item["type"]:
            case "missing":
                problems.append(f"{_name(item['loc'])} is missing")
                continue
            case "unexpected_keyword_argument" | "extra_forbidden":
                problems.append(f"{_name(place)} is unknown; {_hint(place, kind)}")
                continue
            case "relation":
                problems.append(item["msg"])
                continue
            case "value_error":
                must_be = str(item["ctx"]["error"])
            case "bool_type":
                must_be = "true or false"
            case "tuple_type":
                must_be = "a list"
            case "dataclass_type" | "dict_type":
                must_be = f"a mapping with the keys {', '.join(_known(place, kind))}"
            case _:
                must_be = item["msg"].removeprefix("Input should be ")
        start = f"{_name(place) or 'the content'} is {printable(_shown.repr(value))}; it must be "
        expected.setdefault(start, []).append(must_be)
    return problems + [start + " or ".join(dict.fromkeys(all_of)) for start, all_of in expected.items()]


def _resolve(location: tuple[int | str, ...], content: Any) -> tuple[tuple[int | str, ...], Any]:
    """The part of a location that lies in the content, and what is there; pydantic adds the branches of unions."""
    for depth, key in enumerate(location):
        is_item = isinstance(content, list | tuple) and isinstance(key, int) and key < len(content)
        if not is_item and not (isinstance(content, dict) and key in content):
            return location[:depth], content
        content = content[key]
    return location, content


def _name(place: tuple[int | str, ...]) -> str:
    parts = [f"[{part}]" if isinstance(part, int) else f".{_shown.repr(part).strip(chr(39))}" for part in place]
    return "".join(parts).removeprefix(".")


def _hint(place: tuple[int | str, ...], kind: Any) -> str:
    *above, name = place
    known = _known(above, kind)
    close = get_close_matches(str(name), known, n=1)
    return f"did you mean {_name((*above, close[0]))}?" if close else f"known are {', '.join(known)}"


def _known(place: Iterable[int | str], kind: Any) -> list[str]:
    """The keys of a type, or of a field of a field … of it."""
    for part in place:
        kind = getattr(kind, "__annotations__", {}).get(part)
    return list(getattr(kind, "__annotations__", {}))
