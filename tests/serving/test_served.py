"""A real Triton Inference Server with real bundles: the reference's answers, also beside requests that are bad."""

from __future__ import annotations

import io
import json
import os
import signal
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from numpy.typing import NDArray
from PIL import Image
from tritonclient.utils import InferenceServerException

from dec_export import engines
from dec_export.bundle.store import Bundle
from dec_export.data.images import open_image, packaged_photographs
from dec_export.errors import ServingError
from dec_export.serving.triton.check import check_server
from dec_export.serving.triton.options import ServingOptions
from dec_export.serving.triton.repository import write_repository
from tests.helpers.images import scan_bomb
from tests.serving.conftest import Served
from tests.serving.server import TritonServer, needs_server

pytestmark = needs_server

PHOTOGRAPHS = packaged_photographs()[:6]
LIBRARIES = {"http": tritonclient.http, "grpc": tritonclient.grpc}


def ask(served: Served, model: str, name: str, value: NDArray[Any], *outputs: str, protocol: str = "http") -> list[Any]:
    """The outputs of one request."""
    library = LIBRARIES[protocol]
    url = served.server.http_url if protocol == "http" else served.server.grpc_url
    kind = {"O": "BYTES", "f": "FP32", "d": "FP64"}[value.dtype.kind if value.dtype == object else value.dtype.char]
    tensor = library.InferInput(name, list(value.shape), kind)
    tensor.set_data_from_numpy(value)
    client = library.InferenceServerClient(url)
    try:
        answer = client.infer(model, [tensor])
        return [answer.as_numpy(output) for output in outputs]
    finally:
        client.close()


def encoded(content: bytes) -> NDArray[Any]:
    return np.array([[content]], dtype=object)


def prepared(bundle: Bundle, count: int = 1) -> NDArray[np.float32]:
    return np.stack([bundle.preprocessing.apply(open_image(path)) for path in PHOTOGRAPHS[:count]])


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("model", ["digits", "maps", "planned"])
def test_logits_are_those_of_the_bundles_engine_to_the_bit(model: str, protocol: str, served: Served) -> None:
    bundle = served.maps if model == "maps" else served.digits
    engine = engines.load(bundle, "onnxruntime")
    for count in (1, 3):
        images = prepared(bundle, count)
        (found,) = ask(served, model, "image", images, "logits", protocol=protocol)
        assert np.array_equal(found, engine(images)["logits"])


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("model", ["digits", "planned"])
def test_a_feature_map_is_served_beside_the_logits(model: str, protocol: str, served: Served) -> None:
    images = prepared(served.digits, 3)
    expected = engines.load(served.digits, "onnxruntime")(images)
    found = ask(served, model, "image", images, "logits", "feature_map_1", protocol=protocol)
    for name, value in zip(("logits", "feature_map_1"), found, strict=True):
        assert np.array_equal(value, expected[name]), name


def as_format(kind: str, **options: Any) -> Callable[[Image.Image], bytes]:
    def encode(image: Image.Image) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        return buffer.getvalue()

    return encode


@pytest.mark.parametrize(
    "convert",
    [
        lambda image: image,
        lambda image: image.convert("L"),
        lambda image: image.convert("RGBA"),
        lambda image: image.convert("P"),
        lambda image: image.crop((0, 0, 300, 97)),
        lambda image: image.crop((0, 0, 97, 300)),
        lambda image: image.crop((0, 0, 1, 1)),
    ],
    ids=["colour", "grey", "transparent", "palette", "wide", "tall", "tiny"],
)
def test_images_are_prepared_as_the_bundle_prepares_them_to_the_bit(convert: Any, served: Served) -> None:
    for path in PHOTOGRAPHS[:2]:
        content = as_format("PNG")(convert(open_image(path)))
        (found,) = ask(served, "digits_pre", "encoded", encoded(content), "image")
        expected = served.digits.preprocessing.apply(Image.open(io.BytesIO(content)))
        assert np.array_equal(found[0], expected)


def test_the_ensembles_labels_are_the_references(served: Served) -> None:
    reference = engines.load(served.digits, "torch")
    for path in PHOTOGRAPHS:
        content = path.read_bytes()
        logits = reference(served.digits.preprocessing.apply(open_image(path))[None])["logits"][0].astype(np.float64)
        classes, labels, scores = ask(
            served, "digits_classify", "encoded", encoded(content), "classes", "labels", "scores"
        )
        probabilities = np.exp(logits) / np.exp(logits).sum()
        order = np.argsort(-logits)[:5]
        assert list(classes[0]) == list(order)
        assert [label.decode() for label in labels[0]] == [str(i) for i in order]
        # Of photographs, which are no digits, the reference's own logits are 1e-4 of float64's.
        assert scores[0] == pytest.approx(probabilities[order], abs=1e-4)
        assert list(scores[0]) == sorted(scores[0], reverse=True)


def test_a_class_map_can_be_written_as_a_png(served: Served, tmp_path: Path) -> None:
    engine = engines.load(served.maps, "onnxruntime")
    for path in PHOTOGRAPHS[:3]:
        (found,) = ask(served, "maps_segment", "encoded", encoded(path.read_bytes()), "class_map")
        assert found.dtype == np.uint8
        expected = engine(served.maps.preprocessing.apply(open_image(path))[None])["logits"][0].argmax(axis=0)
        assert np.array_equal(found[0], expected)
        Image.fromarray(found[0]).save(tmp_path / "map.png")
        assert np.array_equal(np.asarray(Image.open(tmp_path / "map.png")), expected)


def test_batches_of_images_are_answered_in_their_order(served: Served) -> None:
    contents = [path.read_bytes() for path in PHOTOGRAPHS]
    together = np.array([[content] for content in contents], dtype=object)
    (classes,) = ask(served, "digits_classify", "encoded", together, "classes")
    for content, found in zip(contents, classes, strict=True):
        assert np.array_equal(ask(served, "digits_classify", "encoded", encoded(content), "classes")[0][0], found)


# --- what is wrong ---------------------------------------------------------------------------------------------------


def png(
    width: int, height: int, *, bits: int, colour: int, row: bytes, more: tuple[tuple[bytes, bytes], ...] = ()
) -> bytes:
    """A PNG whose rows are all the same, with further chunks before its pixels."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), *more, (b"IDAT", zlib.compress(row * height, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def bomb(width: int = 10_000, height: int = 5_000) -> bytes:
    """A PNG of 50 megapixels in a few kilobytes."""
    return png(width, height, bits=1, colour=0, row=bytes((width + 7) // 8 + 1))


def not_finite(served: Served, value: float) -> NDArray[np.float32]:
    images = prepared(served.digits)
    images[0, 1, 2, 3] = value
    return images


PICTURE = PHOTOGRAPHS[0]
ENCODED_FAULTS: dict[str, tuple[Callable[[], NDArray[Any]], str]] = {
    "truncated JPEG": (
        lambda: encoded(as_format("JPEG")(open_image(PICTURE))[:2000]),
        "the image is not a whole JPEG or PNG file",
    ),
    "truncated PNG": (lambda: encoded(as_format("PNG")(open_image(PICTURE))[:2000]), "not a whole JPEG or PNG"),
    "no image": (lambda: encoded(b"GIF89a, or so it says"), "not a whole JPEG or PNG"),
    "empty": (lambda: encoded(b""), "not a whole JPEG or PNG"),
    "a GIF": (lambda: encoded(as_format("GIF")(open_image(PICTURE))), "not a whole JPEG or PNG"),
    "a JPEG of many scans": (lambda: encoded(scan_bomb()), "is decoded in 100 scans, too many for its size"),
    "50 megapixels": (lambda: encoded(bomb()), "more than 40000000 pixels"),
    "a billion pixels": (lambda: encoded(bomb(40_000, 25_000)), "more than 40000000 pixels"),
    "16 bits": (
        lambda: encoded(as_format("PNG")(Image.fromarray(np.zeros((8, 8), np.uint16)))),
        "more than 8 bits",
    ),
    "16 bits of colour": (lambda: encoded(png(8, 8, bits=16, colour=2, row=bytes(1 + 8 * 6))), "more than 8 bits"),
    "a palette that is missing": (
        lambda: encoded(png(8, 8, bits=8, colour=3, row=bytes(1 + 8), more=((b"tRNS", b"\0"),))),
        "not a whole JPEG or PNG",
    ),
    "long and narrow": (lambda: encoded(as_format("PNG")(Image.new("RGB", (30_000, 1)))), "too long and narrow"),
}


@pytest.mark.parametrize("fault", ENCODED_FAULTS)
def test_an_image_that_is_none_is_refused_in_a_sentence(fault: str, served: Served) -> None:
    make, sentence = ENCODED_FAULTS[fault]
    with pytest.raises(InferenceServerException, match=sentence) as caught:
        ask(served, "digits_classify", "encoded", make())
    assert "Traceback" not in str(caught.value)
    assert "/" not in caught.value.message().replace("JPEG or PNG", ""), "no path of the server's machine"


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize(
    ("model", "make", "sentence"),
    [
        ("digits", lambda s: not_finite(s, np.nan), "holds NaN or infinity"),
        ("digits", lambda s: not_finite(s, np.inf), "holds NaN or infinity"),
        ("digits", lambda s: prepared(s.digits)[:, :, :32], "unexpected shape"),
        ("digits", lambda s: prepared(s.digits)[0], "unexpected shape"),
        ("digits", lambda s: prepared(s.digits).astype(np.float64), "data-type"),
        ("digits", lambda s: np.repeat(prepared(s.digits), 9, axis=0), "batch-size must be <= 8"),
        ("nobody", lambda s: prepared(s.digits), "not found|unknown model"),
    ],
    ids=["nan", "infinity", "size", "rank", "dtype", "batch", "model"],
)
def test_every_fault_gets_its_documented_answer(
    model: str, make: Any, sentence: str, protocol: str, served: Served
) -> None:
    with pytest.raises(InferenceServerException, match=sentence):
        ask(served, model, "image", make(served), protocol=protocol)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("pixel", [(0, 0, 0), (1, 13, 7), (2, -1, -1), (0, 20, 31)])
def test_nan_that_another_backend_lets_pass_ends_at_the_postprocessing(
    pixel: tuple[int, int, int], value: float, served: Served
) -> None:
    images = prepared(served.maps)
    images[(0, *pixel)] = value
    (logits,) = ask(served, "maps", "image", images, "logits")
    assert np.isnan(logits).any(), "onnxruntime's backend checks nothing"
    with pytest.raises(InferenceServerException, match="the logits hold NaN or infinity"):
        ask(served, "maps_post", "logits", logits)


def test_an_input_of_another_name_is_refused(served: Served) -> None:
    with pytest.raises(InferenceServerException, match="unexpected inference input 'picture'"):
        ask(served, "digits", "picture", prepared(served.digits))


@pytest.mark.parametrize("fault", ["truncated JPEG", "a palette that is missing", "50 megapixels"])
def test_a_bad_image_costs_only_its_own_request(fault: str, served: Served) -> None:
    """Images that are decoded in one batch, one of four bad."""
    make, _ = ENCODED_FAULTS[fault]
    bad, good = make(), encoded(PICTURE.read_bytes())
    (expected,) = ask(served, "digits_classify", "encoded", good, "classes")

    def one(i: int) -> bool:
        try:
            return np.array_equal(
                ask(served, "digits_classify", "encoded", bad if i % 4 == 0 else good, "classes")[0], expected
            )
        except InferenceServerException:
            return i % 4 == 0

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(24)))


def test_bad_requests_never_harm_their_batch_mates(served: Served) -> None:
    """One request in four is poisoned; they share batches with the others."""
    good, bad = prepared(served.digits, 4), not_finite(served, np.nan)
    engine = engines.load(served.digits, "onnxruntime")
    expected = np.concatenate([engine(image[None])["logits"] for image in good])
    floor = np.abs(expected).max() * 1e-4

    def one(i: int) -> str:
        if i % 4 == 0:
            try:
                ask(served, "digits", "image", bad)
            except InferenceServerException as error:
                return "refused" if "NaN" in error.message() else f"wrong error {error}"
            return "accepted"
        (found,) = ask(served, "digits", "image", good[i % len(good)][None], "logits")
        # Batches of other sizes may add up in another order.
        return "right" if np.abs(found[0] - expected[i % len(good)]).max() <= floor else "wrong"

    before = served.server.metrics()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(one, range(80)))
    assert {answer: answers.count(answer) for answer in set(answers)} == {"right": 60, "refused": 20}
    counted = {
        name: served.server.metrics()[f'{name}{{model="digits",version="1"}}']
        - before[f'{name}{{model="digits",version="1"}}']
        for name in ("nv_inference_count", "nv_inference_exec_count")
    }
    assert counted["nv_inference_exec_count"] < counted["nv_inference_count"], "requests did share batches"


# --- the client, and changes while it runs ---------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("model", ["digits", "maps"])
def test_the_client_finds_the_bundle_on_the_server(model: str, protocol: str, served: Served) -> None:
    bundle = served.maps if model == "maps" else served.digits
    url = served.server.http_url if protocol == "http" else served.server.grpc_url
    report = check_server(url, model, protocol=protocol, bundle=bundle, requests=14)
    assert report.agrees is True
    assert report.comparison is not None
    assert report.comparison.identical is True
    assert report.requests == 14
    assert 0 < report.latency_ms.p50 <= report.latency_ms.p90 <= report.latency_ms.p99
    assert report.statistics[model].successes > 0
    json.dumps(report.model_dump(mode="json"), allow_nan=False)


def test_the_client_notices_another_model(served: Served) -> None:
    other = check_server(served.server.http_url, "digits", bundle=untrained(served.digits))
    assert other.agrees is False
    assert other.comparison is not None
    assert other.comparison.max_difference is not None
    assert other.comparison.max_difference > 0.1
    assert other.comparison.same_answers < other.comparison.answers


def untrained(bundle: Bundle) -> Bundle:
    """The bundle with an ONNX file that answers something else."""
    import onnx
    from onnx import numpy_helper

    folder = bundle.path.parent / "untrained"
    folder.mkdir(exist_ok=True)
    proto = onnx.load(bundle.onnx_path)
    for tensor in proto.graph.initializer:
        if tensor.name.endswith("head.weight"):
            tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
    onnx.save(proto, folder / "model.onnx")
    return Bundle(folder, bundle.manifest)


@pytest.mark.parametrize(
    ("url", "model", "sentence"),
    [
        ("127.0.0.1:9", "digits", "does not answer|Connection refused"),
        ("http://127.0.0.1:9/v2", "digits", "Expected the server's address as HOST:PORT"),
        (None, "nobody", "No ensemble of 'nobody' answers"),
    ],
)
def test_the_client_says_what_is_wrong(url: str | None, model: str, sentence: str, served: Served) -> None:
    with pytest.raises(ServingError, match=sentence):
        check_server(url or served.server.http_url, model)


def test_a_file_that_was_altered_does_not_load(digits_bundle: Bundle, tmp_path: Path) -> None:
    root = tmp_path / "repo"
    write_repository(digits_bundle, root, ServingOptions(device="cpu"))
    model = root / "digits" / "1" / "model.onnx"
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)
    with (
        pytest.raises(RuntimeError, match=r"model\.onnx is not the file that was exported"),
        TritonServer(root, tmp_path / "work"),
    ):
        pass


def test_a_new_version_takes_over_while_the_server_runs(digits_bundle: Bundle, tmp_path: Path) -> None:
    root = tmp_path / "repo"
    write_repository(digits_bundle, root, ServingOptions(device="cpu"))
    with TritonServer(root, tmp_path / "work", model_control="explicit", arguments=["--load-model=*"]) as server:
        client = tritonclient.http.InferenceServerClient(server.http_url)
        try:
            assert client.get_model_metadata("digits")["versions"] == ["1"]
            write_repository(digits_bundle, root, ServingOptions(device="cpu"))
            for name in ("digits", "digits_pre", "digits_post", "digits_classify"):
                client.load_model(name)
            assert client.get_model_metadata("digits")["versions"] == ["2"]
        finally:
            client.close()
        assert check_server(server.http_url, "digits", bundle=digits_bundle).agrees
    assert server.leftovers() == []


def test_a_killed_model_is_ready_and_answers_nothing_until_it_is_loaded_again(
    digits_bundle: Bundle, tmp_path: Path
) -> None:
    write_repository(digits_bundle, tmp_path / "repo", ServingOptions(device="cpu"))
    with TritonServer(
        tmp_path / "repo", tmp_path / "work", model_control="explicit", arguments=["--load-model=*"]
    ) as server:
        for pid in server.processes():
            # The stub's command line names the model that it runs.
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if int(pid) != server.pid and any(argument.endswith(b"digits/1/model.py") for argument in command):
                os.kill(int(pid), signal.SIGKILL)
        client = tritonclient.http.InferenceServerClient(server.http_url, network_timeout=20)
        try:
            with pytest.raises(ServingError):
                check_server(server.http_url, "digits", bundle=digits_bundle)
            assert client.is_server_ready()
            client.unload_model("digits")
            client.load_model("digits")
        finally:
            client.close()
        assert check_server(server.http_url, "digits", bundle=digits_bundle).agrees


def test_a_version_that_is_not_there_is_refused(served: Served) -> None:
    client = tritonclient.http.InferenceServerClient(served.server.http_url)
    try:
        with pytest.raises(InferenceServerException, match="unknown model"):
            client.get_model_metadata("digits", model_version="2")
    finally:
        client.close()
