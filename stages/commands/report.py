"""Report: what a pull request changes, as Markdown with pictures: the verdict first, then what it rests on.

Metrics, parameters, curves and costs come from Git; predictions, and with them the verdict, through DVC from its cache
or remote. Where these are not available, the report says so and shows the rest. Nothing is checked out.
"""

import argparse
import sys
from pathlib import Path

from stages.errors import InputError, run

EXAMPLES = """\
examples:
  python -m stages report                                the workspace against main
  python -m stages report main HEAD --output report.md   two commits

The pictures are beside the report, in a folder of its name: report_pictures/ for report.md.
"""


def _pictures_of(report: Path) -> Path:
    """The folder of a report's pictures, which is replaced as a whole.

    Raises:
        InputError: something else would be lost.
    """
    from stages.experiments.revision import CURVES

    if report.is_dir():
        raise InputError(f"--output {report} is a folder; name the Markdown file to write")
    folder = report.with_name(f"{report.stem}_pictures")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output {report}: its pictures go into {folder}, which is not a folder; name another file")
    drawn = {f"{curve}.png" for curve in CURVES}
    others = sorted(entry.name for entry in folder.iterdir() if entry.name not in drawn) if folder.is_dir() else []
    if others:
        raise InputError(
            f"--output {report}: its pictures replace the folder {folder}, which holds {others[0]}, not a picture of a "
            "report; name another file, or move the folder away"
        )
    return folder


def write_report(path: Path, base: str, new: str) -> str:
    """Write the report and its pictures.

    Args:
        path: of the Markdown file.
        base: the revision to compare with.
        new: the other.

    Returns:
        Its first line.

    Raises:
        InputError: there is no such revision, one of its files is damaged, or the report cannot be written.
    """
    folder = _pictures_of(path)
    from stages.experiments.report import draw_pictures, render_report
    from stages.experiments.revision import Revision, has_remote
    from stages.figures.style import save
    from stages.files import replacing

    revisions = Revision(base), Revision(new)
    figures = draw_pictures(*revisions)
    text = render_report(*revisions, has_remote(), {name: f"{folder.name}/{name}.png" for name in figures})
    try:
        with replacing(folder) as partial:
            partial.mkdir()
            for name, figure in figures.items():
                save(figure, partial / f"{name}.png")
        with replacing(path) as partial:
            partial.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise InputError(f"--output {path} cannot be written ({error.strerror or error})") from None
    return text.splitlines()[0]


def main(argv: list[str] | None = None) -> None:
    """Run the command line.

    Raises:
        InputError: see `write_report`.
    """
    parser = argparse.ArgumentParser(
        prog="python -m stages report",
        description="Write what changed between two revisions as Markdown with pictures, for a pull request.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("base", metavar="BASE", nargs="?", default="main", help="compare with this (default: main)")
    parser.add_argument("new", metavar="REV", nargs="?", default="workspace", help="the new one (default: workspace)")
    parser.add_argument("--output", type=Path, default=Path("report.md"), metavar="FILE", help="default: report.md")
    args = parser.parse_args(argv)
    verdict = write_report(args.output, args.base, args.new)
    # Bytes: the same on every platform, whatever encoding its terminal has.
    sys.stdout.buffer.write(f"{verdict}\n{args.output} has the rest\n".encode())


if __name__ == "__main__":
    run(main)
