"""Predictions in bulk: every image has a row, in order, and the file is complete or absent."""

from __future__ import annotations

import csv
import io
import json
import resource
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

import dec_export
from dec_export.bundle.store import Bundle
from dec_export.cli import main
from dec_export.engines.base import RunOptions
from dec_export.errors import DataError, DecExportError
from dec_export.evaluation import prediction_files, predictions
from dec_export.evaluation.layouts.base import DataOptions
from dec_export.evaluation.predictions import PredictionOptions, class_names, predict
from dec_export.evaluation.samples import DataSet
from dec_export.tasks import task_named
from dec_export.tasks.measures import softmax
from tests.evaluation.trees import class_tree

FAST = PredictionOptions(engine="onnxruntime", run=RunOptions(threads=1), batch=4, top_k=3)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images, of which one is broken."""
    folder = class_tree(tmp_path_factory.mktemp("data"), 12)
    (folder / "class3" / "0003.png").write_bytes(b"no image")
    return folder


def test_a_parquet_file_has_the_engines_predictions(
    small_bundle: Bundle, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction_files, "_GROUP", 5)
    out = tmp_path / "found.parquet"
    found = predict(small_bundle, data, out, FAST)
    assert (found.images, found.skipped, found.engine) == (11, 1, "onnxruntime")
    file = parquet.ParquetFile(out)
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [5, 5, 2]
    rows = file.read().to_pylist()
    paths = sorted(data.rglob("*.png"))
    assert [row["name"] for row in rows] == [str(path.relative_to(data)) for path in paths]
    engine = dec_export.engines.load(small_bundle, "onnxruntime", options=RunOptions(threads=1))
    for path, row in zip(paths, rows, strict=True):
        if path.name == "0003.png":
            assert row["classes"] == row["labels"] == row["scores"] == []
            assert str(path) in row["error"]
            continue
        image = small_bundle.preprocessing.apply(Image.open(path))
        scores = softmax(engine(np.repeat(image[None], 4, axis=0))["logits"])[0]
        best = np.argsort(-scores)[:3]
        assert row["classes"] == best.tolist()
        assert row["labels"] == [f"class{number}" for number in best]
        np.testing.assert_array_equal(np.float32(row["scores"]), scores[best].astype(np.float32))
        assert row["error"] is None


def test_csv_and_parquet_hold_the_same(small_bundle: Bundle, data: Path, tmp_path: Path) -> None:
    predict(small_bundle, data, tmp_path / "found.parquet", FAST)
    predict(small_bundle, data, tmp_path / "found.CSV", FAST)
    expected = parquet.read_table(tmp_path / "found.parquet").to_pylist()
    with (tmp_path / "found.CSV").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [row["name"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        ranks = range(1, 1 + len(other["classes"]))
        assert [int(row[f"class_{rank}"]) for rank in ranks] == other["classes"]
        assert [row[f"label_{rank}"] for rank in ranks] == other["labels"]
        assert [float(np.float32(row[f"score_{rank}"])) for rank in ranks] == other["scores"]
        assert row["error"] == (other["error"] or "")


def test_the_command_limits_names_and_overwrites_when_asked(
    small_bundle: Bundle, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = tmp_path / "names.txt"
    # The index numbers the folders of the data, and names the classes.
    index.write_text("".join(f"class{number} kind {number}\n" for number in range(10)))
    out = tmp_path / "found.csv"
    arguments = ["predict", str(small_bundle.path), "--data", str(data), "--out", str(out), "--threads", "1"]
    arguments += ["--engine", "onnxruntime", "--limit", "3", "--top-k", "99", "--class-index", str(index)]
    with pytest.raises(SystemExit) as ended:
        main.main([*arguments, "--json"])
    assert ended.value.code == 0
    facts = {"file": str(out), "engine": "onnxruntime", "layout": "class-folders", "images": 3, "skipped": 0}
    assert json.loads(capsys.readouterr().out) == facts
    with out.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert len(rows) == 3
    assert header[-2:] == ["score_10", "error"]
    assert len(set(rows[0][1:-1:3])) == 10
    with pytest.raises(SystemExit) as ended:
        main.main(arguments)
    assert ended.value.code == 2
    assert "overwrite it with --force" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main.main([*arguments, "--force"])
    assert ended.value.code == 0
    # The sentence is folded where the folder's name is long.
    printed = " ".join(capsys.readouterr().out.split())
    assert f"The predictions of onnxruntime for 3 images (class-folders) are in {out}." in printed


def test_a_failure_leaves_no_file(
    small_bundle: Bundle, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = PredictionOptions("onnxruntime", RunOptions(threads=1), batch=2, strict=True)
    with pytest.raises(DecExportError, match=r"0003\.png"):
        predict(small_bundle, data, tmp_path / "found.parquet", strict)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
    try:
        with pytest.raises(DataError, match=r"^Cannot write '.*found\.csv': File too large\.$"):
            predict(small_bundle, data, tmp_path / "found.csv", FAST)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("found.xlsx", r"must be named \.parquet or \.csv"),
        ("none/found.csv", "is not a folder"),
    ],
)
def test_a_wrong_file_is_one_sentence_before_the_run(
    small_bundle: Bundle, data: Path, tmp_path: Path, name: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictions, "computer_for", None)
    with pytest.raises(DecExportError, match=sentence):
        predict(small_bundle, data, tmp_path / name, FAST)


def test_parquet_without_its_package_is_one_sentence(
    small_bundle: Bundle, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction_files, "has_package", lambda name: name != "pyarrow")
    with pytest.raises(DataError, match=r"pip install 'dec-export\[evaluate\]', or write \.csv"):
        predict(small_bundle, data, tmp_path / "found.parquet", FAST)


def test_no_class_is_one_sentence(small_bundle: Bundle, data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="top_k must be at least 1, found 0"):
        predict(small_bundle, data, tmp_path / "found.csv", PredictionOptions(top_k=0))


def test_names_come_from_an_index_or_from_data_that_name_all_classes(tmp_path: Path) -> None:
    index = tmp_path / "index.txt"
    index.write_text("cat\ndog\nowl\n")
    named = DataSet([], "flat", ("a", "b", "c"))
    assert class_names(named, 3, index) == ("cat", "dog", "owl")
    assert class_names(named, 3, None) == ("a", "b", "c")
    # Two folders of a model with three classes do not tell which ones they are.
    assert class_names(DataSet([], "flat", ("a", "b")), 3, None) == ("0", "1", "2")
    with pytest.raises(DataError, match="names 3 classes, and the model has 4"):
        class_names(named, 4, index)


def test_equal_scores_are_in_the_order_of_classes() -> None:
    found = predictions.predictions(task_named("classification"), np.float32([[1, 3, 3, 0, 3]]), 4)
    assert found["classes"].tolist() == [[1, 2, 4, 0]]


@pytest.mark.parametrize(("classes", "dtype"), [(6, np.uint8), (300, np.uint16)])
def test_a_segmentation_has_shares_and_a_map_of_classes(classes: int, dtype: type) -> None:
    logits = np.random.default_rng(1).normal(size=(3, classes, 8, 9)).astype(np.float32)
    logits[1, 5] += 100
    found = predictions.predictions(task_named("segmentation"), logits, 2)
    assert found["class_map"].dtype == dtype
    np.testing.assert_array_equal(found["class_map"], logits.argmax(axis=1))
    assert found["classes"][1].tolist() == [5, 0]
    assert found["scores"][1].tolist() == [1, 0]
    shares = [(found["class_map"][0] == best).mean() for best in found["classes"][0]]
    np.testing.assert_array_equal(found["scores"][0], np.float32(shares))
    assert shares[0] == max((found["class_map"][0] == number).mean() for number in range(classes))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_class_maps_are_kept_as_png(dtype: type, tmp_path: Path) -> None:
    classes = np.arange(12, dtype=dtype).reshape(3, 4) * (20 if dtype is np.uint8 else 400)
    row = prediction_files.Row("a.png", (1,), ("one",), (0.5,), predictions._png(classes))
    with prediction_files.new_table(tmp_path / "a.parquet", has_maps=True, top_k=1, force=False) as table:
        table.add([row])
    content = parquet.read_table(tmp_path / "a.parquet").to_pylist()[0]["class_map"]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), classes)


def test_the_library_has_the_same_function() -> None:
    assert dec_export.predict is predict
    assert dec_export.PredictionOptions is PredictionOptions
    assert PredictionOptions(data=DataOptions(layout="flat")).as_evaluation().baselines == ()
