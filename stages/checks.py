"""What YAML and JSON files hold as checked types: pydantic's, with one style of message."""

import reprlib
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Any, get_args

from pydantic import BaseModel, Field, Strict, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from stages.errors import printable

MAX_PROBLEMS_SHOWN = 50
Location = Sequence[int | str]

# Strict: true is not a number, "0.1" is text; but 1 is as good as 1.0. Neither infinite nor, as YAML and JSON allow, a
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
_shown.maxlevel = 2


def relation(message: str) -> PydanticCustomError:
    """To be raised by a validator of several fields together: a complete message that begins with one's name."""
    return PydanticCustomError("relation", "{message}", {"message": message})


def checked(content: Any, kind: Any) -> Any:
    """`content`, as parsed from a file, as an instance of a pydantic type.

    Raises:
        ValueError: it is not; one line per wrong value says its name, what it is and what it must be, the second and
            later lines indented.
    """
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        problems = _problems(error, content, kind)
    more = len(problems) - MAX_PROBLEMS_SHOWN
    raise ValueError("\n  ".join(problems[:MAX_PROBLEMS_SHOWN] + ([f"… and {more} more"] if more > 0 else [])))


_MUST = {"bool_type": "be true or false", "tuple_type": "be a list", "list_type": "be a list"}


def _problems(error: ValidationError, content: Any, kind: Any) -> list[str]:
    problems: list[str] = []
    expected: dict[str, list[str]] = {}
    for item in error.errors(include_url=False):
        place, value = _resolve(item["loc"], content)
        match item["type"]:
            case "missing":
                problems.append(f"{_name((*place, item['loc'][-1]))} is missing")
            case "unexpected_keyword_argument" | "extra_forbidden":
                problems.append(f"{_name(place)} is unknown{_hint(place, kind)}")
            case "relation":
                problems.append(_name((*place, "")) + item["msg"])
            case given:
                must = _MUST.get(given, item["msg"].partition(" should ")[2])
                if given == "value_error":
                    must = f"be {item.get('ctx', {}).get('error')}"
                elif given in ("dataclass_type", "dict_type", "model_type"):
                    keys = ", ".join(_known(place, kind))
                    must = f"be a mapping with the keys {keys}" if keys else "be a mapping"
                start = f"{_name(place) or 'the content'} is {printable(_shown.repr(value))}; it must "
                expected.setdefault(start, []).append(must)
    return problems + [
        start + " or ".join(dict.fromkeys(musts)).replace(" or be ", " or ") for start, musts in expected.items()
    ]


def _resolve(location: Location, content: Any) -> tuple[Location, Any]:
    """The parts of a location that lie in the content, and what is there; pydantic adds the branches of unions."""
    place = []
    for key in location:
        if _holds(content, key):
            content = content[key]
            place.append(key)
    return tuple(place), content


def _holds(content: Any, key: int | str) -> bool:
    if isinstance(content, list | tuple):
        return isinstance(key, int) and key < len(content)
    return isinstance(content, dict) and key in content


def _name(place: Location) -> str:
    parts = [f"[{part}]" if isinstance(part, int) else f".{_shown.repr(part).strip(chr(39))}" for part in place]
    return "".join(parts).removeprefix(".")


def _hint(place: Location, kind: Any) -> str:
    *above, name = place
    known = _known(above, kind)
    if close := get_close_matches(str(name), known, n=1):
        return f"; did you mean {_name((*above, close[0]))}?"
    return f"; known are {', '.join(known)}" if known else ""


def _known(place: Location, kind: Any) -> list[str]:
    """The keys of a type, or of a field of a field … of it."""
    for part in place:
        kind = _fields(kind).get(part)
    return [str(name) for name in _fields(kind)]


def _fields(kind: Any) -> dict[int | str, Any]:
    """The types of a class' fields; of an optional class too."""
    for one in get_args(kind) if isinstance(kind, UnionType) else [kind]:
        if isinstance(one, type) and is_dataclass(one):
            return {field.name: field.type for field in fields(one)}
        if isinstance(one, type) and issubclass(one, BaseModel):
            return {name: field.annotation for name, field in one.model_fields.items()}
    return getattr(kind, "__annotations__", {})
