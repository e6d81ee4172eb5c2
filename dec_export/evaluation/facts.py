"""The types of an evaluation's results, which are also the JSON object of `dec-export evaluate --json`.

Shares, and differences of shares, are fractions: 0.01 is one percent, or one percentage point. Numbers that are not
finite are null in JSON. Differences are those of the first model, the engine, minus a baseline.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from dec_export.evaluation.gate import Judgement, Verdict
from dec_export.parity.numbers import Name, Number


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelFacts(_Frozen):
    """A model that was evaluated: its name, the folder of its bundle, and the engine that ran it."""

    name: str
    bundle: Name
    engine: str


class Difference(_Frozen):
    """How much a metric of the engine differs from that of a baseline on the same images.

    low, high: the 95 % confidence interval, infinite with too few images. p_value: of McNemar's exact test; None for
    metrics that are not shares of images. words: "higher" or "lower" if the interval leaves out 0, else "within noise";
    "equal" if nothing differs on any image, and "not finite" if a metric is not.
    """

    difference: Number
    low: Number
    high: Number
    p_value: float | None
    words: str


class ConditionFacts(_Frozen):
    """What was found under one condition.

    metrics: by the names of the models and of the metrics. differences: by the names of the baselines and of the
    metrics. agreement: the share of images, for segmentation of pixels, of which the engine and a baseline predict the
    same class, by the baseline's name.
    """

    name: str
    family: str
    strength: Number
    metrics: Mapping[str, Mapping[str, Number]]
    differences: Mapping[str, Mapping[str, Difference]]
    agreement: Mapping[str, Number]


class GroupFacts(_Frozen):
    """The metrics, by models and names, of the unchanged images whose group has one value.

    group: "scale", "corruption", "severity" or "corruption and severity". value: as "0.7" or "fog 3".
    """

    group: str
    value: Name
    images: int
    metrics: Mapping[str, Mapping[str, Number]]


class ClassFacts(_Frozen):
    """The intersection over union of one class over all pixels of the unchanged images, by the models' names.

    It is NaN for a class that is neither in the masks nor predicted.
    """

    number: int
    name: Name
    iou: Mapping[str, Number]


class Confusion(_Frozen):
    """The number of unchanged images of the class `label` that a model takes for `predicted`, by the models' names."""

    label: Name
    predicted: Name
    images: Mapping[str, int]


class Disagreement(_Frozen):
    """An unchanged image on which the engine and its first baseline differ.

    label: the name of its class, and predictions: the class that each of the two predicts; for segmentation the label
    is None and there are no predictions. distance: the 2-norm of the difference of their softmaxes, averaged over
    pixels if there are. agreement: the share of pixels of which both predict the same class; 0 or 1 without pixels.
    """

    name: Name
    label: Name | None
    predictions: Mapping[str, Name]
    distance: Number
    agreement: Number


class GateFacts(_Frozen):
    """The verdicts on the limits that the user set, for the engine beside one baseline, and the verdict on all."""

    baseline: str
    verdict: Verdict
    judgements: tuple[Judgement, ...]


class Results(_Frozen):
    """The results of an evaluation.

    images, labelled: how many images were evaluated, and how many of these have a label; metrics of right and wrong are
    of the latter. skipped: the images that could not be decoded, by name with the reason.
    models: the engine first. class_names: the names of the model's classes in their order.
    classes: only of segmentation. confusions, confusion_matrix: only of classification; the most frequent confusions,
    and for at most 50 classes the number of images by label and prediction, for each model.
    corruption_error: the mean corruption error of each model, which is the share of wrong images, averaged over
    severities and then over corruptions; empty without corruptions.
    disagreements: the images on which the engine and its first baseline differ most. gate: None without limits.
    """

    task: str
    layout: str
    images: int
    labelled: int
    skipped: Mapping[str, str]
    models: tuple[ModelFacts, ...]
    class_names: tuple[Name, ...]
    conditions: tuple[ConditionFacts, ...]
    groups: tuple[GroupFacts, ...] = ()
    classes: tuple[ClassFacts, ...] = ()
    confusions: tuple[Confusion, ...] = ()
    confusion_matrix: Mapping[str, tuple[tuple[int, ...], ...]] = {}
    corruption_error: Mapping[str, Number] = {}
    disagreements: tuple[Disagreement, ...] = ()
    gate: GateFacts | None = None

    @property
    def engine(self) -> str:
        """The name of the engine that was evaluated."""
        return self.models[0].name

    @property
    def baselines(self) -> tuple[str, ...]:
        """The names of the models that the engine was compared with."""
        return tuple(model.name for model in self.models[1:])
