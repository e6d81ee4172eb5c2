"""The linear probe: multinomial logistic regression on frozen features, which becomes the head of the checkpoints.

It is all that uses labels in self-supervised training.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dec_export.data.digits import CLASSES, STRENGTH, DigitImages, compose, source_digits
from dec_export.parity.measures.invariance import local_scale

from .learner import Learner
from .self_supervised_plan import STREAM, SerSettings

# Inverse strengths of the regularisation; validation digits choose among them. The log uses only the first, to save
# time.
PROBE_STRENGTHS = (1.0, 10.0, 100.0)


class Probe(NamedTuple):
    """A linear classifier of features: weight (classes, features) and bias (classes,), float64.

    strength: the inverse strength of the regularisation with which it was fitted.
    """

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    strength: float

    def logits(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """The logits (N, classes) of features (N, features)."""
        return np.asarray(features @ self.weight.T + self.bias)


class ProbeScores(NamedTuple):
    """What a probe reads: accuracy of images and of their locally scaled copies, and InvE between the two."""

    accuracy: float
    accuracy_locally_scaled: float
    inv_e: float


@torch.no_grad()
def features_of(learner: Learner, inputs: NDArray[np.float32], batch: int = 200) -> NDArray[np.float64]:
    """What the head reads of inputs (N, 3, H, W): (N, features)."""
    learner.eval()
    parts = torch.split(torch.from_numpy(inputs), batch)
    return torch.cat([learner.features(part) for part in parts]).double().numpy()


def fit_probe(learner: Learner, settings: SerSettings, strengths: Sequence[float] = PROBE_STRENGTHS) -> Probe:
    """The probe of the training digits' features whose regularisation is best for the validation digits."""
    stream = (settings.seed, STREAM + 1)
    images = compose(source_digits("train"), settings.probe_images, stream)
    check = compose(source_digits("validation"), settings.validation_images, stream)
    features, held_out = (features_of(learner, learner.inputs_of(each)) for each in (images, check))
    probes = [_regress(features, images.labels, strength) for strength in strengths]
    return max(probes, key=lambda probe: float((probe.logits(held_out).argmax(1) == check.labels).mean()))


def _regress(features: NDArray[np.float64], labels: NDArray[np.int64], strength: float) -> Probe:
    """Multinomial logistic regression of standardised features, written as a classifier of the features themselves."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean, spread = features.mean(axis=0), features.std(axis=0) + 1e-9
    with warnings.catch_warnings():
        # With next to no regularisation the last steps change the weights, but not the accuracy.
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = LogisticRegression(C=strength, max_iter=2000).fit((features - mean) / spread, labels)
    # A few images may lack a class. It keeps a logit that never is the largest.
    weight, bias = np.zeros((CLASSES, features.shape[1])), np.full(CLASSES, -1e3)
    weight[fitted.classes_] = fitted.coef_ / spread
    bias[fitted.classes_] = fitted.intercept_ - weight[fitted.classes_] @ mean
    return Probe(weight, bias, strength)


def classify(learner: Learner, probe: Probe, images: DigitImages, seed: int) -> tuple[ProbeScores, NDArray[np.bool_]]:
    """The probe's scores, rounded to four decimals, and which images it classifies correctly, (N,).

    seed: decides how the copies are scaled.
    """
    inputs = learner.inputs_of(images)
    logits = [probe.logits(features_of(learner, x)) for x in (inputs, local_scale(inputs, seed, STRENGTH))]
    probabilities, scaled = (torch.from_numpy(each).softmax(dim=1) for each in logits)
    right, right_scaled = (each.argmax(axis=1) == images.labels for each in logits)
    distance = round(float((probabilities - scaled).norm(dim=1).mean()), 4)
    return ProbeScores(round(float(right.mean()), 4), round(float(right_scaled.mean()), 4), distance), right
