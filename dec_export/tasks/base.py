"""The base class of tasks, which has all properties in which models of different tasks differ.

Help texts name the tasks, so importing this package loads no library. Methods import NumPy when they are called.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dec_export.tasks.scores import Columns, Metric
from dec_export.tasks.arrays import AnswerTensor, Array, Labels


@runtime_checkable  # tests check types while they run
class Warp(Protocol):
    """The warps that made the locally scaled copies of N images."""

    def move_values(self, image: int, values: Array) -> Array:
        """Warp values (C, H, W) at the pixels of one image, as its copy was warped, in float64."""

    def move_labels(self, labels: Labels) -> Labels:
        """Warp the classes (N, H, W) of the pixels of all images; each pixel takes the class of the nearest pixel."""


class LabelledPictures(Protocol):
    """N pictures whose objects are known, such as `data.digits.DigitImages`."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """The class of each picture, (N,)."""

    @property
    def masks(self) -> NDArray[np.uint8]:
        """The class of each pixel, (N, H, W)."""


class Kind(Enum):
    """The type of the values of an answer."""

    FLOAT32 = "float32"
    INT32 = "int32"
    UINT8 = "uint8"
    TEXT = "text"


class Answer(NamedTuple):
    """One tensor of a server's answer for one image; `shape` is without the batch."""

    name: str
    kind: Kind
    shape: tuple[int, ...]


class Task(ABC):
    """One task. All methods are pure functions, so one object of each task is enough.

    Logits are (N, classes, ...), with the classes along axis 1.

    Attributes:
        name: the name of the task in recipes, reports and `--task`.
        metric: the name of the measure of invariance, for which `invariance_terms` returns one term for each image.
        score: the name of the score that `score_of` returns.
        recipe_suffix: the ending of the names of shipped recipes of this task.
        needs_head: whether a recipe must name a head; if not, it must not name one.
        must_unwarp: whether features must be unwarped wherever they are warped, because the output has a value for each
            pixel of the image.
        labels_pixels: whether the output has a value for each pixel of the image, so that it changes when an object
            changes its scale, however good the model is.
        labels_every_object: whether the score depends on every object of a picture, and not on a single one.
        has_label_names: whether a server may give a name to each class of the logits.
        ensemble: the ending of the name of the ensemble that a server runs.
    """

    name: ClassVar[str]
    metric: ClassVar[str]
    score: ClassVar[str]
    recipe_suffix: ClassVar[str] = ""
    needs_head: ClassVar[bool] = False
    must_unwarp: ClassVar[bool] = False
    labels_pixels: ClassVar[bool] = False
    labels_every_object: ClassVar[bool] = False
    has_label_names: ClassVar[bool] = False
    ensemble: ClassVar[str]

    # --- the outputs of a model, and the labels of its images ---

    @abstractmethod
    def logits_shape(self, classes: int, image_size: int) -> tuple[int, ...]:
        """Return the shape of the logits of one image of `image_size` x `image_size` pixels."""

    @abstractmethod
    def count_classes(self, kinds: int) -> int:
        """Return the number of classes of a model that distinguishes `kinds` kinds of objects."""

    @abstractmethod
    def labels_of(self, pictures: LabelledPictures) -> Labels:
        """Return the labels that the model should predict, (N, ...)."""

    @abstractmethod
    def scale_labels(self, labels: Labels, warp: Warp) -> Labels:
        """Return the labels of the locally scaled copies."""

    # --- measurements ---

    @abstractmethod
    def invariance_terms(self, logits: Array, logits_scaled: Array, warp: Warp) -> Array:
        """Return the term of `metric` of each image, (N,) float64, by the logits of the images and of their copies."""

    @abstractmethod
    def score_of(self, predicted: Labels, labels: Labels, classes: int) -> float:
        """Return the score in [0, 1] of classes against labels of the same shape; it is 1 if all are right."""

    @abstractmethod
    def image_columns(self, logits: Array, labels: Labels, ignored: int | None) -> Columns:
        """Return the numbers of N images that an evaluation keeps, each (N, ...).

        logits: (N, classes, ...). labels: (N, ...), without classes that the model does not have; pixels of the value
        `ignored` do not count, and a label of -1 stands for an image without a label.
        """

    @abstractmethod
    def metrics(self) -> tuple[Metric, ...]:
        """Return the metrics of labelled images, which `image_columns` has the columns of."""

    # --- texts and pictures of a report ---

    @abstractmethod
    def caption(self, logits: Array) -> str:
        """Return what the title of a picture says about its logits (classes, ...); it may be empty."""

    @abstractmethod
    def describe(self, logits: Array) -> str:
        """Return the reference's prediction in words; logits (classes, ...) of one image, all finite."""

    @abstractmethod
    def compare(self, logits: Array, reference: Array) -> str:
        """Return an engine's prediction, compared with the reference's, in words; both (classes, ...), all finite."""

    def class_map(self, logits: Array) -> Labels | None:
        """Return the class of every pixel (H, W) to draw over the image, or None if the task has no class maps.

        logits: (classes, ...), of one image.
        """
        return None

    # --- answers of a server ---

    @abstractmethod
    def answers(self, top_k: int, image_size: int) -> tuple[Answer, ...]:
        """Return the tensors of the ensemble's answer.

        They hold the best `top_k` classes, or maps of `image_size` x `image_size` pixels.
        """

    @abstractmethod
    def is_right(self, answer: Mapping[str, AnswerTensor], logits: Array, slack: float) -> bool:
        """Return whether a server's answer for one image follows from its logits (classes, ...).

        answer: tensors by name, each (1, ...). slack: the difference of two logits up to which either may be chosen as
        the larger one.
        """

    def check_served(self, classes: int) -> None:  # noqa: B027 -- most tasks have no limit
        """Check that a server can answer for a model with this number of classes.

        Raises:
            ServingError: if the answer cannot hold them.
        """
