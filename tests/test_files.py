"""A file is written whole, and replaces another file only if the user asks for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dec_export.errors import DecExportError
from dec_export.files import write_atomically, write_new_file


def test_a_file_is_replaced_only_with_force(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_new_file(path, "one\n", force=False, option="--html")
    with pytest.raises(DecExportError, match="exists: choose another --html, or overwrite it with --force"):
        write_new_file(path, "two\n", force=False, option="--html")
    assert path.read_text() == "one\n"
    write_new_file(path, "two\n", force=True, option="--html")
    assert path.read_bytes() == b"two\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("one")
    link.symlink_to(target)
    write_new_file(link, "two", force=True, option="--out")
    assert link.is_symlink()
    assert target.read_text() == "two"


def test_what_is_no_file_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for path in (tmp_path, Path("/dev/null"), tmp_path / "dangling"):
        with pytest.raises(DecExportError, match="exists and is not a file"):
            write_new_file(path, "text", force=True, option="--html")
    with pytest.raises(DecExportError, match="is not a folder: make it"):
        write_new_file(tmp_path / "none" / "a.html", "text", force=False, option="--html")


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("one")
    with pytest.raises(UnicodeEncodeError):
        write_new_file(path, "\ud800", force=True, option="--html")
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_bytes_are_written_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    for content in (b"one\r\n\0", b"two"):
        write_atomically(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_names_the_file_that_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "none" / "picture.png"
    with pytest.raises(FileNotFoundError) as caught:
        write_atomically(path, b"x")
    assert caught.value.filename == str(path)
