"""What a task is: everything in which models that predict different things differ.

Importing this package loads no library: help texts name the tasks. Methods import NumPy when they are called.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dec_export.tasks.arrays import AnswerTensor, Array, Labels


@runtime_checkable  # tests check types while they run
class Warp(Protocol):
    """The warps that turned N images into their locally scaled copies."""

    def move_values(self, image: int, values: Array) -> Array:
        """Warp values (C, H, W) that lie over one image, as its copy was warped; computed in float64."""

    def move_labels(self, labels: Labels) -> Labels:
        """Warp the classes (N, H, W) of the pixels of all images; each pixel takes the class of the nearest one."""


class LabelledPictures(Protocol):
    """N pictures whose objects are known, such as `data.digits.DigitImages`."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """The class of each picture, (N,)."""

    @property
    def masks(self) -> NDArray[np.uint8]:
        """The class of each pixel, (N, H, W)."""


class Kind(Enum):
    """What the values of an answer are."""

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
    """One task. All methods are pure, so one object serves everybody.

    Logits are (N, classes, ...), with the classes along axis 1.

    Attributes:
        name: what recipes, reports and `--task` call it.
        metric: the name of the measure of invariance, to which `invariance_terms` gives one term for each image.
        score: the name of what `score_of` measures.
        recipe_suffix: what the names of shipped recipes of this task end in.
        needs_head: whether a recipe names a head; if not, it must not name one.
        must_unwarp: whether features must be unwarped wherever they are warped, because the output lies over the image.
        labels_every_object: whether the score depends on every object of a picture, and not on a single one.
        has_label_names: whether a class of the logits is an answer on its own, to which a server may give a name.
        ensemble: the ending of the name of the ensemble that a server runs.
    """

    name: ClassVar[str]
    metric: ClassVar[str]
    score: ClassVar[str]
    recipe_suffix: ClassVar[str] = ""
    needs_head: ClassVar[bool] = False
    must_unwarp: ClassVar[bool] = False
    labels_every_object: ClassVar[bool] = False
    has_label_names: ClassVar[bool] = False
    ensemble: ClassVar[str]

    # --- what a model gives, and what is known of its images ---

    @abstractmethod
    def logits_shape(self, classes: int, image_size: int) -> tuple[int, ...]:
        """The shape of the logits of one image of `image_size` x `image_size` pixels."""

    @abstractmethod
    def count_classes(self, kinds: int) -> int:
        """How many classes a model has that tells `kinds` kinds of objects apart."""

    @abstractmethod
    def labels_of(self, pictures: LabelledPictures) -> Labels:
        """The labels that the model should predict, (N, ...)."""

    @abstractmethod
    def scale_labels(self, labels: Labels, warp: Warp) -> Labels:
        """The labels of the locally scaled copies."""

    # --- what is measured ---

    @abstractmethod
    def invariance_terms(self, logits: Array, logits_scaled: Array, warp: Warp) -> Array:
        """The term of `metric` of each image, (N,) float64; logits of the images and of their locally scaled copies."""

    @abstractmethod
    def score_of(self, predicted: Labels, labels: Labels, classes: int) -> float:
        """How well classes agree with labels of the same shape, in [0, 1]; 1 if all are right."""

    # --- what a report shows ---

    @abstractmethod
    def caption(self, logits: Array) -> str:
        """What the title of a picture adds about its logits (classes, ...); empty if it adds nothing."""

    @abstractmethod
    def describe(self, logits: Array) -> str:
        """What the reference predicts, in words; logits (classes, ...) of one image, all finite."""

    @abstractmethod
    def compare(self, logits: Array, reference: Array) -> str:
        """What an engine predicts beside the reference, in words; logits (classes, ...) of one image, all finite."""

    def class_map(self, logits: Array) -> Labels | None:
        """The class of every pixel (H, W) to draw over the image, or None if the task has none.

        logits: (classes, ...), of one image.
        """
        return None

    # --- what a server answers ---

    @abstractmethod
    def answers(self, top_k: int, image_size: int) -> tuple[Answer, ...]:
        """The tensors of the ensemble's answer; `top_k` classes, or maps of `image_size` x `image_size` pixels."""

    @abstractmethod
    def is_right(self, answer: Mapping[str, AnswerTensor], logits: Array, slack: float) -> bool:
        """Whether a server's answer for one image follows from its logits (classes, ...).

        answer: tensors by name, each (1, ...). slack: of two logits that differ by no more, either may be the larger.
        """

    def check_served(self, classes: int) -> None:  # noqa: B027 -- most tasks have no limit
        """Check that a server can answer for a model of so many classes.

        Raises:
            ServingError: if the answer cannot hold them.
        """
