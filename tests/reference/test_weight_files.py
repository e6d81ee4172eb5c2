"""Objects that a checkpoint holds beside weights are neither created nor executed."""

from __future__ import annotations

import codecs
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.transforms import InterpolationMode

from dec_export.errors import CheckpointError
from dec_export.reference.weights.checkpoint import read_weights
from dec_export.reference.weights.files import find_state_dict, read_content
from dec_export.reference.weights.unread import Unread


def saved_in(folder: Path, content: Any) -> Path:
    path = folder / "checkpoint.pth"
    torch.save(content, path)
    return path


class _Reduced:
    def __init__(self, function: object, *arguments: object) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> Any:
        return self.reduced


def test_what_is_passed_over_is_not_made(tmp_path: Path) -> None:
    """Neither an array of a petabyte nor a module with such layers is created."""
    reconstruct = np.array([1.0]).__reduce__()[0]
    content = {
        "array": _Reduced(reconstruct, np.ndarray, (1 << 50,), b"b"),
        "plain": _Reduced(np.ndarray, (1 << 50,)),
        "layer": _Reduced(nn.Linear, 1 << 25, 1 << 25),
        "path": Path("/etc/passwd"),
        "way": InterpolationMode.BICUBIC,
        "number": np.float32(3.0),
        "weight": torch.ones(2),
    }
    found = read_content(saved_in(tmp_path, content))
    assert {key for key, value in found.items() if type(value) is Unread} == set(content) - {"weight"}
    assert all(not vars(value) for value in found.values() if type(value) is Unread)


def test_the_content_of_an_array_is_not_kept(tmp_path: Path) -> None:
    found = read_content(saved_in(tmp_path, {"losses": np.arange(1000.0), "weight": torch.ones(2)}))
    assert type(found["losses"]) is Unread
    assert not vars(found["losses"])


@pytest.mark.parametrize("zipped", [True, False])
def test_an_array_of_bytes_is_refused_before_it_is_made(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    bomb = {"a": _Reduced(bytearray, 1 << 45), "weight": torch.ones(2)}
    torch.save(bomb, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="nothing in it was executed"):
        read_content(path)


@pytest.mark.parametrize("mark", [b"PK\x05\x06", b"PK\x05\x06" + bytes(17), b"PK\x05\x06" + b"\xff" * 18])
def test_an_archive_that_python_does_not_find_is_refused(mark: bytes, tmp_path: Path) -> None:
    """PyTorch looks for an earlier mark of the end, and would read what was not checked."""
    path = saved_in(tmp_path, {"a": _Reduced(bytearray, 1 << 45), "weight": torch.ones(2)})
    path.write_bytes(path.read_bytes() + mark)
    with pytest.raises(CheckpointError):
        read_content(path)


def test_two_directories_of_one_archive_are_refused(tmp_path: Path) -> None:
    path = saved_in(tmp_path, {"weight": torch.ones(2)})
    path.write_bytes(path.read_bytes() + b"PK\x05\x06" + bytes(18))
    with pytest.raises(CheckpointError):
        read_content(path)


@pytest.mark.parametrize("codec", ["hex", "utf-16", "utf_32", "base64", "raw-unicode-escape"])
@pytest.mark.parametrize("zipped", [True, False])
def test_text_that_grows_by_a_codec_is_refused(codec: str, zipped: bool, tmp_path: Path) -> None:
    encode = codecs.encode
    grown: object = "ab"
    for _ in range(6):
        grown = _Reduced(encode, grown, codec)
    path = tmp_path / "grows.pth"
    torch.save({"a": grown, "weight": torch.ones(2)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="nothing in it was executed"):
        read_content(path)


def test_dictionaries_that_share_one_another_are_copied_once(tmp_path: Path) -> None:
    shared: dict[str, object] = {"weight": torch.ones(2)}
    for _ in range(60):
        shared = {"a": shared, "b": shared}
    found = read_content(saved_in(tmp_path, {"nested": shared, "weight": torch.ones(2)}))
    assert found["nested"]["a"] is found["nested"]["b"]


class _Odd:
    """An object that is pickled as an ordered dictionary whose attributes hide its methods."""

    def __reduce__(self) -> Any:
        hiding = dict.fromkeys(("items", "values", "get", "keys"), 5)
        return OrderedDict, (), hiding, None, iter([("weight", torch.ones(2))])


def test_attributes_of_a_dictionary_do_not_hide_its_methods(tmp_path: Path) -> None:
    found = read_content(saved_in(tmp_path, {"model": _Odd()}))
    assert list(find_state_dict(found, tmp_path)) == ["weight"]


@pytest.mark.parametrize("name", ["numpy.core.multiarray", "numpy._core.multiarray"], ids=["NumPy 1", "NumPy 2"])
def test_arrays_of_either_numpy_are_passed_over(name: str, tmp_path: Path) -> None:
    path = tmp_path / "legacy.pth"
    content = {"array": np.array([1.0]), "scalar": np.float64(1.0), "weight": torch.ones(2)}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    core = np.array([1.0]).__reduce__()[0].__module__
    path.write_bytes(path.read_bytes().replace(core.encode(), name.encode()))
    found = read_content(path)
    assert isinstance(found["array"], Unread)
    assert isinstance(found["scalar"], Unread)


def test_an_array_without_elements_is_passed_over(tmp_path: Path) -> None:
    assert isinstance(read_content(saved_in(tmp_path, {"a": np.array([])}))["a"], Unread)


@pytest.mark.parametrize("function", [print, eval, getattr, np.load, torch.load], ids=lambda f: f"{f.__name__}")
def test_other_functions_are_refused(function: object, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="it was refused, nothing in it was executed"):
        read_content(saved_in(tmp_path, {"a": _Reduced(function, "1"), "weight": torch.ones(2)}))


@pytest.mark.parametrize("entry", ["model", "state_dict"])
def test_a_module_instead_of_its_weights_is_refused(entry: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"save model\.state_dict"):
        read_weights(saved_in(tmp_path, {entry: nn.Sequential(nn.Linear(2, 2))}))


def test_a_header_of_safetensors_that_looks_like_a_pickle_is_none(tmp_path: Path) -> None:
    """The first byte of the header's length is that of a pickle in one of 32 files, as its length divides by 8."""
    path = tmp_path / "weights.safetensors"
    for count in range(200):
        save_file({"weight": torch.ones(2)}, path, metadata={"note": "x" * count})
        if path.read_bytes()[:1] == b"\x80":
            break
    assert path.read_bytes()[:1] == b"\x80"
    assert torch.equal(read_content(path)["weight"], torch.ones(2))
