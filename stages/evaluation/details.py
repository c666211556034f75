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
Headline = TypeVar("Headline")
Diagnosis = Literal["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]
Attribute = Literal["age", "sex", "localization", "dataset", "dx_type"]
Rate = Literal["sensitivity", "specificity", "auroc"]
Diagnoses = tuple[
    Literal["akiec"], Literal["bcc"], Literal["bkl"], Literal["df"], Literal["mel"], Literal["nv"], Literal["vasc"]
]
ConfusionMatrix = list[list[Whole]]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Estimate(_Model):
    """A number of the test images with its score interval, whose standard error is that of a bootstrap over lesions.

    Both are null where the number does not exist, such as the sensitivity where nothing is malignant.
    """

    value: Float | None
    """The number."""
    interval: Annotated[list[Float], Field(min_length=2, max_length=2)] | None
    """Lower and upper end, at the confidence level of the file."""

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


class BinaryMetrics(_Model, Generic[Number]):
    """For 2 classes: the positive class is malignant. A number that does not exist is null."""

    accuracy: Number
    """Images whose most probable class is the right one."""
    balanced_accuracy: Number
    """Mean over the classes of the share of their images whose most probable class is the right one."""
    sensitivity: Number
    """Malignant images whose most probable class is malignant."""
    specificity: Number
    """Benign images whose most probable class is benign."""
    precision: Number
    """Of the images whose most probable class is malignant, those that are; 0 where there are none."""
    f1: Number
    """Harmonic mean of precision and sensitivity."""
    auroc: Number
    """Area under the ROC curve of malignancy."""
    auprc: Number
    """Average precision of malignancy: the step-wise sum, not the trapezoid."""


class DiagnosisMetrics(_Model, Generic[Number]):
    """For 7 classes: means over the diagnoses that have images. A number that does not exist is null."""

    accuracy: Number
    """Images whose most probable class is the right one."""
    balanced_accuracy: Number
    """Mean over the classes of the share of their images whose most probable class is the right one."""
    malignant_auroc: Number
    """Area under the ROC curve of malignancy, whose probability is the sum of those of akiec, bcc and mel."""
    macro_sensitivity: Number
    """Mean over the diagnoses of the sensitivity of each against the rest."""
    macro_specificity: Number
    """Mean over the diagnoses of the specificity of each against the rest."""
    macro_precision: Number
    """Mean over the diagnoses of the precision of each against the rest."""
    macro_f1: Number
    """Mean over the diagnoses of the F1 of each against the rest."""
    macro_auroc: Number
    """Mean over the diagnoses of the AUROC of each against the rest."""
    macro_auprc: Number
    """Mean over the diagnoses of the average precision of each against the rest."""


class CalibrationErrors(_Model):
    """Calibration errors of the test images."""

    ece: Estimate
    """Expected calibration error over 15 bins of equal width of the most probable class's probability; the lower end of
    its interval is 0 where chance alone makes an error so large."""
    brier: Estimate
    """Mean squared error: of the probability of malignancy for 2 classes, summed over the classes for 7."""
    nll: Estimate
    """Mean negative log-likelihood in nats."""


class AtThreshold(CalibrationErrors):
    """What the headline holds for any number of classes."""

    sensitivity_at_threshold: Estimate
    """Malignant images whose probability of malignancy is at least calibration.threshold."""
    specificity_at_threshold: Estimate
    """Benign images whose probability of malignancy is below calibration.threshold."""


class BinaryHeadline(BinaryMetrics[Estimate], AtThreshold):
    """For 2 classes: what metrics/evaluation.json holds the values of."""


class DiagnosisHeadline(DiagnosisMetrics[Estimate], AtThreshold):
    """For 7 classes: what metrics/evaluation.json holds the values of."""


class Validation(_Model, Generic[Metrics]):
    """The validation images."""

    images: Whole
    """Validation images."""
    lesions: Whole
    """Validation lesions."""
    metrics: Metrics
    """By the most probable class."""
    confusion_matrix: ConfusionMatrix
    """Counts of images: a row for each true class, a column for each most probable class, in the order of classes."""


class AtPrevalence(_Model):
    """Predictive values at one prevalence."""

    prevalence: Share
    """Share of images that are malignant."""
    ppv: Estimate
    """Positive predictive value there."""
    npv: Estimate
    """Negative predictive value there."""


class OperatingPoint(_Model):
    """A decision threshold, chosen on the validation images, and what it gives on the test images."""

    threshold: Share
    """An image is called malignant at or above this calibrated probability of malignancy."""
    sensitivity: Estimate
    """Malignant images that are called malignant."""
    specificity: Estimate
    """Benign images that are called benign."""
    ppv: Estimate
    """Of the images called malignant, those that are, at the prevalence of the test images."""
    npv: Estimate
    """Of the images called benign, those that are, at the prevalence of the test images."""
    at_prevalence: list[AtPrevalence]
    """Predictive values at other prevalences by Bayes' theorem, one entry for each of evaluation.prevalences."""


class OperatingPoints(_Model):
    """Decision thresholds."""

    target_sensitivity: OperatingPoint
    """The threshold in use: it reaches calibration.target_sensitivity on the validation images."""
    youden: OperatingPoint
    """For comparison: the threshold with the largest sum of sensitivity and specificity on the validation images."""


class SensitivityAt(_Model):
    """The sensitivity at one level of specificity."""

    specificity: Share
    """The level."""
    sensitivity: Estimate
    """The sensitivity there."""


class SpecificityAt(_Model):
    """The specificity at one level of sensitivity."""

    sensitivity: Share
    """The level."""
    specificity: Estimate
    """The specificity there."""


class Bin(_Model):
    """One bin of a reliability diagram."""

    predicted: Share
    """Mean probability of malignancy."""
    observed: Estimate
    """Share of the images that are malignant."""
    images: Count
    """Images in the bin."""


class Reliability(_Model):
    """What a reliability diagram draws: at most 10 bins of as many test images each, by rising probability."""

    before: list[Bin]
    """Before temperature scaling."""
    after: list[Bin]
    """After temperature scaling."""


class CalibrationQuality(_Model):
    """Calibration of the probabilities."""

    before: CalibrationErrors
    """Before temperature scaling."""
    after: CalibrationErrors
    """After temperature scaling."""
    reliability: Reliability
    """What a reliability diagram draws."""


class Group(_Model):
    """One group of images."""

    name: Text
    """The group."""
    images: Whole
    """Its images."""
    lesions: Whole
    """Its lesions."""
    malignant_lesions: Whole
    """Its malignant lesions."""
    benign_lesions: Whole
    """Its benign lesions."""
    sensitivity: Estimate
    """At calibration.threshold."""
    specificity: Estimate
    """At calibration.threshold."""
    auroc: Estimate
    """Area under the ROC curve of malignancy."""
    judged: Annotated[dict[Rate, Flag], Field(min_length=3)]
    """Whether the group has enough lesions for the number to say anything: 10 malignant ones for sensitivity, 10 benign
    ones for specificity, both for AUROC."""


class Gap(_Model):
    """The two groups that lie furthest apart, of those that have enough lesions."""

    highest: Text
    """The group with the higher number."""
    lowest: Text
    """The group with the lower number."""
    difference: Estimate
    """Their difference; its interval does not account for its having been picked as the widest."""


class Subgroups(_Model):
    """The test images by one attribute."""

    groups: list[Group]
    """The groups, that with the most images first."""
    worst_gap: Annotated[dict[Rate, Gap | None], Field(min_length=3)]
    """The widest gap of each metric; null where fewer than two groups have enough lesions."""


class Assessment(_Model, Generic[Headline]):
    """The test images: everything that is said of them."""

    images: Whole
    """Test images."""
    lesions: Whole
    """Test lesions."""
    malignant_images: Whole
    """Test images of malignant lesions."""
    malignant_lesions: Whole
    """Malignant test lesions."""
    metrics: Headline
    """The headline metrics."""
    confusion_matrix: ConfusionMatrix
    """Counts of images: a row for each true class, a column for each most probable class, in the order of classes."""
    operating_points: OperatingPoints
    """Decision thresholds."""
    sensitivity_at_specificity: list[SensitivityAt]
    """The highest sensitivity of any threshold of the test images with at least a given specificity."""
    specificity_at_sensitivity: list[SpecificityAt]
    """The highest specificity of any threshold of the test images with at least a given sensitivity."""
    calibration: CalibrationQuality
    """Calibration of the probabilities before and after temperature scaling."""
    subgroups: Annotated[dict[Attribute, Subgroups], Field(min_length=5)]
    """Sensitivity, specificity and AUROC of malignancy in groups of images: by age in years, in bands; by sex; by
    localization; by the source that the column dataset names; by reference standard, histopathology against the
    rest."""
    not_assessable: list[Text]
    """What the dataset does not allow to be assessed, one line each."""


class Malignancy(_Model):
    """The predictions read as those of the classes benign and malignant."""

    metrics: BinaryHeadline
    """What metrics would hold of a model of 2 classes with these probabilities, at calibration.threshold."""


class OneAgainstRest(_Model):
    """One diagnosis against the rest; all null where it has no images."""

    sensitivity: Float | None
    """Images of the class that are predicted so."""
    specificity: Float | None
    """Images of other classes that are not predicted so."""
    precision: Float | None
    """Of the images predicted so, those that are."""
    f1: Float | None
    """Harmonic mean of precision and sensitivity."""
    auroc: Float | None
    """Area under the ROC curve of the class against the rest."""
    auprc: Float | None
    """Average precision of the class against the rest."""


class DiagnosisAssessment(Assessment[DiagnosisHeadline]):
    """The test images for 7 classes."""

    malignancy: Malignancy
    """The predictions read as those of the classes benign and malignant, where the probability of malignancy is the sum
    of those of akiec, bcc and mel."""
    classes: Annotated[dict[Diagnosis, OneAgainstRest], Field(min_length=7)]
    """Each diagnosis against the rest, by the most probable class."""


class MajorityClass(_Model, Generic[Estimates]):
    """Always the most frequent class of the training images."""

    name: Annotated[Text, Field(alias="class")]
    """That class."""
    metrics: Estimates
    """Its metrics."""


class Metadata(_Model, Generic[Estimates]):
    """A logistic regression, fitted on the training images."""

    columns: list[Text]
    """The columns of the metadata table that it sees."""
    metrics: Estimates
    """Its metrics."""
    image_adds: Estimates
    """The classifier's metrics less these, with paired intervals."""


class Baselines(_Model, Generic[Estimates]):
    """What is reached on the test images without looking at them."""

    majority_class: MajorityClass[Estimates]
    """Always the most frequent class of the training images."""
    metadata: Metadata[Estimates]
    """A logistic regression, fitted on the training images."""


class Pair(_Model):
    """Two images of different lesions that look alike."""

    image_ids: Annotated[list[Text], Field(min_length=2, max_length=2)]
    """The two images."""
    splits: Annotated[list[Literal["train", "val", "test"]], Field(min_length=2, max_length=2)]
    """Their splits."""
    distance: Whole
    """Distance of their hashes, in bits."""


class NearDuplicates(_Model):
    """Images of different lesions in different splits that look alike."""

    hash: Text
    """The perceptual hash of an image."""
    largest_distance: Whole
    """The largest distance of two hashes that counts, in bits."""
    pairs: list[Pair]
    """The pairs."""


class Leakage(_Model):
    """What the splits share: the audit of metrics/split.json."""

    lesions_in_more_than_one_split: Whole
    """Lesions with images in more than one split."""
    known_duplicates_apart: list[Annotated[list[Text], Field(min_length=2, max_length=2)]]
    """Published pairs of images of one lesion under two lesion ids that lie in different splits."""
    near_duplicates: NearDuplicates
    """Images of different lesions in different splits that look alike."""


class _Details(_Model):
    confidence: Share
    """Confidence level of every interval, such as 0.95."""
    bootstrap_replicates: Count
    """How often lesions were drawn for the intervals."""
    calibration: Calibration
    """What models/calibration.json holds: fitted on the validation images, frozen since."""
    leakage: Leakage | None
    """What the splits share; null for another dataset."""


class BinaryDetails(_Details):
    """For 2 classes."""

    classes: tuple[Literal["benign"], Literal["malignant"]]
    """The classes, in the order of the network's outputs."""
    val: Validation[BinaryMetrics[Float | None]] | None
    """The validation images, on which the epoch, the temperature and the thresholds were chosen: flattering numbers."""
    test: Assessment[BinaryHeadline]
    """The test images: everything that is said of them."""
    baselines: Baselines[BinaryMetrics[Estimate]] | None
    """What is reached on the test images without looking at them; null for another dataset."""


class DiagnosisDetails(_Details):
    """For 7 classes."""

    classes: Diagnoses
    """The classes, in the order of the network's outputs."""
    val: Validation[DiagnosisMetrics[Float | None]] | None
    """The validation images, on which the epoch, the temperature and the thresholds were chosen: flattering numbers."""
    test: DiagnosisAssessment
    """The test images: everything that is said of them."""
    baselines: Baselines[DiagnosisMetrics[Estimate]] | None
    """What is reached on the test images without looking at them; null for another dataset."""


def _number_of_classes(content: Any) -> str:
    classes = content.get("classes") if isinstance(content, dict) else None
    return "7 classes" if isinstance(classes, list) and len(classes) == 7 else "2 classes"


Details = Annotated[
    Annotated[BinaryDetails, Tag("2 classes")] | Annotated[DiagnosisDetails, Tag("7 classes")],
    Discriminator(_number_of_classes),
]


def read_details(path: Path) -> dict:
    """Read the results of `evaluate`.

    Raises:
        InputError: the file is missing, damaged, or not as docs/details.schema.json says.
    """
    return read_json(path, Details).model_dump(mode="json", by_alias=True)


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
