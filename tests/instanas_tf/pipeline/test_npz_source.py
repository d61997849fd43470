"""Archives of every permitted shape, and one error a defect."""

import zipfile

import numpy as np
import pytest

from instanas_tf.errors import InputError
from instanas_tf.pipeline import data
from instanas_tf.pipeline.config import default_config

Y = np.arange(20) % 2
X = np.broadcast_to(np.arange(20, dtype=np.uint8)[:, None, None], (20, 4, 4))


def load(path, seed=0, **changes):
    settings = default_config().data
    settings.update({"name": "npz", "data_dir": str(path), "image_size": 4})
    settings.update({"validation_fraction": 0.2, "controller_fraction": 0.0, **changes})
    return data.load(settings, seed)


def write(folder, **arrays):
    path = folder / "set.npz"
    arrays = {"x_train": X, "y_train": Y, **arrays}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def assert_refused(message, path, **changes):
    with pytest.raises(InputError, match=message) as caught:
        load(path, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def numbers(split):
    return data.to_arrays(split)[0][:, 0, 0, 0].tolist()


def test_missing_splits_are_cut_off_the_training_images(tmp_path):
    loaded = load(write(tmp_path))
    assert loaded.labels == ("0", "1")
    assert (loaded.train.count, loaded.validation.count, loaded.test.count) == (13, 3, 4)
    splits = (loaded.train, loaded.validation, loaded.test)
    assert sorted(sum((numbers(split) for split in splits), [])) == list(range(20))
    for split in splits:
        images, labels = data.to_arrays(split)
        assert images.dtype == np.uint8 and labels.dtype == np.int64
        np.testing.assert_array_equal(images[:, 0, 0, 0] % 2, labels)


def test_splits_and_names_that_are_there_are_kept(tmp_path):
    path = write(
        tmp_path,
        x_test=X + 20,
        y_test=Y[:, None].astype(np.uint8),
        x_validation=X[:6] + 40,
        y_validation=Y[:6],
        labels=np.array(["cat", "größe"]),
    )
    loaded = load(path)
    assert loaded.labels == ("cat", "größe")
    assert numbers(loaded.train) == list(range(20))
    assert numbers(loaded.test) == list(range(20, 40))
    assert numbers(loaded.validation) == list(range(40, 46))


def test_a_lone_validation_split_is_the_test_split(tmp_path):
    loaded = load(write(tmp_path, x_validation=X + 20, y_validation=Y))
    assert numbers(loaded.test) == list(range(20, 40))
    assert (loaded.train.count, loaded.validation.count) == (16, 4)


@pytest.mark.parametrize("shape", [(7, 5), (7, 5, 1), (7, 5, 3), (2, 2), (4, 4, 3), (4, 4, 1)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_images_of_any_shape_become_rgb_squares(tmp_path, shape, dtype):
    images = np.full((20, *shape), 9, np.uint8)
    loaded = load(write(tmp_path, x_train=images, y_train=Y.astype(dtype)))
    found, _ = data.to_arrays(loaded.train)
    np.testing.assert_array_equal(found, np.full((13, 4, 4, 3), 9))


def test_colours_stay_in_their_channels(tmp_path):
    images = np.broadcast_to(np.array([1, 2, 3], np.uint8), (20, 6, 6, 3))
    loaded = load(write(tmp_path, x_train=images))
    assert loaded.mean == (1.0, 2.0, 3.0)


def test_other_arrays_are_not_looked_at(tmp_path):
    assert load(write(tmp_path, x_extra=np.array([None]))).train.count == 13


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x_train": None}, "must have an array x_train. Received: y_train; add it"),
        ({"y_train": None}, "must have an array y_train. Received: x_train; add it"),
        ({"x_train": None, "y_train": None}, "have an array x_train. Received: no arrays"),
        ({"x_test": X}, "must have an array y_test"),
        ({"y_validation": Y}, "must have an array x_validation"),
        ({"x_train": X / 255}, r"x_train .*must be uint8.*Received: float64 \(20, 4, 4\)"),
        ({"x_train": X.astype(np.int64)}, "x_train .*must be uint8.*Received: int64"),
        ({"x_train": X[:, 0]}, r"x_train .*\(n, H, W\).*Received: uint8 \(20, 4\)"),
        ({"x_train": X[..., None].repeat(4, -1)}, r"Received: uint8 \(20, 4, 4, 4\)"),
        ({"x_train": X[:, :0]}, r"x_train .*Received: uint8 \(20, 0, 4\)"),
        ({"x_train": np.uint8(3)}, r"x_train .*Received: uint8 \(\)"),
        ({"y_train": Y / 1.0}, r"y_train .*must be integers.*Received: float64 \(20,\)"),
        ({"y_train": np.eye(20)}, r"y_train .*must be integers.*Received: float64 \(20, 20\)"),
        ({"y_train": np.int64(3)}, r"y_train .*must be integers.*Received: int64 \(\)"),
        ({"y_train": Y.astype(bool)}, "y_train .*must be integers.*Received: bool"),
        ({"x_train": X[:0], "y_train": Y[:0]}, "y_train .*must hold labels. Received: none"),
        ({"x_test": X[:0], "y_test": Y[:0]}, "y_test .*must hold labels. Received: none"),
        ({"x_train": X[:19]}, "equally long. Received: 19 and 20"),
        ({"y_train": -Y}, "y_train .*at least two classes from 0 on. Received: -1..0 for 20"),
        ({"y_train": 0 * Y}, "y_train .*two classes from 0 on. Received: 0..0 for 20 images"),
        ({"y_train": 10**15 * Y}, "y_train .*from 0 on. Received: 0..1000000000000000 for 20"),
        ({"y_train": 2 * Y}, "every class must have an image in the train split.*none of 1"),
        ({"x_test": X, "y_test": Y + 1}, r"y_test .*must lie in 0..1. Received: 1..2; mend"),
        ({"x_test": X, "y_test": Y - 1}, r"y_test .*must lie in 0..1. Received: -1..0"),
        ({"labels": np.array(["a"])}, r"labels in .*at least two classes. Received: <U1 \(1,\)"),
        ({"labels": np.array([1, 2])}, "labels in .*must be text.*Received: int64"),
        ({"labels": np.array([["a", "b"]])}, r"labels in .*Received: <U1 \(1, 2\)"),
        ({"labels": np.array(["a", "b"]), "y_train": Y + 1}, "y_train .*must lie in 0..1"),
        ({"x_train": np.array([None] * 20)}, "cannot be read: .*without arrays of objects"),
        ({"labels": np.array(["a", None])}, "cannot be read: .*without arrays of objects"),
    ],
)
def test_arrays_that_cannot_be_used_are_named(tmp_path, arrays, message):
    path = write(tmp_path, **arrays)
    assert str(path) in assert_refused(message, path) or "every class" in message


def test_files_that_are_no_archive_are_named(tmp_path):
    for path in ("", tmp_path, tmp_path / "no.npz"):
        assert_refused(r"data_dir must be a NumPy archive \(.npz\) that exists", path)
    path = write(tmp_path)
    whole = path.read_bytes()
    np.save(tmp_path / "one.npy", X)
    for content in (b"", b"text", whole[:-30], (tmp_path / "one.npy").read_bytes()):
        path.write_bytes(content)
        assert_refused(f"{path} must be a whole NumPy archive", path)


def test_an_archive_of_other_files_is_named(tmp_path):
    path = tmp_path / "set.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x_train", b"text")
        archive.writestr("y_train.npy", b"text")
    assert_refused("y_train", path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_any_flipped_byte_is_survived(tmp_path, save):
    path = tmp_path / "set.npz"
    save(path, x_train=X, y_train=Y, labels=np.array(["a", "b"]))
    content = path.read_bytes()
    for position in np.random.default_rng(0).choice(len(content), 150, replace=False):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        try:
            assert load(path).train.count == 13
        except InputError as error:
            assert "\n" not in str(error)


def test_an_archive_above_the_memory_limit_is_refused(tmp_path):
    assert_refused(
        "within config.data.memory_limit_mib. Received: 20 images of 4 px, and a limit of 0 MiB",
        write(tmp_path),
        memory_limit_mib=0,
    )
