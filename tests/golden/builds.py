"""The bundles that the golden files describe, which are the smallest models that show every form once."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from tests.golden.command import Outcome, succeed
from tests.golden.store import RECIPES

# One thread, so that no sum depends on how many cores there are.
RUN = ("--engine", "onnxruntime", "--threads", 1, "--samples", 4)

# name: (recipe, options). Classification and segmentation, all solver forms and precisions, a tap, phis as outputs,
# and a model without canonicalizer each occur.
OPTIONS: dict[str, tuple[str, tuple[object, ...]]] = {
    "tiny": ("tiny", (*RUN, "--json")),
    "maps": ("maps", (*RUN, "--solver", "loop", "--json")),
    "alone": ("alone", (*RUN, "--tap", 1)),
    "plugin_fp16": ("tiny", (*RUN, "--solver", "plugin", "--precision", "fp16", "--json")),
    "loop_bf16": (
        "tiny",
        (*RUN, "--solver", "loop", "--precision", "bf16", "--solver-precision", "fp16", "--expose-phi"),
    ),
    "loop": ("tiny", ("--engine", "none", "--solver", "loop", "--json")),
    "plugin": ("tiny", ("--engine", "none", "--solver", "plugin")),
    "unroll_fp16": ("tiny", ("--engine", "none", "--precision", "fp16", "--solver-precision", "fp16")),
}
PROVEN = ("tiny", "maps", "alone", "plugin_fp16", "loop_bf16")
PRINTED_AS_JSON = tuple(name for name, (_, options) in OPTIONS.items() if "--json" in options)
PRINTED_AS_TEXT = tuple(name for name in OPTIONS if name not in PRINTED_AS_JSON)


@dataclass(frozen=True)
class Built:
    """A bundle's folder, and what the command that wrote it printed."""

    path: Path
    outcome: Outcome

    def document(self, file: str) -> Any:
        """Return the content of one JSON file of the bundle."""
        return json.loads((self.path / file).read_text(encoding="utf-8"))


class Builds:
    """A mapping that builds each bundle at its first use; the workers of a test run share the bundles."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, name: str) -> Built:
        out, said = self.folder / name, self.folder / f"{name}.outcome.json"
        with FileLock(self.folder / f"{name}.lock"):
            if not said.is_file():
                recipe, options = OPTIONS[name]
                outcome = succeed("build", "--recipe", RECIPES / f"{recipe}.yaml", *options, "--out", out)
                said.write_text(json.dumps(asdict(outcome)), encoding="utf-8")
        return Built(out, Outcome(**json.loads(said.read_text(encoding="utf-8"))))
