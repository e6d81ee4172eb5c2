"""From a shipped recipe to a proven bundle, and an answer from its engine.

    python examples/build_and_prove.py OUT

`digits` is a small classifier of handwritten digits. Its trained weights ship with dec-export.
"""

import json
import sys

import dec_export
from dec_export.data.digits import compose, source_digits


def main():
    engines = dec_export.EngineOptions(names=["onnxruntime"])
    bundle = dec_export.build("digits", out=sys.argv[1], engines=engines, proof=dec_export.ProofOptions(samples=4))
    test = compose(source_digits("test"), 8, seed=0)  # pictures that the model was not trained on
    engine = dec_export.engines.load(bundle, "onnxruntime")
    logits = engine(test.inputs(bundle.preprocessing.mean, bundle.preprocessing.std))["logits"]
    found = {"gate": bundle.manifest.gate, "classes": logits.argmax(axis=1).tolist(), "labels": test.labels.tolist()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
