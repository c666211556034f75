"""Validate: assess the trained model on a dataset that it has never seen.

    python -m stages validate data/hospital --output validation/hospital

The dataset is a folder with a metadata table and images, loose or zipped, as `prepare` reads it; `--columns` and
`--classes` stand for data.columns and data.classes, which describe the training data. Images of diagnoses that the
model does not know are left out, and counted. Nothing is fitted: temperature and thresholds are those in
models/calibration.json. The last lines say which of the model's promises hold there. `--recalibrate 0.3` also fits them
to three in ten of the lesions, judges both on the others, and writes calibration.json into the folder, which `predict`
and `validate` take with `--calibration`. Run from the root of the repository.
"""

import shutil
import sys
from pathlib import Path

from stages.command_line import new_folder, new_parser, pair


def fraction(text: str) -> float:
    if 0 < (value := float(text)) < 1:
        return value
    raise ValueError


def main(argv: list[str] | None = None) -> None:
    """Run the command line.

    Raises:
        InputError: an argument, the dataset or the model is wrong; nothing is then written.
    """
    parser = new_parser("validate", __doc__)
    add = parser.add_argument
    add("data_dir", type=Path, help="folder with the metadata table and the images")
    add("--output", type=new_folder, required=True, help="folder for the results, which must not exist yet")
    add("--models", type=Path, default=Path("models"), help="folder of the model (default: %(default)s)")
    given = "calibration to use, as --recalibrate wrote it (default: the model's own)"
    add("--calibration", type=Path, metavar="FILE.json", help=given)
    fitted = "also fit a calibration to this part of the lesions, as 0.3, and judge it on the others"
    add("--recalibrate", type=fraction, metavar="FRACTION", help=fitted)
    pairs = {"type": pair, "nargs": "+", "default": []}
    named = "your table's name of each of our columns, as dx=label; nothing after =: not there"
    add("--columns", metavar="OURS=YOURS", help=named, **pairs)
    known = "file of its diagnoses, as data.taxonomy names one (default: those of the model)"
    add("--taxonomy", type=Path, metavar="FILE.yaml", help=known)
    meant = "diagnosis of each of your labels, as mole=CODE; nothing after =: leave it out"
    add("--classes", metavar="LABEL=DIAGNOSIS", help=meant, **pairs)
    args = parser.parse_args(argv)
    from dataclasses import asdict

    from stages.classifier.calibration import CALIBRATION, Calibration, save_calibration
    from stages.classifier.description import DESCRIPTION, TRAINED_ON_SYNTHETIC, read_description
    from stages.config import load_config
    from stages.evaluate import print_metrics
    from stages.evaluation.metrics import headline_numbers
    from stages.figures.report import describe_images, describe_model
    from stages.files import MODELS, replacing
    from stages.plot import write_results
    from stages.validation import describe_verdict, find_overlap, validate_model

    config = load_config()
    notes: list[str] = []
    with replacing(args.output) as folder:
        folder.mkdir()
        scratch = folder / "prepared"
        told = dict(args.columns), dict(args.classes), args.taxonomy, notes.append, args.calibration, args.recalibrate
        predictions, details, store, explained = validate_model(config, args.data_dir, scratch, args.models, *told)
        warnings = [f"which images {args.models} was trained on is not known here: some may be among these"]
        if args.models.resolve() == MODELS.resolve():  # the split here is that of the model here
            details["leakage"], warnings = find_overlap(store)
        description = read_description(args.models / DESCRIPTION)
        warnings += [TRAINED_ON_SYNTHETIC] * bool(description.synthetic)
        if "recalibration" in details:
            new = Calibration(**details["recalibration"]["calibration"])
            save_calibration(new, args.models, folder / CALIBRATION)
        title = f"External validation on {args.data_dir.resolve().name}"
        verdict = describe_verdict(details, notes, args.output)
        warnings = [f"warning: {warning}" for warning in warnings]
        text = "\n".join([title, *warnings, "", *verdict, ""])
        (folder / "verdict.txt").write_text(text, encoding="utf-8", newline="\n")
        about = {
            "Model": describe_model(asdict(description)),
            "Data": describe_images(str(args.data_dir), store.manifest),
        }
        page = {"about": about, "title": title, "notes": notes, "trained_on_synthetic": bool(description.synthetic)}
        write_results(folder, predictions, details, store, explained, **page)
        shutil.rmtree(scratch)
    print_metrics(headline_numbers(details["test"]))
    print(f"wrote {args.output}", "", *verdict, sep="\n", flush=True)
    # Last: they make the verdict worth less.
    print(*warnings, sep="\n", end="\n" * bool(warnings), file=sys.stderr)
