"""Ask a running server what the bundle's own engine was asked, and compare."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dec_export.bundle.store import Bundle
from dec_export.data.images import Preprocessing, list_images, open_image, packaged_photographs
from dec_export.engines.registry import load
from dec_export.errors import ServingError
from dec_export.serving.triton.judge import distance, expected_logits, same_answer, tolerance_of
from dec_export.serving.triton.models import ENSEMBLES

_TIMEOUT_SECONDS = 60
_PERCENTILES = (50, 90, 99)
Answer = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Client:
    """A server, asked by HTTP or gRPC. `library` is tritonclient's module of that protocol."""

    url: str
    protocol: str
    library: Any
    connection: Any

    def infer(self, model: str, name: str, value: NDArray[Any], outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """One request; ServingError says what the server answered instead."""
        kind = "BYTES" if value.dtype == object else "FP32"
        tensor = self.library.InferInput(name, list(value.shape), kind)
        tensor.set_data_from_numpy(value)
        wanted = [self.library.InferRequestedOutput(output) for output in outputs]
        answer = self._ask(lambda: self.connection.infer(model, [tensor], outputs=wanted, **self._limits()))
        return {output: answer.as_numpy(output) for output in outputs}

    def metadata(self, model: str) -> dict[str, Any]:
        """Names of the model's inputs and outputs, and its versions."""
        found = self._ask(lambda: self.connection.get_model_metadata(model, **self._as_json()))
        return {**found, "outputs": [output["name"] for output in found["outputs"]]}

    def statistics(self, model: str) -> dict[str, Any]:
        """What the server counts: requests, executions, times in nanoseconds."""
        found = self._ask(lambda: self.connection.get_inference_statistics(model, **self._as_json()))
        stats: dict[str, Any] = found["model_stats"][-1]
        return stats

    def close(self) -> None:
        """An open connection would hold up the server's end."""
        self.connection.close()

    def _as_json(self) -> dict[str, Any]:
        return {"as_json": True, **self._limits()} if self.protocol == "grpc" else {}

    def _limits(self) -> dict[str, int]:
        """Of HTTP, the connection has them."""
        return {"client_timeout": _TIMEOUT_SECONDS} if self.protocol == "grpc" else {}

    def _ask(self, question: Callable[[], Any]) -> Any:
        from tritonclient.utils import InferenceServerException

        try:
            return question()
        except InferenceServerException as error:
            raise ServingError(f"The server at {self.url} answered: {error.message()}") from error
        except Exception as error:  # of sockets, gevent and gRPC, which have classes of their own
            raise ServingError(f"The server at {self.url} does not answer by {self.protocol}: {error}") from error


def connect(url: str, protocol: str) -> Client:
    """A client of `host:port`; ServingError when tritonclient is missing, or the address is none."""
    if protocol not in ("http", "grpc"):
        raise ServingError(f"Unknown protocol '{protocol}', expected http or grpc.")
    address = url.removeprefix(f"{protocol}://").rstrip("/")
    if not address or "/" in address:
        raise ServingError(f"Expected the server's address as HOST:PORT, found '{url}'.")
    try:
        if protocol == "http":
            import tritonclient.http as library

            connection = library.InferenceServerClient(
                address, connection_timeout=_TIMEOUT_SECONDS, network_timeout=_TIMEOUT_SECONDS
            )
        else:
            import tritonclient.grpc as library

            connection = library.InferenceServerClient(address)
    except ImportError as error:
        raise ServingError("The client is not installed: pip install 'dec-export[triton]'.") from error
    return Client(address, protocol, library, connection)


def check_server(
    url: str,
    model: str,
    *,
    protocol: str = "http",
    images: str | Path | None = None,
    bundle: Bundle | None = None,
    engine: str = "auto",
    requests: int = 32,
) -> dict[str, Any]:
    """Send real images to a model's ensemble, and, with a bundle, what they become to the model itself.

    model: the name that the repository was written with. images: a folder of JPEG and PNG files; packaged photographs
    by default. engine: of the bundle, to compare with. Returns what `dec-export triton check` prints; `agrees` is None
    without a bundle.
    """
    paths = list_images(Path(images)) if images else packaged_photographs()
    if not paths:
        raise ServingError("There are no images to send: name a folder with --images.")
    client = connect(url, protocol)
    try:
        ensemble = _ensemble_of(client, model, bundle)
        outputs = client.metadata(ensemble)["outputs"]
        sent = [paths[i % len(paths)] for i in range(max(requests, len(paths)))]
        seconds: list[float] = []
        answers: dict[Path, list[Answer]] = {}
        for path in sent:
            content = encoded(path.read_bytes())
            start = time.perf_counter()
            answers.setdefault(path, []).append(client.infer(ensemble, "encoded", content, outputs))
            seconds.append(time.perf_counter() - start)
        comparison = _compare(client, model, bundle, engine, answers) if bundle else None
        return {
            "url": client.url,
            "protocol": protocol,
            "model": model,
            "ensemble": ensemble,
            "images": len(paths),
            "requests": len(sent),
            "latency_ms": _latencies(seconds),
            "comparison": comparison,
            "agrees": None if comparison is None else comparison["agrees"],
            "statistics": {name: _counts(client.statistics(name)) for name in _models(model, ensemble)},
        }
    finally:
        client.close()


def _models(model: str, ensemble: str) -> tuple[str, ...]:
    return model, f"{model}_pre", f"{model}_post", ensemble


def _ensemble_of(client: Client, model: str, bundle: Bundle | None) -> str:
    """The bundle's ensemble, or whichever of the two the server has."""
    reasons = []
    for ending in [ENSEMBLES[bundle.recipe.task]] if bundle else ENSEMBLES.values():
        name = f"{model}_{ending}"
        try:
            client.metadata(name)
        except ServingError as error:
            reasons.append(str(error))
        else:
            return name
    raise ServingError(f"No ensemble of '{model}' answers: {reasons[0]}")


def _latencies(seconds: Sequence[float]) -> dict[str, float]:
    """Milliseconds of a request, one after another; the first, which may wake things up, is among them."""
    found = {f"p{p}": float(np.percentile(seconds, p)) * 1e3 for p in _PERCENTILES}
    return {**found, "mean": float(np.mean(seconds)) * 1e3}


def _counts(stats: dict[str, Any]) -> dict[str, int]:
    """Requests and executions, and microseconds that a successful request took, of which it waited."""
    inference = stats.get("inference_stats", {})
    success, queue = inference.get("success", {}), inference.get("queue", {})
    requests = int(success.get("count", 0))
    return {
        "version": int(stats.get("version", 0)),
        "inferences": int(stats.get("inference_count", 0)),
        "executions": int(stats.get("execution_count", 0)),
        "successes": requests,
        "failures": int(inference.get("fail", {}).get("count", 0)),
        "mean_microseconds": int(success.get("ns", 0)) // max(1, requests) // 1000,
        "mean_queue_microseconds": int(queue.get("ns", 0)) // max(1, requests) // 1000,
    }


def _compare(
    client: Client, model: str, bundle: Bundle, engine_name: str, answers: Mapping[Path, Sequence[Answer]]
) -> dict[str, Any]:
    """The server's logits and all its answers beside those of the bundle's own engine, image by image."""
    engine, tolerance = load(bundle, engine_name), tolerance_of(bundle)
    farthest, same, count = 0.0, 0, 0
    for path, given in answers.items():
        image = prepared(bundle.preprocessing, path)
        expected = expected_logits(engine, image)
        found = client.infer(model, "image", image, ["logits"])["logits"]
        farthest = max(farthest, distance(found, expected))
        same += sum(same_answer(answer, expected[0], tolerance) for answer in given)
        count += len(given)
    return {
        "engine": engine.name,
        "max_difference": farthest if np.isfinite(farthest) else None,
        "tolerance": tolerance,
        "identical": farthest == 0,
        "same_answers": same,
        "answers": count,
        "agrees": same == count and farthest <= tolerance,
    }


def encoded(content: bytes) -> NDArray[Any]:
    """A file's bytes as the ensemble's input, a batch of one."""
    return np.array([[content]], dtype=object)


def prepared(preprocessing: Preprocessing, path: Path) -> NDArray[np.float32]:
    """An image as the model's input, a batch of one."""
    return preprocessing.apply(open_image(path))[None]
