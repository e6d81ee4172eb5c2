"""Ask a running Triton Inference Server what is on a picture.

    python examples/triton_client.py localhost:8000 deit_s photo.jpg

`dec-export triton BUNDLE --repository DIR` wrote the models. Their ensemble, MODEL_classify, takes the bytes of a JPEG
or PNG file: nothing has to be decoded or prepared here.
"""

import json
import sys
from pathlib import Path

import numpy as np
import tritonclient.http as triton


def main():
    url, model, picture = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    encoded = triton.InferInput("encoded", [1, 1], "BYTES")
    encoded.set_data_from_numpy(np.array([[picture.read_bytes()]], dtype=object))
    with triton.InferenceServerClient(url) as client:
        answer = client.infer(f"{model}_classify", [encoded])
    labels, scores = answer.as_numpy("labels")[0], answer.as_numpy("scores")[0]
    found = [{"label": label.decode(), "score": float(score)} for label, score in zip(labels, scores, strict=True)]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
