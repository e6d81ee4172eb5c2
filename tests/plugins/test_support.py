"""The support of the TensorRT plugin is reported correctly for every installation of TensorRT."""

from __future__ import annotations

import importlib.util
from importlib import metadata

import pytest

import dec_plugins


@pytest.mark.parametrize(
    ("version", "available", "words"),
    [("10.8.0.43", False, "older than 10.9"), ("10.9.0.34", True, "10.9.0.34"), ("11.1.0", True, "11.1.0")],
)
def test_the_installed_version_decides(
    version: str, available: bool, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(metadata, "packages_distributions", lambda: {"tensorrt": ["tensorrt_cu13_bindings"]})
    monkeypatch.setattr(metadata, "version", lambda name: {"tensorrt_cu13_bindings": version}[name])
    support = dec_plugins.plugin_support()
    assert support.available is available
    assert words in support.detail


def test_a_tensorrt_without_a_version_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(metadata, "packages_distributions", dict)
    support = dec_plugins.plugin_support()
    assert not support.available
    assert "cannot be read" in support.detail


def test_a_machine_without_tensorrt_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    support = dec_plugins.plugin_support()
    assert not support.available
    assert "pip install tensorrt" in support.detail
