"""metrics/details.json as others read it: held against its schema."""

import json
from pathlib import Path

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from stages.errors import printable, regenerate
from stages.files import read_json

SCHEMA = Path(__file__).parents[2] / "docs" / "details.schema.json"
_MOST_SHOWN = 200  # characters of what is wrong


def read_details(path: Path) -> dict:
    """Read what `evaluate` found.

    Raises:
        InputError: the file is missing, damaged, or not as docs/details.schema.json says.
    """
    content = read_json(path)
    try:
        json.dumps(content, allow_nan=False)  # which a schema does not see
    except ValueError as error:
        raise regenerate(f"{path}: {error}") from None
    validator = Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))
    if error := best_match(validator.iter_errors(content)):
        raise regenerate(f"{path}: {error.json_path.removeprefix('$.')}: {printable(error.message)[:_MOST_SHOWN]}")
    return content
