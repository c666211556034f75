"""Report: what a pull request changes, as Markdown with pictures: the verdict first, then what it rests on.

  python -m stages report                                the workspace against main
  python -m stages report main HEAD --output report.md   two commits

Metrics, parameters, curves and costs come from Git; predictions, and with them the verdict, through DVC from its cache
or remote. Where these are not available, the report says so and shows the rest. Nothing is checked out. The pictures
are beside the report, in a folder of its name: report_pictures/ for report.md.
"""

from urllib.parse import quote

from stages.command_line import new_file, new_parser, print_text, writing


def main(argv: list[str] | None = None) -> None:
    """Run the command line.

    Raises:
        InputError: there is no such revision, one of its files is damaged, or the report cannot be written.
    """
    parser = new_parser("report", __doc__)
    parser.add_argument("base", metavar="BASE", nargs="?", default="main", help="compare with this (default: main)")
    parser.add_argument("new", metavar="REV", nargs="?", default="workspace", help="the new one (default: workspace)")
    parser.add_argument("--output", type=new_file, default="report.md", metavar="FILE", help="default: report.md")
    parser.add_argument("--no-ids", action="store_true", help="name no images: their ids may be private")
    args = parser.parse_args(argv)
    from stages.experiments.report import draw_pictures, render_report
    from stages.experiments.revision import find_revision, has_remote
    from stages.figures.style import as_png
    from stages.files import replacing

    revisions = find_revision(args.base), find_revision(args.new)
    folder = args.output.with_name(f"{args.output.stem}_pictures")
    figures = draw_pictures(*revisions)
    places = {name: f"{quote(folder.name)}/{name}.png" for name in figures}
    text = render_report(*revisions, has_remote(), places, ids=not args.no_ids)
    with writing("--output", args.output):
        for name, figure in figures.items():
            with replacing(folder / f"{name}.png") as partial:
                partial.write_bytes(as_png(figure))
        with replacing(args.output) as partial:
            partial.write_text(text, encoding="utf-8", newline="\n")
    print_text(f"{text.splitlines()[0]}\n{args.output} has the rest\n")
