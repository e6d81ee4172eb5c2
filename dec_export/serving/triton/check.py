"""Send images to a running server, and compare its answers with those of the bundle's engine."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any  # encoded images are an array of bytes objects

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from dec_export.bundle.store import Bundle
from dec_export.data.images import Preprocessing, list_images, open_image, packaged_photographs
from dec_export.engines.registry import load
from dec_export.errors import ServingError
from dec_export.serving.triton.client import Answer, Client, ModelCounts, connect
from dec_export.serving.triton.judge import distance, expected_logits, same_answer, tolerance_of
from dec_export.tasks import ensemble_names, task_named


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Latencies(_Frozen):
    """The milliseconds of requests that were sent one after another. The first one, which may be slow, is included."""

    p50: float
    p90: float
    p99: float
    mean: float


class Comparison(_Frozen):
    """The comparison of a server with the bundle's engine.

    Attributes:
        engine: the bundle's engine.
        max_difference: the largest difference of logits divided by the largest expected logit; None if not finite.
        tolerance: the largest `max_difference` that is accepted.
        identical: whether all logits are equal.
        same_answers: the number of the ensemble's answers that follow from the engine's logits.
        answers: the number of answers.
        agrees: whether all answers and all logits agree.
    """

    engine: str
    max_difference: float | None
    tolerance: float
    identical: bool
    same_answers: int
    answers: int
    agrees: bool


class ServerReport(_Frozen):
    """The result of `dec-export triton check`.

    Attributes:
        url, protocol: the address of the server, and the protocol of the requests.
        model: the name of the model, as in --name of the repository.
        ensemble: the ensemble that got the requests.
        images, requests: the numbers of images and requests; images are sent again until there are enough requests.
        latency_ms: the time until an answer.
        comparison: the comparison with the bundle's engine; None without a bundle.
        agrees: the comparison's verdict; None without a bundle.
        statistics: the server's own statistics, by model.
    """

    url: str
    protocol: str
    model: str
    ensemble: str
    images: int
    requests: int
    latency_ms: Latencies
    comparison: Comparison | None
    agrees: bool | None
    statistics: dict[str, ModelCounts]


def check_server(
    url: str,
    model: str,
    *,
    protocol: str = "http",
    images: str | Path | None = None,
    bundle: Bundle | None = None,
    engine: str = "auto",
    requests: int = 32,
) -> ServerReport:
    """Send images to a model's ensemble and, with a bundle, send the preprocessed images to the model itself.

    Args:
        url: the server's address as HOST:PORT.
        model: the name of the model, as in --name of the repository.
        protocol: "http" or "grpc".
        images: a folder of JPEG and PNG files; the default is photographs from installed packages.
        bundle: the bundle with whose engine the answers are compared.
        engine: the name of the bundle's engine.
        requests: the number of requests; each image is sent at least once.

    Raises:
        ServingError: if there are no images, or the server does not answer.
    """
    paths = list_images(Path(images)) if images else packaged_photographs()
    if not paths:
        raise ServingError("There are no images to send: name a folder with --images.")
    client = connect(url, protocol)
    try:
        ensemble = _ensemble_of(client, model, bundle)
        sent = [paths[i % len(paths)] for i in range(max(requests, len(paths)))]
        answers, seconds = _ask(client, ensemble, sent)
        comparison = _compare(client, model, bundle, engine, answers) if bundle else None
        return ServerReport(
            url=client.url,
            protocol=protocol,
            model=model,
            ensemble=ensemble,
            images=len(paths),
            requests=len(sent),
            latency_ms=_latencies(seconds),
            comparison=comparison,
            agrees=None if comparison is None else comparison.agrees,
            statistics={name: client.counts_of(name) for name in _models(model, ensemble)},
        )
    finally:
        client.close()


def encoded(content: bytes) -> NDArray[Any]:
    """Return a file's bytes as the ensemble's input, a batch of one: (1, 1) objects."""
    return np.array([[content]], dtype=object)


def prepared(preprocessing: Preprocessing, path: Path) -> NDArray[np.float32]:
    """Return an image as the model's input, a batch of one: (1, 3, H, W)."""
    return preprocessing.apply(open_image(path))[None]


def _models(model: str, ensemble: str) -> tuple[str, ...]:
    return model, f"{model}_pre", f"{model}_post", ensemble


def _ensemble_of(client: Client, model: str, bundle: Bundle | None) -> str:
    """Find the ensemble of the bundle's task; without a bundle, the first ensemble of the model that the server has."""
    reasons = []
    for ending in (task_named(bundle.recipe.task).ensemble,) if bundle else ensemble_names():
        name = f"{model}_{ending}"
        try:
            client.outputs_of(name)
        except ServingError as error:
            reasons.append(str(error))
        else:
            return name
    raise ServingError(f"No ensemble of '{model}' answers: {reasons[0]}")


def _ask(client: Client, ensemble: str, paths: Iterable[Path]) -> tuple[dict[Path, list[Answer]], list[float]]:
    """Return the answers to each image, and the seconds of each request."""
    outputs = client.outputs_of(ensemble)
    seconds: list[float] = []
    answers: dict[Path, list[Answer]] = {}
    for path in paths:
        content = encoded(path.read_bytes())
        start = time.perf_counter()
        answers.setdefault(path, []).append(client.infer(ensemble, "encoded", content, outputs))
        seconds.append(time.perf_counter() - start)
    return answers, seconds


def _latencies(seconds: Sequence[float]) -> Latencies:
    p50, p90, p99 = (float(np.percentile(seconds, p)) * 1e3 for p in (50, 90, 99))
    return Latencies(p50=p50, p90=p90, p99=p99, mean=float(np.mean(seconds)) * 1e3)


def _compare(
    client: Client, model: str, bundle: Bundle, engine_name: str, answers: Mapping[Path, Sequence[Answer]]
) -> Comparison:
    """Compare the server's logits and all its answers with those of the bundle's engine, image by image."""
    engine, tolerance, task = load(bundle, engine_name), tolerance_of(bundle), task_named(bundle.recipe.task)
    farthest, same, count = 0.0, 0, 0
    for path, given in answers.items():
        image = prepared(bundle.preprocessing, path)
        expected = expected_logits(engine, image)
        found = client.infer(model, "image", image, ["logits"])["logits"]
        farthest = max(farthest, distance(found, expected))
        same += sum(same_answer(task, answer, expected[0], tolerance) for answer in given)
        count += len(given)
    return Comparison(
        engine=engine.name,
        max_difference=farthest if np.isfinite(farthest) else None,
        tolerance=tolerance,
        identical=farthest == 0,
        same_answers=same,
        answers=count,
        agrees=same == count and farthest <= tolerance,
    )
