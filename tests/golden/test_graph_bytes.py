"""The bytes of graphs and the numbers of proofs are compared if the libraries are those of the recording."""

from __future__ import annotations

import hashlib

from tests.golden.builds import OPTIONS, PROVEN, Builds
from tests.golden.normalise import numbers_of
from tests.golden.origin import arithmetic, exporter
from tests.golden.store import Golden


def test_sha256_of_graphs(builds: Builds, golden: Golden) -> None:
    hashes = {
        name: {
            file: hashlib.sha256((builds[name].path / file).read_bytes()).hexdigest()
            for file in ("model.onnx", "weights.safetensors", "recipe.yaml")
        }
        for name in OPTIONS
    }
    golden.check_where_recorded("graphs/sha256.json", exporter(), hashes)


def test_numbers_of_parity_bit_for_bit(builds: Builds, golden: Golden) -> None:
    """The test runs on one thread, so that every sum has a fixed order."""
    numbers = {name: numbers_of(builds[name].document("parity.json")) for name in PROVEN}
    golden.check_where_recorded("numbers.json", arithmetic(), numbers)
