"""Publish: copy what people read of the outputs to where Git keeps it.

Reads `data/split.json`, `data/training/`, `data/predictions.csv`, `data/details.json`, `plots/tables/` and
`models/model_card.md`, writes `metrics/`, the tables in `plots/` and `models/README.md`.
"""

import shutil

from stages.errors import regenerate
from stages.files import PLOTS, PUBLISHED, TABLES, replacing
from stages.launch import run_stage


def main() -> None:
    for source in (*PUBLISHED, TABLES):
        if not source.exists():
            raise regenerate(f"{source} does not exist")
    tables = {path: PLOTS / path.name for path in sorted(TABLES.iterdir())}
    for source, copy in (PUBLISHED | tables).items():
        with replacing(copy) as partial:
            # The content alone: DVC's own files are read-only.
            if source.is_dir():
                shutil.copytree(source, partial, copy_function=shutil.copyfile)
            else:
                shutil.copyfile(source, partial)


if __name__ == "__main__":
    run_stage(main, __doc__)
