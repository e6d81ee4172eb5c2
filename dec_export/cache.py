"""The user's cache folder, by the rules of the operating system. It holds files that only save time."""

from __future__ import annotations

from pathlib import Path

from platformdirs import user_cache_path


def user_cache(name: str) -> Path:
    """Return the folder `name` in dec-export's part of the user's cache folder; it need not exist.

    That part is `~/.cache/dec-export` on Linux, or in XDG_CACHE_HOME where it is set; `~/Library/Caches/dec-export` on
    macOS; and `dec-export\\Cache` in the local application data on Windows.
    """
    return user_cache_path("dec-export", appauthor=False) / name
