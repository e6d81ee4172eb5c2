"""The annotated shapes of measures and metrics are checked in every test that calls them."""

from __future__ import annotations

import jaxtyping
import numpy as np
import pytest
import torch

from dec_export.parity.measures.equivariance import Terms, compare
from dec_export.parity.measures.histogram import error_histogram
from dec_export.parity.metrics import rel_l2
from dec_export.reference.groups import Similarity
from dec_export.tasks.measures import invariance_errors, top1_agreement


def test_arrays_of_different_shapes_are_refused() -> None:
    rel_l2(np.ones((2, 3)), np.ones((2, 3)))
    with pytest.raises(jaxtyping.TypeCheckError):
        rel_l2(np.ones((2, 3)), np.ones(3))
    with pytest.raises(jaxtyping.TypeCheckError):
        top1_agreement(np.ones((2, 3)), np.ones((1, 3)))
    with pytest.raises(jaxtyping.TypeCheckError):
        error_histogram(np.ones((2, 3)), np.ones((2, 3)), np.ones((3, 2)))


def test_arrays_of_other_ranks_and_dtypes_are_refused() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        invariance_errors(np.ones((2, 3, 4, 4)), np.ones((2, 3, 4, 4)))
    with pytest.raises(jaxtyping.TypeCheckError):
        compare(Similarity(), torch.ones(2, 3, 4, 4), torch.ones(3, 3, 4, 4))
    with pytest.raises(jaxtyping.TypeCheckError):
        Terms(np.ones(2), np.ones(3), np.ones(2))
