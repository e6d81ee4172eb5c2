"""The golden files: compared with, or written anew by `pytest tests/golden --record-golden` (without -n)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).parent / "data"
RECIPES = DATA / "recipes"
BUNDLE_V1 = DATA / "bundle_v1"


@dataclass(frozen=True)
class Golden:
    """Golden files under `data/`; `recording` writes them instead of comparing."""

    recording: bool

    def check_json(self, name: str, content: Any) -> None:  # JSON: any value
        """Compare a JSON document with data/`name`; the order of keys does not matter."""
        path = DATA / name
        if self.recording:
            self._write(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
            return
        assert content == json.loads(_read(path))

    def check_text(self, name: str, text: str) -> None:
        """Compare a text with data/`name`."""
        if self.recording:
            self._write(DATA / name, text)
            return
        assert text == _read(DATA / name)

    def check_entry(self, name: str, key: str, content: Any) -> None:
        """Compare one entry of the JSON object in data/`name`."""
        path = DATA / name
        held = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if self.recording:
            held[key] = content
            self._write(path, json.dumps(dict(sorted(held.items())), indent=1, ensure_ascii=False) + "\n")
            return
        assert key in held, f"{name} has no entry '{key}': record it with --record-golden."
        assert content == held[key]

    def check_where_recorded(self, name: str, origin: Mapping[str, str], content: Any) -> None:
        """Compare a JSON document if this machine has the recording's `origin`; otherwise skip with a reason."""
        path = DATA / name
        if self.recording:
            self.check_json(name, {"recorded_with": dict(origin), "content": content})
            return
        held = json.loads(_read(path))
        differing = [
            f"{key} {origin.get(key)} instead of {value}"
            for key, value in held["recorded_with"].items()
            if origin.get(key) != value
        ]
        if differing:
            pytest.skip(f"{name} was recorded with other versions: {', '.join(differing)}")
        assert content == held["content"]

    @staticmethod
    def _write(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")


def _read(path: Path) -> str:
    assert path.is_file(), f"{path.relative_to(DATA)} does not exist: record it with --record-golden."
    return path.read_text(encoding="utf-8")
