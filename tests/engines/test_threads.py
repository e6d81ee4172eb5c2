"""Engines are called from several threads at once, as servers do, and each thread gets its own answers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from dec_export import engines
from dec_export.bundle.store import Bundle
from dec_export.engines import RunOptions
from dec_export.engines.registry import availability, engine_names, engine_spec
from dec_export.gpu import find_gpu
from dec_export.reference.model import create_reference
from tests.conftest import photographs

THREADS = 8


@pytest.mark.parametrize("name", engine_names())
def test_eight_threads_get_what_one_gets(name: str, small_bundle: Bundle) -> None:
    if not availability(name, find_gpu()).can_run or (
        engine_spec(name).build is not None and name not in small_bundle.manifest.plans
    ):
        pytest.skip(f"{name} does not run here: {availability(name, find_gpu()).detail}")
    engine = engines.load(small_bundle, name, options=RunOptions(threads=1))
    images = photographs(160, THREADS)
    expected = [engine(image[None])["logits"] for image in images]

    def repeat(i: int) -> bool:
        return all(np.array_equal(engine(images[i][None])["logits"], expected[i]) for _ in range(6))

    with ThreadPoolExecutor(THREADS) as pool:
        assert all(pool.map(repeat, range(THREADS)))


def test_the_reference_itself_may_be_called_from_threads(small_bundle: Bundle) -> None:
    """The batches of the threads differ, so that phis of one thread would not fit the features of another."""
    model = create_reference(small_bundle.recipe)
    images = torch.from_numpy(photographs(160, 4))

    def run(count: int) -> torch.Tensor:
        with torch.inference_mode():
            return model(images[:count]).logits

    expected = {count: run(count) for count in (1, 2, 3, 4)}
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(run, [1, 2, 3, 4] * 6))
    assert all(torch.equal(logits, expected[len(logits)]) for logits in found)
