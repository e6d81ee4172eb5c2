"""What the tests of TensorRT share."""

from __future__ import annotations

import pytest

from dec_export.engines.tensorrt import plan as plans


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Let these versions seem to be installed."""
    versions = {"tensorrt": "1.7.1.116", "tensorrt-rtx": "1.7.1.116"}
    monkeypatch.setattr(plans, "installed_version", lambda flavour: versions[flavour.name])
    return versions
