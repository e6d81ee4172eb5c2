#!/bin/sh
# This script serves the repository beside it with Triton Inference Server. The README beside it says which image fits.
here=$(cd "$(dirname "$0")" && pwd)
exec docker run --rm --init --gpus all --shm-size=1088m -p 8000:8000 -p 8001:8001 -p 8002:8002 -v "$here"/models:/models:ro "${TRITON_IMAGE:?set it to the image of Triton Inference Server}" tritonserver --model-repository=/models --disable-auto-complete-config
