"""The golden files, and the bundles that they describe, built once for all tests."""

from __future__ import annotations

import os

import pytest

from tests.golden.builds import Builds
from tests.golden.store import Golden


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record-golden", action="store_true", help="write the golden files instead of comparing them")


@pytest.fixture(scope="session")
def golden(pytestconfig: pytest.Config) -> Golden:
    # The option exists when pytest is given this folder; a run of all tests never records.
    return Golden(recording=bool(pytestconfig.getoption("--record-golden", default=False)))


@pytest.fixture(scope="session")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Builds:
    own = tmp_path_factory.getbasetemp()
    # A worker of pytest-xdist has a folder of its own inside that of the run.
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "golden_bundles"
    folder.mkdir(exist_ok=True)
    return Builds(folder)
