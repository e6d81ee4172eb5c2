"""Hostile images."""

from __future__ import annotations

import io

from PIL import Image

_SCAN, _TABLES = b"\xff\xda", b"\xff\xc4"


def scan_bomb(side: int = 5_500, scans: int = 100) -> bytes:
    """Return a progressive JPEG of side x side grey pixels whose last scan is repeated until there are `scans`."""
    content = io.BytesIO()
    Image.new("RGB", (side, side), (120, 130, 140)).save(content, "JPEG", progressive=True)
    image = content.getvalue()
    repeated = image[image.rindex(_TABLES) : -2]
    missing = scans - image.count(_SCAN)
    return image[:-2] + repeated * missing + image[-2:]
