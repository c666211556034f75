"""What metrics/details.json holds, as types: of what others read, docs/details.schema.json is made from them."""

from pathlib import Path
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, TypeAdapter, model_validator
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from stages.checks import Count, Flag, Float, Share, Text, Whole, relation
from stages.classifier.calibration import Calibration
from stages.files import read_json, write_json

SCHEMA = Path("docs/details.schema.json")

Number = TypeVar("Number")
Metrics = TypeVar("Metrics")
Estimates = TypeVar("Estimates")
Item = TypeVar("Item")
Headline = TypeVar("Headline")
Two = Annotated[list[Item], Field(min_length=2, max_length=2)]
Attribute = Literal["age", "sex", "localization", "dataset", "dx_type", "skin_type"]
Rate = Literal["sensitivity", "specificity", "auroc"]


def optional(what: str) -> Any:
    """A field that need not be there, with what the schema says of it."""
    return Field(default=None, description=what)


def said(what: str, **limits: Any) -> Any:
    """A field that must be there, with what the schema says of it."""
    return Field(description=what, **limits)


ConfusionMatrix = Annotated[
    list[list[Whole]],
    said(
        "Counts of images: a row for each true class, a column for each that was decided for, in the order of classes."
    ),
]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Estimate(_Model):
    """A number of the test images with its score interval, whose standard error is that of a bootstrap over lesions.

    Both are null where the number does not exist, such as the sensitivity where nothing is malignant.
    """

    value: Float | None = said("The number.")
    interval: Two[Float] | None = said("Lower and upper end, at the confidence level of the file.")

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"properties": {"value": {"type": "number"}, "interval": {"type": "array"}}},
                {"properties": {"value": {"type": "null"}, "interval": {"type": "null"}}},
            ]
        }
    )

    @model_validator(mode="after")
    def _check_both(self) -> Self:
        if (self.value is None) != (self.interval is None):
            raise relation(f"interval is {self.interval}; it must be null where value is, which is {self.value}")
        return self


class _Accuracy(_Model, Generic[Number]):
    accuracy: Number = said("Images whose most probable class is the right one.")
    balanced_accuracy: Number = said("The same in each class, mean over the classes.")


class BinaryDecisions(_Accuracy[Number]):
    """For 2 classes: the positive class is malignant. A number that does not exist is null."""

    sensitivity: Number = said("Malignant images whose most probable class is malignant.")
    specificity: Number = said("Benign images whose most probable class is benign.")
    precision: Number = said("Of the images predicted malignant, those that are; null where there are none.")
    f1: Number = said("Harmonic mean of precision and sensitivity.")


class BinaryMetrics(BinaryDecisions[Number]):
    """For 2 classes: the positive class is malignant. A number that does not exist is null."""

    auroc: Number = said("Area under the ROC curve of malignancy.")
    auprc: Number = said("Average precision of malignancy: the step-wise sum, not the trapezoid.")


class DiagnosisDecisions(_Accuracy[Number]):
    """For diagnoses: means over the diagnoses that have images. A number that does not exist is null."""

    macro_sensitivity: Number = said("Mean over the diagnoses of the sensitivity of each against the rest.")
    macro_specificity: Number = said("Mean over the diagnoses of the specificity of each against the rest.")
    macro_precision: Number = said("Mean over the diagnoses of the precision of each against the rest.")
    macro_f1: Number = said("Mean over the diagnoses of the F1 of each against the rest.")


class DiagnosisMetrics(DiagnosisDecisions[Number]):
    """For diagnoses: means over the diagnoses that have images. A number that does not exist is null."""

    malignant_auroc: Number = said("Area under the ROC curve of the summed probability of the malignant diagnoses.")
    macro_auroc: Number = said("Mean over the diagnoses of the AUROC of each against the rest.")
    macro_auprc: Number = said("Mean over the diagnoses of the average precision of each against the rest.")


class CalibrationErrors(_Model):
    """Calibration errors of the test images."""

    ece: Estimate = said(
        "Expected calibration error over 15 bins of equal width of the most probable class's probability; the lower "
        "end of its interval is 0 where chance alone makes an error so large."
    )
    brier: Estimate = said("Mean squared error: of the probability of malignancy, or summed over the diagnoses.")
    nll: Estimate = said("Mean negative log-likelihood in nats.")


class AtThreshold(CalibrationErrors):
    """What the headline holds for any number of classes."""

    sensitivity_at_threshold: Estimate = said("Malignant images that calibration.threshold calls malignant.")
    specificity_at_threshold: Estimate = said("Benign images that calibration.threshold calls benign.")


class BinaryHeadline(BinaryMetrics[Estimate], AtThreshold):
    """For 2 classes, by the most probable one: what metrics/evaluation.json holds the values of."""


class DiagnosisHeadline(DiagnosisMetrics[Estimate], AtThreshold):
    """For diagnoses, by the most probable one: what metrics/evaluation.json holds the values of."""


class Validation(_Model, Generic[Metrics]):
    """The validation images."""

    images: Whole = said("Validation images.")
    lesions: Whole = said("Validation lesions.")
    metrics: Metrics = said("By the most probable class.")
    confusion_matrix: ConfusionMatrix


class AtPrevalence(_Model):
    """Predictive values at one prevalence."""

    prevalence: Share = said("Share of images that are malignant.")
    ppv: Estimate = said("Positive predictive value there.")
    npv: Estimate = said("Negative predictive value there.")


class OperatingPoint(_Model):
    """A decision threshold, chosen on the validation images, and what it gives on the test images."""

    threshold: Share = said("An image is called malignant at or above this calibrated probability of malignancy.")
    sensitivity: Estimate = said("Malignant images that are called malignant.")
    specificity: Estimate = said("Benign images that are called benign.")
    ppv: Estimate = said("Of the images called malignant, those that are, at the prevalence of the test images.")
    npv: Estimate = said("Of the images called benign, those that are, at the prevalence of the test images.")
    at_prevalence: list[AtPrevalence] = said("By Bayes' theorem, an entry for each of evaluation.prevalences.")


class OperatingPoints(_Model):
    """Decision thresholds."""

    target_sensitivity: OperatingPoint = said("In use; calibration.target_sensitivity is reached in validation.")
    youden: OperatingPoint = said("For comparison: of the largest sum of sensitivity and specificity in validation.")


class SensitivityAt(_Model):
    """The sensitivity at one level of specificity."""

    specificity: Share = said("The level.")
    sensitivity: Estimate = said("The sensitivity there.")


class SpecificityAt(_Model):
    """The specificity at one level of sensitivity."""

    sensitivity: Share = said("The level.")
    specificity: Estimate = said("The specificity there.")


class Bin(_Model):
    """One bin of a reliability diagram."""

    predicted: Share = said("Mean probability of malignancy.")
    observed: Estimate = said("Share of the images that are malignant.")
    images: Count = said("Images in the bin.")


class CalibrationQuality(_Model):
    """Calibration of the probabilities."""

    before: CalibrationErrors = said("Before temperature scaling.")
    after: CalibrationErrors = said("After temperature scaling.")
    reliability: dict[Literal["before", "after"], list[Bin]] = said(
        "At most 10 bins of as many test images each, by rising probability.", min_length=2
    )


class Group(_Model):
    """One group of images."""

    name: Text = said("The group.")
    images: Whole = said("Its images.")
    lesions: Whole = said("Its lesions.")
    malignant_lesions: Whole = said("Its malignant lesions.")
    benign_lesions: Whole = said("Its benign lesions.")
    sensitivity: Estimate = said("At calibration.threshold.")
    specificity: Estimate = said("At calibration.threshold.")
    auroc: Estimate = said("Area under the ROC curve of malignancy.")
    judged: dict[Rate, Flag] = said(
        "Whether enough lesions speak: 10 malignant ones for sensitivity, 10 benign for specificity, both for AUROC.",
        min_length=3,
    )


class Gap(_Model):
    """The two groups that lie furthest apart, of those that have enough lesions."""

    highest: Text = said("The group with the higher number.")
    lowest: Text = said("The group with the lower number.")
    difference: Estimate = said("Its interval does not account for its having been picked as the widest.")


class Subgroups(_Model):
    """The test images by one attribute."""

    groups: list[Group] = said("The groups, that with the most images first.")
    worst_gap: dict[Rate, Gap | None] = said("Null where fewer than two groups have enough lesions.", min_length=3)


class Assessment(_Model, Generic[Headline]):
    """The test images: everything that is said of them."""

    images: Whole = said("Test images.")
    lesions: Whole = said("Test lesions.")
    malignant_images: Whole = said("Test images of malignant lesions.")
    malignant_lesions: Whole = said("Malignant test lesions.")
    metrics: Headline = said("The headline metrics.")
    confusion_matrix: ConfusionMatrix
    operating_points: OperatingPoints
    sensitivity_at_specificity: list[SensitivityAt] = said("The highest of any threshold with such a specificity.")
    specificity_at_sensitivity: list[SpecificityAt] = said("The highest of any threshold with such a sensitivity.")
    calibration: CalibrationQuality
    subgroups: dict[Attribute, Subgroups] = said(
        "Sensitivity, specificity and AUROC of malignancy in groups of images: by age in years, in bands; by sex; by "
        "localization; by the source that the column dataset names; by reference standard, histopathology or another; "
        "by skin type, where the dataset has it.",
        min_length=5,
    )
    not_assessable: list[Text] = said("What the dataset does not allow to be assessed, one line each.")


_DECIDED = (
    "The same by the class of the lowest expected cost in place of the most probable one; not there where "
    "calibration.costs makes them the same."
)


class BinaryAssessment(Assessment[BinaryHeadline]):
    """The test images for 2 classes."""

    decided: BinaryDecisions[Estimate] | None = optional(_DECIDED)


class Malignancy(_Model):
    """The predictions read as of benign and malignant, whose probability is the sum over the malignant diagnoses."""

    metrics: BinaryHeadline = said("What metrics would hold of a model of 2 classes.")


class OneAgainstRest(_Model):
    """One diagnosis against the rest; all null where it has no images."""

    sensitivity: Float | None = said("Images of the class that are predicted so.")
    specificity: Float | None = said("Images of other classes that are not predicted so.")
    precision: Float | None = said("Of the images predicted so, those that are.")
    f1: Float | None = said("Harmonic mean of precision and sensitivity.")
    auroc: Float | None = said("Area under the ROC curve of the class against the rest.")
    auprc: Float | None = said("Average precision of the class against the rest.")


class DiagnosisAssessment(Assessment[DiagnosisHeadline]):
    """The test images for diagnoses."""

    decided: DiagnosisDecisions[Estimate] | None = optional(_DECIDED)
    malignancy: Malignancy
    classes: dict[Text, OneAgainstRest] = said("Each against the rest, by the class decided for.", min_length=3)


class MajorityClass(_Model, Generic[Estimates]):
    """Always the most frequent class of the training images."""

    name: Annotated[Text, Field(alias="class")] = said("That class.")
    metrics: Estimates = said("Its metrics.")


class Metadata(_Model, Generic[Estimates]):
    """A logistic regression, fitted on the training images."""

    columns: list[Text] = said("The columns of the metadata table that it sees.")
    metrics: Estimates = said("Its metrics.")
    image_adds: Estimates = said("The classifier's metrics less these, with paired intervals.")


class ImageAlone(_Model, Generic[Estimates]):
    """The classifier where age, sex and localization are unknown, which it was trained for as well."""

    metrics: Estimates = said("Its metrics.")
    metadata_add: Estimates = said("The classifier's metrics less these, with paired intervals.")


class Baselines(_Model, Generic[Estimates]):
    """What is reached on the test images without looking at them, or at nothing else."""

    majority_class: MajorityClass[Estimates]
    metadata: Metadata[Estimates]
    image_alone: ImageAlone[Estimates] | None = optional("Not there where the classifier takes the image alone.")


class Pair(_Model):
    """Two images of different lesions that look alike."""

    image_ids: Two[Text] = said("The two images.")
    splits: Two[Literal["train", "val", "test"]] = said("Their splits.")
    distance: Whole = said("Distance of their hashes, in bits.")


class NearDuplicates(_Model):
    """Images of different lesions in different splits that look alike."""

    hash: Text = said("The perceptual hash of an image.")
    largest_distance: Whole = said("The largest distance of two hashes that counts, in bits.")
    pairs: list[Pair] = said("The pairs.")


class Leakage(_Model):
    """What the splits share: the audit of metrics/split.json."""

    lesions_in_more_than_one_split: Whole = said("Lesions with images in more than one split.")
    known_duplicates_apart: list[Two[Text]] = said("Published pairs of images of one lesion under two ids.")
    near_duplicates: NearDuplicates


class ToldSources(_Model):
    """How well a logistic regression tells the sources of validation and test images, cross-validated by lesion."""

    sources: list[Text] = said("Those that are told apart, with enough lesions among these images.", min_length=2)
    chance: Share = said("Balanced accuracy of guessing.")
    files: Share = said("From the size, the shape and the compression of the images' files.")
    properties: Share = said("From sharpness, contrast, mean colour and dark corners.")
    features: Share = said("From what the network's last layer sees.")


class SourceMix(_Model):
    """Whether the source of a lesion tells its diagnosis."""

    lesions: dict[Text, dict[Text, Whole]] = said("Of each diagnosis in each source, all splits together.")
    cramers_v: Share | None = said("Association of diagnosis and source; null for one diagnosis or source.")
    lacks: dict[Text, list[Text]] = said("Diagnoses that a source has next to none of, though the others' mix has.")


class AuditedSources(SourceMix):
    """What `split` says of several datasets."""

    near_duplicates: list[Two[Text]]


class SplitAudit(BaseModel):
    """What `evaluate` needs of data/split.json."""

    leakage: Leakage
    sources: AuditedSources | None = None


class Sources(SourceMix):
    """Several datasets: whether the source of a lesion tells its diagnosis, and an image its source."""

    told: ToldSources | None = said("Null where fewer than two sources have enough of these images.")


class Fold(_Model):
    """One run of a cross-validation."""

    test_fold: Whole = said("The fold that it tested.")
    revision: Text = said("Its commit or experiment.")
    calibration: Calibration = said("With which its test images were judged.")


class Promise(_Model):
    """A promise of the model, held against another dataset."""

    name: Literal[
        "sensitivity_at_threshold", "auroc", "malignant_auroc", "macro_auroc", "mean_probability", "calibration_slope"
    ] = said("What is promised; calibration_slope is that of malignancy on the logit of its probability.")
    status: Literal["holds", "broken", "cannot be told"] = said("Cannot be told: from so few lesions.")
    promised: Float | None = said(
        "The target, the number of the model's own test images, or what makes calibrated probabilities; null where its "
        "own test images are not known."
    )
    found: Estimate = said("The number there.")
    difference: Estimate = said("Found less promised; the interval allows for chance in both.")
    sentence: Text = said("All this in words.")


class Judgement(_Model):
    """What is said of the model's promises."""

    promises: list[Promise] = said("Each promise.")
    summary: Text = said("One sentence of all.")


class Verdict(Judgement):
    """Which of the model's promises hold on this dataset."""

    remarks: list[Text] = said("What else is to be known of the dataset, one sentence each.")


class Judged(_Model):
    """The lesions that were not recalibrated on, with one calibration."""

    metrics: dict[Text, Estimate] = said("What test.metrics would hold of them.")
    verdict: Judgement = said("The promises there.")


class Recalibration(_Model):
    """A calibration that was fitted on a part of this dataset, and judged on the rest."""

    fraction: Share = said("Share of the malignant and of the benign lesions that it was fitted on.")
    calibration: Calibration = said("What was fitted.")
    images: Whole = said("Images of the rest.")
    lesions: Whole = said("Lesions of the rest.")
    malignant_lesions: Whole = said("Malignant lesions of the rest.")
    before: Judged = said("The rest with the calibration that test was judged with.")
    after: Judged = said("The same rest with the new one.")


class _Details(_Model, Generic[Metrics, Headline, Estimates]):
    confidence: Share = said("Confidence level of every interval, as 0.95.")
    bootstrap_replicates: Count = said("How often lesions were drawn for the intervals.")
    calibration: Calibration = said(
        "What models/calibration.json holds, frozen since; of pooled folds the median of each number."
    )
    folds: list[Fold] | None = optional(
        "Not there but in what `python -m stages pool` writes: test then means all folds."
    )
    leakage: Leakage | None = said("What the splits share; null for another dataset.")
    sources: Sources | None = optional("Not there where the images are of one dataset.")
    verdict: Verdict | None = optional("Of another dataset only.")
    recalibration: Recalibration | None = optional("Of another dataset, if asked for.")
    val: Validation[Metrics] | None = said("What the epoch, the temperature and the thresholds were chosen on.")
    test: Headline
    baselines: Baselines[Estimates] | None = said("Reached without looking at the images; null for another dataset.")


class BinaryDetails(_Details[BinaryMetrics[Float | None], BinaryAssessment, BinaryMetrics[Estimate]]):
    """For 2 classes."""

    classes: tuple[Literal["benign"], Literal["malignant"]] = said("In the order of the network's outputs.")


class DescribedDiagnosis(_Model):
    """One diagnosis of the taxonomy."""

    name: Text = said("Its full name.")
    malignant: Flag = said("Whether its probability counts towards that of malignancy.")


class DiagnosisDetails(_Details[DiagnosisMetrics[Float | None], DiagnosisAssessment, DiagnosisMetrics[Estimate]]):
    """For diagnoses."""

    classes: list[Text] = said("Codes of the diagnoses, in the order of the network's outputs.", min_length=3)
    taxonomy: dict[Text, DescribedDiagnosis] = said("What each diagnosis is.", min_length=3)

    @model_validator(mode="after")
    def _check_codes(self) -> Self:
        for name, codes in (("taxonomy", self.taxonomy), ("test.classes", self.test.classes)):
            if sorted(codes) != sorted(self.classes):
                raise relation(f"{name} is of {', '.join(codes)}; it must be of {', '.join(self.classes)}")
        return self


def _kind_of_classes(content: Any) -> str:
    classes = content.get("classes") if isinstance(content, dict) else None
    return "diagnoses" if isinstance(classes, list) and len(classes) > 2 else "2 classes"


Details = Annotated[
    Annotated[BinaryDetails, Tag("2 classes")] | Annotated[DiagnosisDetails, Tag("diagnoses")],
    Discriminator(_kind_of_classes),
]


def read_details(path: Path) -> dict:
    """Read the results of `evaluate`.

    Raises:
        InputError: the file is missing, damaged, or not as docs/details.schema.json says.
    """
    return read_json(path, Details).model_dump(mode="json", by_alias=True, exclude_unset=True)


class _Untitled(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def details_schema() -> JsonSchemaValue:
    """The JSON schema of metrics/details.json."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "metrics/details.json",
        "description": (
            "The results of `evaluate` and, with null for val, baselines and leakage, of `python -m stages validate` "
            "on another dataset. Numbers have 6 decimals; shares are from 0 to 1."
        ),
        **TypeAdapter(Details).json_schema(schema_generator=_Untitled),
    }


def write_schema() -> None:
    """Write docs/details.schema.json, as `make schema` does."""
    write_json(SCHEMA, details_schema())
