"""Taxonomies: the diagnoses of a dataset, which of them are malignant, and the classes that a network tells apart.

A taxonomy is a YAML file that `data.taxonomy` names, those in data/taxonomies/ or one's own. `prepare` copies it to the
images and `train` into `model.json`, so that whatever comes after knows it from these.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pydantic.dataclasses
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from stages.checks import Flag, relation
from stages.config import ALL_DIAGNOSES, Text, read_yaml
from stages.errors import InputError

MOST_DIAGNOSES = 100
# Codes become columns of tables and labels in pictures, where a longer one would have no room.
_CODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,15}")


def fold(label: str) -> str:
    """A label as it is compared: `Seborrheic_Keratosis` is `seborrheic keratosis`."""
    return " ".join(label.lower().replace("_", " ").split())


Name = Annotated[Text, Field(max_length=100)]


@pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Diagnosis:
    """One diagnosis.

    Attributes:
        name: its full name.
        malignant: whether it is.
        aliases: what other tables call it, in any case and with spaces or underscores.
    """

    name: Name
    malignant: Flag
    aliases: list[Name] = field(default_factory=list)


def _check_codes(content: Any) -> Any:
    if not isinstance(content, dict) or not 2 <= len(content) <= MOST_DIAGNOSES:
        raise ValueError(f"a mapping of 2 to {MOST_DIAGNOSES} codes, each to its name, malignant and aliases")
    for code in content:
        if not isinstance(code, str) or not _CODE.fullmatch(code):
            rule = "at most 16 letters, digits, '_' and '-', beginning with a letter or digit; numbers in quotes"
            raise relation(f"{code!r} is no code of a diagnosis; it must be {rule}")
    return content


def _check_diagnoses(diagnoses: dict[str, Diagnosis]) -> dict[str, Diagnosis]:
    meanings: dict[str, str] = {}
    for code, diagnosis in diagnoses.items():
        for label in (code, *diagnosis.aliases):
            if (other := meanings.setdefault(fold(label), code)) != code:
                raise relation(f"{code} and {other} are both called {label!r}; each label must mean one diagnosis")
    kinds = {diagnosis.malignant for diagnosis in diagnoses.values()}
    if len(kinds) == 1:
        kind = "malignant" if kinds == {True} else "benign"
        raise relation(f"all diagnoses are {kind}; one at least must be malignant, and one benign")
    return dict(sorted(diagnoses.items()))


# The diagnoses by their codes, in the order of these, whatever the file's is.
Taxonomy = Annotated[dict[str, Diagnosis], BeforeValidator(_check_codes), AfterValidator(_check_diagnoses)]


@dataclass(frozen=True)
class Classes:
    """What a network tells apart: benign and malignant, or the diagnoses of a taxonomy.

    Attributes:
        names: in the order of the outputs.
        malignant: those whose probabilities add up to the probability of malignancy.
    """

    names: tuple[str, ...]
    malignant: tuple[str, ...]

    @property
    def are_diagnoses(self) -> bool:
        """Whether they are more than benign and malignant."""
        return self != BENIGN_OR_MALIGNANT

    @property
    def is_malignant(self) -> np.ndarray:
        """bool, shape (classes,)."""
        return np.isin(self.names, self.malignant)


BENIGN_OR_MALIGNANT = Classes(("benign", "malignant"), ("malignant",))


def read_taxonomy(path: Path) -> dict[str, Diagnosis]:
    """Read a taxonomy.

    Raises:
        InputError: the file is missing or is no taxonomy; each entry that is wrong is named.
    """
    return read_yaml(path, Taxonomy, "; data.taxonomy must name a YAML file of diagnoses, as those in data/taxonomies/")


def diagnoses_of(taxonomy: dict[str, Diagnosis]) -> Classes:
    """The diagnoses as classes; of two diagnoses, of which one is malignant, benign and malignant."""
    if len(taxonomy) == 2:
        return BENIGN_OR_MALIGNANT
    return Classes(tuple(taxonomy), tuple(code for code, diagnosis in taxonomy.items() if diagnosis.malignant))


def classes_of(taxonomy: dict[str, Diagnosis], num_classes: int | str) -> Classes:
    """The classes that `model.num_classes` stands for.

    Raises:
        InputError: the taxonomy has not so many diagnoses.
    """
    if num_classes == 2:
        return BENIGN_OR_MALIGNANT
    if num_classes not in (ALL_DIAGNOSES, len(taxonomy)):
        raise InputError(
            f"model.num_classes is {num_classes}; it must be 2, for benign and malignant, or {len(taxonomy)} or "
            f"'{ALL_DIAGNOSES}', for those of data.taxonomy: {', '.join(taxonomy)}"
        )
    return diagnoses_of(taxonomy)


def numbers_of(dx: Iterable[str], taxonomy: dict[str, Diagnosis], classes: Classes) -> np.ndarray:
    """The number of the class that each diagnosis belongs to, int64, shape (n,)."""
    names = {
        code: code if classes.are_diagnoses else classes.names[diagnosis.malignant]
        for code, diagnosis in taxonomy.items()
    }
    return np.array([classes.names.index(names[code]) for code in dx], np.int64)


def translated(taxonomy: dict[str, Diagnosis], others: dict[str, Diagnosis]) -> dict[str, Diagnosis]:
    """A taxonomy that also knows its diagnoses by the codes, names and aliases that they have in another one."""
    meanings, result = meanings_of(taxonomy), dict(taxonomy)
    for code, other in others.items():
        labels = [code, *other.aliases, other.name]
        if known := next((meanings[fold(label)] for label in labels if fold(label) in meanings), None):
            new = [label for label in labels if fold(label) not in meanings]
            result[known] = replace(result[known], aliases=[*result[known].aliases, *new])
            meanings |= {fold(label): known for label in new}
    return result


def meanings_of(taxonomy: Mapping[str, Diagnosis]) -> dict[str, str]:
    """The diagnosis that each label stands for, by the label as of `fold`: codes, full names and aliases."""
    full = {fold(diagnosis.name): code for code, diagnosis in taxonomy.items()}
    return full | {fold(label): code for code, diagnosis in taxonomy.items() for label in (code, *diagnosis.aliases)}
