"""The example of a client, beside a real server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dec_export import engines
from dec_export.data.images import open_image, packaged_photographs
from tests.serving.conftest import Served
from tests.serving.server import needs_server

pytestmark = needs_server

CLIENT = Path(__file__).parents[2] / "examples" / "triton_client.py"


def test_the_client_prints_the_best_classes_of_a_photograph(served: Served) -> None:
    photograph = packaged_photographs()[0]
    command = [sys.executable, str(CLIENT), served.server.http_url, "digits", str(photograph)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    image = served.digits.preprocessing.apply(open_image(photograph))[None]
    logits = engines.load(served.digits, "onnxruntime")(image)["logits"][0].astype(np.float64)
    assert [entry["label"] for entry in found] == [str(i) for i in np.argsort(-logits)[:5]]
    # The server rounds softmax to float32.
    expected = np.sort(np.exp(logits) / np.exp(logits).sum())[::-1][:5]
    assert [entry["score"] for entry in found] == pytest.approx(expected, rel=1e-6)
