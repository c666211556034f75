"""Age, sex and localization as numbers, for a network that takes them beside the image."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from stages.checks import Text
from stages.dataset.taxonomy import fold

# Never dx_type: a lesion is sent to histopathology because it looks malignant. Nor the source, which other clinics
# do not share.
COLUMNS = ["age", "sex", "localization"]
UNKNOWN = "unknown"
AGES = np.array([10, 25, 40, 55, 70, 85])  # years; an age between two of them is a share of each
# In training images lose all three, and each by itself, so often: at random, as ModDrop has it (Neverova et al., PAMI
# 2016). The network learns what to say of an image alone, and of one of which only some is known.
LOSE_ALL, LOSE_EACH = 0.1, 0.1


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class MetadataEncoding:
    """How a network takes metadata, and what it knows of them: the values that its training images have.

    A row is, one attribute after another, the shares of `AGES`, a one for the sex and a one for the localization; each
    followed by a one if it is unknown. A value that no training image has is unknown.

    Attributes:
        fusion: how they meet the image, late or fused: `model.metadata`.
        sex: its values, as of `fold`.
        localization: its values, as of `fold`.
    """

    fusion: Literal["late", "fused"]
    sex: list[Text]
    localization: list[Text]

    @property
    def numbers(self) -> list[tuple[str, str]]:
        """What each number of a row tells: one of `COLUMNS`, and which value of it."""
        values = map(str, AGES), self.sex, self.localization
        return [(column, value) for column, known in zip(COLUMNS, values) for value in [*known, UNKNOWN]]

    def places(self, other: "MetadataEncoding") -> list[int]:
        """For each number of a row of another encoding the one here that tells the same; else that of unknown."""
        here = {number: place for place, number in enumerate(self.numbers)}
        return [here.get((column, value), here[column, UNKNOWN]) for column, value in other.numbers]

    @property
    def widths(self) -> tuple[int, int, int]:
        """Numbers of a row for each of `COLUMNS`."""
        return len(AGES) + 1, len(self.sex) + 1, len(self.localization) + 1

    @property
    def unknown(self) -> np.ndarray:
        """The row of an image of which nothing is known, float32."""
        return np.concatenate([np.eye(width, dtype=np.float32)[-1] for width in self.widths])

    def encode(self, images: pd.DataFrame) -> np.ndarray:
        """Rows of numbers, float32, shape (n, `sum(widths)`).

        Args:
            images: columns age (years, NaN where unknown), sex and localization.
        """
        ages = np.clip(images[["age"]].to_numpy(float), AGES[0], AGES[-1])
        shares = np.nan_to_num(1 - abs(ages - AGES) / np.diff(AGES)[0]).clip(min=0)
        columns = [shares, *(_one_hot(images[name], getattr(self, name)) for name in COLUMNS[1:])]
        flagged = [np.column_stack([each, ~each.any(axis=1)]) for each in columns]
        return np.concatenate(flagged, axis=1, dtype=np.float32)

    def lose(self, random: np.random.Generator, rows: np.ndarray) -> np.ndarray:
        """Rows of which some attributes are unknown, at random: `LOSE_ALL`, `LOSE_EACH`."""
        lost = random.random((len(rows), len(COLUMNS))) < LOSE_EACH
        lost |= random.random((len(rows), 1)) < LOSE_ALL
        return np.where(np.repeat(lost, self.widths, axis=1), self.unknown, rows)

    def unheard_of(self, images: pd.DataFrame) -> list[str]:
        """The values of sex and localization that no training image has, each as `localization 'knee'`."""
        return [
            f"{name} {value!r}"
            for name in COLUMNS[1:]
            for value in sorted({fold(value) for value in images[name]} - {UNKNOWN, *getattr(self, name)})
        ]


def _one_hot(cells: pd.Series, values: list[str]) -> np.ndarray:
    return np.array([fold(cell) for cell in cells], object)[:, None] == np.array(values, object)[None]


def widest(encodings: Sequence[MetadataEncoding]) -> MetadataEncoding:
    """The encoding that knows what any of them does; all of one fusion."""
    values = [sorted({value for each in encodings for value in getattr(each, name)}) for name in COLUMNS[1:]]
    return MetadataEncoding(encodings[0].fusion, *values)


def learn_encoding(fusion: Literal["none", "late", "fused"], images: pd.DataFrame) -> MetadataEncoding | None:
    """The encoding that knows the values of the training images; None where `fusion` is none."""
    if fusion == "none":
        return None
    values = [sorted({fold(cell) for cell in images[name]} - {UNKNOWN}) for name in COLUMNS[1:]]
    return MetadataEncoding(fusion, *values)
