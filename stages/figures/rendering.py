"""Fill in the templates of the report page and the model card."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from stages import reporting
from stages.evaluation.subgroups import MIN_LESIONS

TEMPLATES = Path(__file__).parent / "templates"
FILTERS = ("number", "interval", "estimate", "percent", "rounded_percent", "counted", "in_order", "escape_markdown")


def render_template(template: str, **values: Any) -> str:
    """Fill in a template of this package.

    In HTML whatever is filled in is text and means nothing else; in Markdown that takes the filter `escape_markdown`.

    Args:
        template: its file name.
        values: what it calls by name; a name that is not among them is an error.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES, encoding="utf-8"),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {name: getattr(reporting, name) for name in FILTERS}
    return environment.get_template(template).render(
        values,
        metrics=reporting.METRICS,
        attributes=reporting.ATTRIBUTES,
        operating_points=reporting.OPERATING_POINTS,
        smallest_judged=MIN_LESIONS,
    )
