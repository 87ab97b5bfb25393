"""Data sets: every kind of source, derived splits, and one clear error for everything that cannot be used."""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edgekit.data import DataSet, Preprocess, Split, batches, check_against
from edgekit.datasource import load_data
from edgekit.errors import ExitCode, UsageError
from edgekit.model import TensorSpec

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def refused(*args, **kwargs) -> str:
    """The message of the UsageError that loading raises."""
    with pytest.raises(UsageError) as caught:
        load_data(*args, **kwargs)
    assert caught.value.exit_code == ExitCode.USAGE
    return str(caught.value)


# -- preprocessing


def test_preprocess_is_affine_per_channel_then_layout():
    rng = np.random.default_rng(1)
    raw = rng.integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)
    scale, offset = (0.1, 0.2, 0.3), (-1.0, 0.0, 1.0)
    got = Preprocess(scale, offset, "NHWC", "NCHW").apply(raw)
    want = np.stack([raw[..., c].astype(np.float64) * scale[c] + offset[c] for c in range(3)], axis=1)
    assert got.dtype == np.float32
    assert got.flags.c_contiguous
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("layout", "to", "shape", "want"),
    [
        ("NHW", "NCHW", (2, 4, 5), (2, 1, 4, 5)),
        ("NHW", "NHWC", (2, 4, 5), (2, 4, 5, 1)),
        ("NHWC", "NCHW", (2, 4, 5, 3), (2, 3, 4, 5)),
        ("NCHW", "NHWC", (2, 3, 4, 5), (2, 4, 5, 3)),
        ("NHWC", "", (2, 4, 5, 3), (2, 4, 5, 3)),
        ("", "", (2, 9), (2, 9)),
    ],
)
def test_preprocess_layouts(layout, to, shape, want):
    assert Preprocess((2.0,), (1.0,), layout, to).apply(np.zeros(shape, np.uint8)).shape == want


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        (Preprocess(layout="NHWC", to="NCHW"), (2, 4, 4)),
        (Preprocess((1.0, 2.0), (0.0,), "NHWC", "NCHW"), (2, 4, 4, 3)),
        (Preprocess((1.0, 2.0)), (2, 4)),
    ],
)
def test_preprocess_that_does_not_fit_is_a_usage_error(settings, shape):
    with pytest.raises(UsageError, match="does not fit the data"):
        settings.apply(np.zeros(shape, np.float32))


def test_batches_cover_every_sample_once(tiny_npz):
    split = load_data(tiny_npz).split("train")
    parts = list(batches(split, 5))
    assert [len(part) for part in parts] == [5] * 6 + [2]
    np.testing.assert_array_equal(np.concatenate(parts), split.inputs.astype(np.float32))
    assert sum(len(part) for part in batches(split, 5, limit=7)) == 7


# -- the bundled data set


def test_fashion_mnist_has_the_promised_splits(fashion_mnist):
    splits = fashion_mnist.splits
    assert {name: len(split) for name, split in splits.items()} == {"train": 16000, "calibration": 1024, "test": 10000}
    assert (np.bincount(splits["train"].labels) == 1600).all()
    assert set(splits["calibration"].ids) <= set(splits["train"].ids), "calibration comes out of training images only"
    assert not set(splits["calibration"].ids) & set(splits["test"].ids)
    assert np.ptp(np.bincount(splits["calibration"].labels)) <= 1
    assert fashion_mnist.licence == "MIT"
    assert len(fashion_mnist.classes) == 10
    check_against(
        fashion_mnist,
        [TensorSpec("image", "float32", ("batch", 1, 28, 28))],
        [TensorSpec("y", "float32", ("batch", 10))],
    )


def test_fashion_mnist_is_normalised_as_in_training(fashion_mnist):
    ready = next(batches(fashion_mnist.split("train"), 512))
    raw = fashion_mnist.split("train").inputs[:512]
    np.testing.assert_allclose(ready[:, 0], (raw / 255 - 0.2860) / 0.3530, atol=1e-5)
    assert ready.shape == (512, 1, 28, 28)


@pytest.mark.slow
def test_fashion_mnist_is_rebuilt_from_debians_package(repo_root, fashion_mnist, tmp_path):
    if not DEBIAN.is_dir():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    script = repo_root / "calibration_data" / "build_fashion_mnist.py"
    subprocess.run([sys.executable, script, "--data", DEBIAN, "--out", tmp_path / "a"], check=True)
    rebuilt = load_data(tmp_path / "a")
    assert rebuilt.sha256 == fashion_mnist.sha256


def test_train_and_test_images_are_disjoint(fashion_mnist):
    train, test = (
        {hashlib.sha256(image.tobytes()).digest() for image in fashion_mnist.split(name).inputs}
        for name in ("train", "test")
    )
    assert not train & test


# -- cards


def write_card(folder: Path, *, sha: str | None = None, splits: str = "{train: {file: a.npz}}", **more: str) -> Path:
    np.savez(folder / "a.npz", x=np.zeros((8, 2), np.float32), y=np.arange(8) % 2)
    digest = sha or hashlib.sha256((folder / "a.npz").read_bytes()).hexdigest()
    lines = ["name: card", "source: here", "licence: MIT", f'files: {{a.npz: "{digest}"}}', f"splits: {splits}"]
    (folder / "card.yaml").write_text("\n".join([*lines, *(f"{k}: {v}" for k, v in more.items())]))
    return folder


def test_card_with_rows(tmp_path):
    folder = write_card(tmp_path, splits="{train: {file: a.npz, rows: [0, 6]}, test: {file: a.npz, rows: [6, 8]}}")
    data = load_data(folder)
    assert len(data.split("test")) == 2
    assert data.split("test").ids == ("a/6", "a/7")


def test_card_with_a_wrong_hash_is_refused(tmp_path):
    message = refused(write_card(tmp_path, sha="0" * 64))
    assert "card.yaml:4: files.a.npz: sha256 of" in message
    assert "the card says 0000" in message


def test_card_that_leaves_its_folder_is_refused(tmp_path):
    write_card(tmp_path)
    card = (tmp_path / "card.yaml").read_text().replace("a.npz:", "../a.npz:")
    (tmp_path / "card.yaml").write_text(card)
    assert "lies outside the folder" in refused(tmp_path)


def test_card_with_rows_beyond_the_file(tmp_path):
    assert "Rows 0 to 9 are not within the 8 samples" in refused(
        write_card(tmp_path, splits="{train: {file: a.npz, rows: [0, 9]}}")
    )


def test_card_with_an_unknown_key(tmp_path):
    assert "card.yaml:6: license: unknown key. Did you mean 'licence'?" in refused(write_card(tmp_path, license="MIT"))


# -- npz


def test_npz_with_splits_derives_calibration_from_train(tiny_npz):
    data = load_data(tiny_npz)
    train, calibration = data.split("train"), data.split("calibration")
    assert len(calibration) == 8
    assert set(calibration.ids) <= set(train.ids)
    assert (np.bincount(calibration.labels) == 2).all(), "every class as often as any other"
    assert any("no calibration split" in note for note in data.notes)
    assert load_data(tiny_npz).split("calibration").ids == calibration.ids


def test_npz_with_one_split_holds_out_a_test_split_and_says_so(tmp_path):
    x = np.arange(200, dtype=np.float32).reshape(50, 4)
    np.savez(tmp_path / "one.npz", x=x, y=np.arange(50) % 5)
    data = load_data("one.npz", base=tmp_path)
    assert len(data.split("test")) == 10
    assert len(data.split("train")) == 40
    assert not set(data.split("test").ids) & set(data.split("train").ids)
    assert "has one split only: 10 of its 50 samples were held out as test" in data.notes[0]
    rows = np.concatenate([data.split("test").inputs, data.split("train").inputs])
    assert sorted(rows[:, 0]) == sorted(x[:, 0])


def test_what_calibrates_is_never_held_out_as_test(tmp_path):
    folder = write_card(tmp_path, splits="{train: {file: a.npz}, calibration: {file: a.npz, rows: [0, 6]}}")
    data = load_data(folder)
    assert len(data.split("calibration")) == 6
    assert not set(data.split("calibration").ids) & set(data.split("test").ids)
    everything = write_card(tmp_path, splits="{train: {file: a.npz}, calibration: {file: a.npz}}")
    assert "is too small: a test sample must not calibrate" in refused(everything)


def test_validation_serves_as_test_where_there_is_none(tmp_path):
    np.savez(tmp_path / "a.npz", train_x=np.zeros((8, 2)), val_x=np.ones((4, 2)))
    data = load_data(tmp_path / "a.npz")
    assert (data.split("test").inputs == 1).all()
    assert any("validation" in note for note in data.notes)


def test_splits_can_be_named(tmp_path):
    np.savez(tmp_path / "a.npz", fit_x=np.zeros((8, 2)), judge_x=np.ones((4, 2)))
    data = load_data(tmp_path / "a.npz", splits={"train": "fit", "test": "judge"})
    assert (data.split("test").inputs == 1).all()
    assert "no split 'dev'. It has: fit, judge" in refused(tmp_path / "a.npz", splits={"test": "dev"})


def test_a_folder_of_npz_files_is_one_split_each(tmp_path):
    np.savez(tmp_path / "train.npz", x=np.zeros((8, 2)), y=np.arange(8) % 2)
    np.savez(tmp_path / "test.npz", x=np.ones((4, 2)), y=np.arange(4) % 2)
    assert (load_data(tmp_path).split("test").inputs == 1).all()


def test_calibration_never_comes_out_of_test(tmp_path):
    np.savez(tmp_path / "a.npz", test_x=np.zeros((8, 2)))
    data = load_data(tmp_path / "a.npz")
    with pytest.raises(UsageError, match=r"no split 'calibration'. It has: test. .*never out of `test`"):
        data.split("calibration")


def test_recipe_values_replace_the_sources_own(tiny_npz):
    data = load_data(tiny_npz, preprocess={"scale": 0.5, "layout": "NHW", "to": "NCHW"}, classes=["a", "b", "c", "d"])
    assert data.split("test").preprocess == Preprocess((0.5,), (0.0,), "NHW", "NCHW")
    assert data.classes == ("a", "b", "c", "d")
    assert "data.preprocess.scal: unknown key. Did you mean 'scale'?" in refused(tiny_npz, preprocess={"scal": 1})


# -- functions


def test_function_may_return_arrays_or_a_data_set(tmp_path):
    (tmp_path / "own.py").write_text(
        "import numpy as np\n"
        "from helper import ROWS\n"
        "def pairs():\n    return {'train': (np.zeros((ROWS, 2)), None), 'test': (np.ones((4, 2)), None)}\n"
        "def wrong():\n    return 5\n"
        "def empty():\n    return {}\n"
        "def fails():\n    raise OSError('no disk')\n"
    )
    (tmp_path / "helper.py").write_text("ROWS = 8\n")
    assert len(load_data("own.py:pairs", base=tmp_path).split("train")) == 8
    assert "own.py:fails() raised OSError: no disk" in refused("own.py:fails", base=tmp_path)
    assert "own.py:empty returned dict" in refused("own.py:empty", base=tmp_path)
    assert "own.py:wrong returned int" in refused("own.py:wrong", base=tmp_path)
    assert "has no function 'absent'. It defines: empty, fails, pairs, wrong." in refused(
        "own.py:absent", base=tmp_path
    )
    assert "no such file" in refused("other.py:pairs", base=tmp_path)


def test_function_that_fails_to_import_says_why(tmp_path):
    (tmp_path / "broken.py").write_text("raise RuntimeError('no disk')\n")
    assert "RuntimeError: no disk" in refused("broken.py:load", base=tmp_path)


# -- images


def write_images(folder: Path, size=(6, 5), mode="RGB") -> Path:
    from PIL import Image

    rng = np.random.default_rng(3)
    for split, count in (("train", 4), ("test", 2)):
        for label in ("cat", "dog"):
            (folder / split / label).mkdir(parents=True)
            for i in range(count):
                shape = (*size, 3) if mode == "RGB" else size
                Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / split / label / f"{i}.png")
    return folder


@pytest.mark.parametrize(("mode", "layout", "shape"), [("RGB", "NHWC", (3, 6, 5)), ("L", "NHW", (1, 6, 5))])
def test_images_by_class(tmp_path, mode, layout, shape):
    pytest.importorskip("PIL")
    from PIL import Image

    data = load_data(write_images(tmp_path, mode=mode))
    test = data.split("test")
    assert data.classes == ("cat", "dog")
    assert test.labels.tolist() == [0, 0, 1, 1]
    assert test.preprocess.layout == layout
    assert next(batches(test, 2)).shape == (2, *shape)
    assert test.ids[0] == "test/cat/0.png"
    np.testing.assert_array_equal(test.inputs[0], np.asarray(Image.open(tmp_path / "test/cat/0.png")))


def test_images_in_one_tree_are_split(tmp_path):
    pytest.importorskip("PIL")
    write_images(tmp_path)
    data = load_data(tmp_path / "train")
    assert len(data.split("train")) + len(data.split("test")) == 8
    assert any("one split only" in note for note in data.notes)


def test_images_are_brought_to_a_size_and_to_grey(tmp_path):
    pytest.importorskip("PIL")
    data = load_data(write_images(tmp_path), images={"size": [3, 4], "channels": 1})
    assert data.split("test").inputs.shape == (4, 3, 4)


def test_images_of_different_sizes_are_refused(tmp_path):
    Image = pytest.importorskip("PIL.Image")  # noqa: N806
    write_images(tmp_path)
    Image.new("RGB", (9, 9)).save(tmp_path / "test" / "dog" / "9.png")
    assert "give one size for all in the recipe" in refused(tmp_path)


def test_a_damaged_image_is_named(tmp_path):
    pytest.importorskip("PIL")
    write_images(tmp_path)
    file = tmp_path / "train" / "cat" / "0.png"
    file.write_bytes(file.read_bytes()[:60])
    assert "0.png is not a readable image" in refused(tmp_path)


def test_an_empty_folder_is_refused(tmp_path):
    pytest.importorskip("PIL")
    assert "no card.yaml, no .npz and no images by class" in refused(tmp_path)


# -- bad input


def test_missing_and_unknown_sources(tmp_path):
    assert "does not exist. Give a folder with card.yaml, an .npz file" in refused(tmp_path / "nothing")
    (tmp_path / "data.csv").write_text("1,2")
    assert "is not a data file" in refused(tmp_path / "data.csv")


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_pickled_arrays_are_refused_and_never_executed(tmp_path):
    proof = tmp_path / "executed"
    array = np.empty(2, dtype=object)
    array[:] = [Bomb(proof), 1]
    np.savez(tmp_path / "bad.npz", x=array)
    assert "holds pickled Python objects, which could run code; it was not loaded" in refused(tmp_path / "bad.npz")
    (tmp_path / "raw.npz").write_bytes(pickle.dumps(Bomb(proof)))
    assert "is not a readable .npz file" in refused(tmp_path / "raw.npz")
    assert not proof.exists()


def test_a_truncated_npz_is_refused(tiny_npz):
    tiny_npz.write_bytes(tiny_npz.read_bytes()[:-200])
    assert "is not a readable .npz file" in refused(tiny_npz)


def test_an_npz_with_members_that_are_no_arrays_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", b"hello")
    assert "is damaged: x in it is no array" in refused(tmp_path / "a.npz")


def test_labels_of_the_training_part_may_be_missing(tmp_path):
    x, y = np.random.default_rng(0).random((40, 4)), np.arange(40) % 4
    some = np.where(np.arange(40) % 3 == 0, y, -1)
    np.savez(tmp_path / "mixed.npz", train_x=x, train_y=some, test_x=x + 1, test_y=y)
    data = load_data(str(tmp_path / "mixed.npz"))
    np.testing.assert_array_equal(data.split("train").labels, some)
    assert data.split("calibration").labels is None  # it judges by the outputs then, not by some of the labels
    np.savez(tmp_path / "alone.npz", train_x=x, train_y=some)
    assert (load_data(str(tmp_path / "alone.npz")).split("test").labels >= 0).all()
    np.savez(tmp_path / "none.npz", train_x=x, train_y=np.full(40, -1), test_x=x + 1, test_y=y)
    assert load_data(str(tmp_path / "none.npz")).split("train").labels is None
    np.savez(tmp_path / "test.npz", train_x=x, train_y=y, test_x=x + 1, test_y=some)
    with pytest.raises(UsageError, match=r"split 'test': label -1 \(sample 1\) is out of range"):
        load_data(str(tmp_path / "test.npz"))
    np.savez(tmp_path / "low.npz", train_x=x, train_y=y - 2, test_x=x + 1, test_y=y)
    with pytest.raises(UsageError, match="label -2"):
        load_data(str(tmp_path / "low.npz"))


def test_labels_beyond_64_bits_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", test_x=np.zeros((1, 2)), test_y=np.array([2**63], np.uint64))
    assert "label 9223372036854775808 (sample 0) is out of range" in refused(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("return {'train': ([[1, 2], [1]], None)}", "returned samples or labels that are no array"),
        ("raise SystemExit(0)", "raised SystemExit: 0"),
    ],
)
def test_a_function_that_goes_wrong_is_one_clear_error(tmp_path, code, message):
    (tmp_path / "mine.py").write_text(f"def make():\n    {code}\n")
    with pytest.raises(UsageError, match=message):
        load_data("mine.py:make", base=tmp_path)


def test_npz_without_samples_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 2)))
    assert "holds images: edgekit reads `x` and `y`" in refused(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((0, 4), np.float32), None, "is empty: its array has shape [0, 4]"),
        (np.zeros(4, np.float32), None, "holds no samples with values: its array has shape [4]"),
        (np.array([[1.0, np.nan], [1, 2]]), None, "sample 0 holds NaN or infinity"),
        (np.array([[1.0, 2.0], [1, np.inf]]), None, "sample 1 holds NaN or infinity"),
        (np.array([["a", "b"], ["c", "d"]]), None, "samples are of type <U1; integers or floats are needed"),
        (np.zeros((2, 2), np.complex64), None, "samples are of type complex64"),
        (np.zeros((3, 2)), np.arange(2), "3 samples need labels of shape [3], got [2]"),
        (np.zeros((3, 2)), np.zeros((3, 1), int), "3 samples need labels of shape [3], got [3, 1]"),
        (np.zeros((3, 2)), np.array([0.0, 1.0, 1.5]), "labels are of type float64; whole numbers from 0 are needed"),
        (np.zeros((3, 2)), np.array([0, -1, 1]), "label -1 (sample 1) is out of range"),
        (np.zeros((3, 2)), np.array([0, 1, 2**63], np.uint64), "label 9223372036854775808 (sample 2) is out of range"),
        (np.zeros((3, 2)), np.array([0, 1, 7]), "label 7 (sample 2) is out of range: classes are 0 to 1"),
    ],
)
def test_samples_and_labels_that_cannot_be_used(tmp_path, x, y, message):
    arrays = {"test_x": x} if y is None else {"test_x": x, "test_y": y}
    np.savez(tmp_path / "bad.npz", **arrays)
    assert message in refused(tmp_path / "bad.npz", classes=["a", "b"])


def test_labels_do_not_matter_without_a_task(tmp_path):
    np.savez(tmp_path / "a.npz", test_x=np.zeros((3, 2)), test_y=np.zeros((3, 5)))
    assert load_data(tmp_path / "a.npz", task="none").split("test").labels is None


# -- against the model


def data_of(x: np.ndarray, y: np.ndarray | None = None, **preprocess) -> DataSet:
    split = Split("test", x, y, tuple(map(str, range(len(x)))), Preprocess(**preprocess))
    return DataSet("d", {"test": split})


@pytest.mark.parametrize(
    ("data", "inputs", "message"),
    [
        (data_of(np.zeros((2, 4, 4), np.uint8)), [("x", "float32", ("n", 1, 4, 4))], "wants [1, 4, 4]"),
        (data_of(np.zeros((2, 5), np.float32)), [("x", "float32", ("n", 4))], "a sample has shape [5]"),
        (data_of(np.zeros((2, 4), np.int64)), [("x", "float32", ("n", 4))], "samples are int64"),
        (data_of(np.zeros((2, 4))), [("x", "int64", ("n", 4))], "are float64; the input 'x' takes int64"),
        (data_of(np.zeros((2, 4))), [("a", "float32", ("n", 4)), ("b", "float32", ("n", 4))], "for the input 'a', 'b'"),
    ],
)
def test_data_that_the_model_cannot_take(data, inputs, message):
    with pytest.raises(UsageError) as caught:
        check_against(data, [TensorSpec(*spec) for spec in inputs])
    assert message in str(caught.value)


def test_labels_beyond_the_models_classes():
    data = data_of(np.zeros((2, 4), np.float32), np.array([0, 10]))
    with pytest.raises(UsageError, match=r"label 10 \(sample 1\) is out of range: the model has 10 classes, 0 to 9"):
        check_against(data, [TensorSpec("x", "float32", ("n", 4))], [TensorSpec("y", "float32", ("n", 10))])


def test_dynamic_axes_take_any_size():
    check_against(data_of(np.zeros((2, 3, 8, 9), np.uint8)), [TensorSpec("x", "float32", ("n", 3, "h", "w"))])


# -- slices


def test_slices_are_read_beside_the_samples_and_follow_them(tmp_path):
    x, y = np.zeros((10, 4), np.float32), np.arange(10) % 2
    light = np.array(["day", "night"] * 5)
    np.savez(tmp_path / "all.npz", **{"x": x, "y": y, "slice.light": light, "slice.device": np.arange(10)})
    data = load_data(tmp_path / "all.npz")
    for split in data.splits.values():
        numbers = [int(name.rpartition("/")[2]) for name in split.ids]
        assert list(split.slices["light"]) == [str(light[i]) for i in numbers]
        assert list(split.slices["device"]) == [str(i) for i in numbers]
    np.savez(tmp_path / "two.npz", **{"train_x": x, "train_y": y, "test_x": x, "test_y": y, "test_slice.light": light})
    data = load_data(tmp_path / "two.npz")
    assert not data.splits["train"].slices and list(data.splits["test"].slices) == ["light"]


def test_slices_of_a_card_are_cut_to_its_rows_and_do_not_change_what_the_samples_are(tmp_path):
    def written(folder, **slices):
        folder.mkdir()
        np.savez(folder / "a.npz", x=np.zeros((10, 4), np.float32), y=np.arange(10) % 2, **slices)
        sha = hashlib.sha256((folder / "a.npz").read_bytes()).hexdigest()
        (folder / "card.yaml").write_text(
            f"name: a\nsource: here\nlicence: MIT\nfiles: {{a.npz: '{sha}'}}\n"
            "splits: {train: {file: a.npz, rows: [0, 6]}, test: {file: a.npz, rows: [6, 10]}}\n"
        )
        return load_data(folder)

    data, plain = written(tmp_path / "a", **{"slice.n": np.arange(10)}), written(tmp_path / "b")
    assert list(data.splits["test"].slices["n"]) == ["6", "7", "8", "9"]
    assert data.sha256 == plain.sha256


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("slice.light", np.array(["day"] * 9), "10 samples need slices 'light' of shape [10], got [9]"),
        ("slice.light", np.linspace(0, 1, 10), "slices 'light' are of type float64"),
        ("test_slice.light", np.arange(10), "holds the slices 'test_slice.light' and no 'test_x'"),
    ],
)
def test_slices_that_do_not_fit_are_refused(tmp_path, column, values, said):
    np.savez(tmp_path / "a.npz", **{"x": np.zeros((10, 4), np.float32), "y": np.arange(10) % 2, column: values})
    assert said in refused(tmp_path / "a.npz")
