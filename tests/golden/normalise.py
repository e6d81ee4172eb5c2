"""The removal of all parts of an output that depend on the machine, the clock or the rounding.

Why floating-point numbers are replaced: their last digits, and the order of magnitude of a rounding error, depend on
the kernels that a CPU has. Keys, nulls, strings, booleans, integers and the lengths of lists are kept. The numbers
themselves are in numbers.json, which is compared where the processor and the libraries are those of the recording.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# What a user gave, or what the source code fixes: equal on every machine.
_KEPT_WHOLE = {"recipe", "preprocessing"}
# Sentences for people, which may be reworded; texts/sentences.json holds them.
_SENTENCES = ("detail", "gate_rule", "reason", "notes", "source")
_CONSTANT_FLOATS = {"strength", "tolerance", "scales"}
# Libraries that every installation has; engines come and go with the machine.
_LIBRARIES = ("python", "dec-export", "torch", "timm", "onnx", "onnxscript", "numpy")
# Files whose size depends neither on rounding nor on the version of the exporter.
_STABLE_FILES = {"recipe.yaml", "weights.safetensors"}

_BORDER = re.compile(r"[━─┏┓┗┛┡┩┌┐└┘┳┻╇┴┬├┤┼╭╮╰╯═╒╕╞╡╘╛]+")
_CELL = re.compile(r"[│┃|]")
_VERSION = re.compile(r"\b\d+\.\d+\.\d+(\.\w+)*\b")
# Their numbers have more or fewer digits.
_REPORT_SIZE = re.compile(r"(parity\.\w+ \|) \d+")
_SECONDS = re.compile(r"\(\d+(\.\d+)? s\)")
_FLOAT = re.compile(r"(?<![\w.])[-+]?(\d+\.\d+(e[-+]?\d+)?|\d+e[-+]?\d+)")


def normalise_json(value: Any, folder: Path) -> Any:  # JSON: any value
    """Return a document without the parts that depend on the machine and on `folder`."""
    if isinstance(value, dict):
        return {key: _normalise_entry(key, entry, folder) for key, entry in value.items()}
    if isinstance(value, list):
        return [normalise_json(entry, folder) for entry in value]
    if isinstance(value, str):
        return without_folder(value, folder)
    return "<float>" if isinstance(value, float) else value


def _normalise_entry(key: str, value: Any, folder: Path) -> Any:
    if key in _KEPT_WHOLE or key in _CONSTANT_FLOATS:
        return value
    if key in _SENTENCES and value:
        return ["<sentence>"] * len(value) if isinstance(value, list) else "<sentence>"
    if key == "seconds":
        return "<seconds>"
    if key == "version" and isinstance(value, str):
        return "<version>"
    if key == "versions":
        return {name: "<version>" for name in _LIBRARIES if name in value}
    if key == "sha256" and value is not None:
        return "<sha256>"
    if key == "worst_sample":  # decided by rounding
        return "<index>"
    if key == "errors" and isinstance(value, dict):  # the histogram of rounding errors
        return _leaves(value, "<count>")
    if key == "files" and isinstance(value, dict):
        return {name: _normalise_file(name, entry) for name, entry in value.items()}
    return normalise_json(value, folder)


def _normalise_file(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    size = entry["size"] if name in _STABLE_FILES else "<bytes>"
    return {**entry, "size": size, "sha256": "<sha256>"}


def _leaves(value: Any, mark: str) -> Any:
    if isinstance(value, dict):
        return {key: _leaves(entry, mark) for key, entry in value.items()}
    return [_leaves(entry, mark) for entry in value] if isinstance(value, list) else mark


def structure_of(value: Any) -> Any:
    """Return the keys, the lengths of lists and the types of a document."""
    if isinstance(value, dict):
        return {key: structure_of(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [structure_of(entry) for entry in value]
    if isinstance(value, bool):
        return "<bool>"
    if isinstance(value, int | float):
        return "<number>"
    return "<string>" if isinstance(value, str) else None


def sentences_of(value: Any) -> list[str]:
    """Return every sentence of a document once."""
    if isinstance(value, list):
        found = [sentence for entry in value for sentence in sentences_of(entry)]
    elif isinstance(value, dict):
        own = [value[key] for key in _SENTENCES if isinstance(value.get(key), str)]
        found = [*own, *(sentence for entry in value.values() for sentence in sentences_of(entry))]
    else:
        found = []
    return list(dict.fromkeys(found))


def numbers_of(value: Any, path: str = "") -> dict[str, float | int]:
    """Every number of a document by its path; the histogram of rounding errors left out, as the rest implies it."""
    if isinstance(value, dict):
        entries = [(f"{path}/{key}", entry) for key, entry in value.items() if key != "errors"]
    elif isinstance(value, list):
        entries = [(f"{path}/{index}", entry) for index, entry in enumerate(value)]
    else:
        return {path: value} if isinstance(value, int | float) and not isinstance(value, bool) else {}
    return {name: number for at, entry in entries for name, number in numbers_of(entry, at).items()}


def without_folder(text: str, folder: Path) -> str:
    """Return the text with the folder's absolute path replaced by {tmp}."""
    return text.replace(str(folder), "{tmp}")


def normalise_text(text: str, folder: Path) -> str:
    """Printed text without borders, widths of columns, times, versions and numbers that depend on rounding.

    The lines of a table are kept one by one; lines outside of tables are joined where they follow each other, because
    a title is folded to the width of its table, which depends on how many digits its numbers have.
    """
    lines: list[str] = []
    title_open = False
    for line in without_folder(text, folder).splitlines():
        bare = _BORDER.sub("", line)
        in_table = bare != line or _CELL.search(line) is not None
        words = " ".join(_CELL.sub(" | ", bare).split())
        if words.strip("| ") and not in_table and title_open:
            lines[-1] = f"{lines[-1]} {words}"
        elif words.strip("| "):
            lines.append(words)
        title_open = bool(words) and not in_table
    return "".join(f"{_without_numbers(line)}\n" for line in lines)


def _without_numbers(line: str) -> str:
    line = _REPORT_SIZE.sub(r"\1 <bytes>", _SECONDS.sub("(<seconds> s)", line))
    return _FLOAT.sub("<float>", _VERSION.sub("<version>", line))
