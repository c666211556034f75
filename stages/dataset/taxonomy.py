"""The diagnoses of HAM10000, which of them are malignant, and the classes of a network.

Source: Tschandl et al., Scientific Data 5:180161, 2018. Actinic keratoses and Bowen's disease (akiec) are
intraepithelial carcinoma and count as malignant.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Diagnosis:
    """One diagnosis: its full name, and whether it is malignant."""

    title: str
    malignant: bool


DIAGNOSES = {
    "akiec": Diagnosis("actinic keratosis / Bowen's disease", True),
    "bcc": Diagnosis("basal cell carcinoma", True),
    "bkl": Diagnosis("benign keratosis", False),
    "df": Diagnosis("dermatofibroma", False),
    "mel": Diagnosis("melanoma", True),
    "nv": Diagnosis("melanocytic nevus", False),
    "vasc": Diagnosis("vascular lesion", False),
}
# What the ISIC challenges of 2019 and 2020 call them, in lower case. HAM10000's bkl are seborrheic keratoses, solar
# lentigines and lichen-planus like keratoses. A squamous cell carcinoma is none of the seven: its user must say.
ISIC_DIAGNOSES = {
    "ak": "akiec",
    "actinic keratosis": "akiec",
    "basal cell carcinoma": "bcc",
    "dermatofibroma": "df",
    "lichenoid keratosis": "bkl",
    "melanoma": "mel",
    "nevus": "nv",
    "seborrheic keratosis": "bkl",
    "solar lentigo": "bkl",
    "vascular lesion": "vasc",
}
MALIGNANT = tuple(code for code, diagnosis in DIAGNOSES.items() if diagnosis.malignant)


def class_names(num_classes: int) -> tuple[str, ...]:
    """The classes in the order of a network's outputs: benign and malignant for 2, the diagnoses for 7."""
    return {2: ("benign", "malignant"), 7: tuple(DIAGNOSES)}[num_classes]


def class_of(dx: str, num_classes: int) -> str:
    """The class that a diagnosis belongs to for a network of `num_classes` classes."""
    return dx if num_classes == 7 else class_names(2)[DIAGNOSES[dx].malignant]


def malignant_classes(num_classes: int) -> tuple[str, ...]:
    """The classes whose probabilities add up to the probability of malignancy."""
    return MALIGNANT if num_classes == 7 else ("malignant",)
