"""The state of an unfinished stage: what is written is read, and damage is seen."""

import errno
import logging
import os

import keras
import numpy as np
import pytest

from instanas_tf.errors import InputError, ModelError
from instanas_tf.pipeline.checkpoints import Checkpoints, Progress


def filled(value, shapes=((2, 3), (), (4,))):
    """Variables of several kinds, all of one value."""
    dtypes = ("float32", "float32", "int32")
    return [
        keras.Variable(np.full(shape, value), dtype=dtype)
        for shape, dtype in zip(shapes, dtypes, strict=False)
    ]


def values(variables):
    return [np.asarray(variable).tolist() for variable in variables]


def saved(folder, epochs):
    """Checkpoints of some epochs; after epoch n all variables are n."""
    for epoch in range(1, epochs + 1):
        Checkpoints(filled(epoch), folder).save(Progress(epoch))
    return folder


def restored(folder):
    """Whole epochs done, and what the variables are, which were 0."""
    variables = filled(0)
    return Checkpoints(variables, folder).restore().epoch, values(variables)


def test_nothing_to_go_on_from(tmp_path):
    variables = filled(7)
    assert Checkpoints(variables, tmp_path / "none").restore() == Progress(0, 0, {})
    assert values(variables) == values(filled(7))
    assert list(tmp_path.iterdir()) == []


def test_what_is_saved_is_restored_and_two_are_kept(tmp_path):
    assert restored(saved(tmp_path, 3)) == (3, values(filled(3)))
    assert [path.name for path in Checkpoints([], tmp_path).paths()] == [
        "00003_00000000.npz",
        "00002_00000000.npz",
    ]
    assert len(list(tmp_path.iterdir())) == 2


def test_within_an_epoch(tmp_path):
    saved(tmp_path, 1)
    sums = {"loss": np.float32(1.1), "accuracy": np.float32(2.0)}
    Checkpoints(filled(5), tmp_path).save(Progress(1, 12, sums))
    Checkpoints(filled(6), tmp_path).save(Progress(1, 101, sums))
    variables = filled(0)
    found = Checkpoints(variables, tmp_path).restore()
    assert (found.epoch, found.step) == (1, 101)
    assert found.sums == sums
    assert {value.dtype for value in found.sums.values()} == {np.dtype("float32")}
    assert values(variables) == values(filled(6))
    # The end of an epoch is later than any step of it.
    Checkpoints(filled(7), tmp_path).save(Progress(2))
    assert restored(tmp_path) == (2, values(filled(7)))


class Cells(keras.Model):
    """Layers in lists, moving statistics, a scalar, a seed and an optimizer, as in our models."""

    def __init__(self):
        super().__init__()
        self.cells = [[keras.layers.BatchNormalization()], [keras.layers.Dense(2)]]
        self.price = self.add_weight(shape=(), initializer="zeros", trainable=False)
        for cell in self.cells:
            cell[0].build((None, 2))
        self.seed_generator = keras.random.SeedGenerator(0)
        self.weight_optimizer = keras.optimizers.Adam()
        self.weight_optimizer.build(self.trainable_variables)
        self.built = True

    @property
    def state(self):
        return [*self.variables, *self.weight_optimizer.variables]


def test_all_state_of_a_model_is_restored(tmp_path):
    first, second = Cells(), Cells()
    for model, value in ((first, 3), (second, 0)):
        for variable in model.state:
            variable.assign(np.full(variable.shape, value))
    Checkpoints(first.state, tmp_path).save(Progress(1))
    assert Checkpoints(second.state, tmp_path).restore().epoch == 1
    assert [v.path for v in second.state if np.any(np.asarray(v) != 3)] == []
    assert any("seed" in variable.path for variable in second.state)


def damage(path, how):
    content = path.read_bytes()
    if how == "flipped":
        middle = content.index(b"state_00000") + 150  # In an array, past its header.
        damaged = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    else:
        cut = content[: len(content) // 2]
        damaged = {"truncated": cut, "empty": b"", "garbage": b"\xffgarbage" * 100}[how]
    path.write_bytes(damaged)


@pytest.mark.parametrize("how", ["truncated", "empty", "garbage", "flipped"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, caplog, how):
    newest = Checkpoints([], saved(tmp_path, 3)).paths()[0]
    damage(newest, how)
    with caplog.at_level(logging.WARNING, "absl"):
        assert restored(tmp_path) == (2, values(filled(2)))
    assert [r.getMessage().partition(" (")[0] for r in caplog.records] == [
        f"{newest} cannot be read"
    ]
    # It is replaced when the epoch is done again.
    Checkpoints(filled(7), tmp_path).save(Progress(3))
    assert restored(tmp_path) == (3, values(filled(7)))


@pytest.mark.parametrize("how", ["truncated", "empty", "garbage", "flipped"])
def test_nothing_that_can_be_read(tmp_path, how):
    folder = saved(tmp_path / "some", 3)
    for path in Checkpoints([], folder).paths():
        damage(path, how)
    variables = filled(7)
    with pytest.raises(InputError, match="no checkpoint in .*some can be read; delete that folder"):
        Checkpoints(variables, folder).restore()
    assert values(variables) == values(filled(7))


def test_any_changed_byte_is_seen_or_does_not_matter(tmp_path):
    """NumPy's and zipfile's own headers are damaged too: no byte leads to wrong numbers."""
    Checkpoints(filled(3), tmp_path).save(Progress(1, 2, {"loss": np.float32(4)}))
    path = Checkpoints([], tmp_path).paths()[0]
    content, seen, variables = path.read_bytes(), 0, filled(0)
    tried = range(0, len(content), 3)
    for index in tried:
        mask = (1, 6, 64, 255)[index % 4]
        path.write_bytes(content[:index] + bytes([content[index] ^ mask]) + content[index + 1 :])
        for variable in variables:
            variable.assign(np.zeros(variable.shape))
        try:
            found = Checkpoints(variables, tmp_path).restore()
        except InputError:
            seen += 1
            assert values(variables) == values(filled(0))
            continue
        assert found == Progress(1, 2, {"loss": np.float32(4)}), (index, mask)
        assert values(variables) == values(filled(3)), (index, mask)
    assert seen > len(tried) / 2


def test_a_changed_header_of_a_large_array_is_seen(tmp_path):
    variables = [keras.Variable(np.ones(5000, np.float32))]
    Checkpoints(variables, tmp_path).save(Progress(1))
    path = Checkpoints([], tmp_path).paths()[0]
    content = path.read_bytes()
    assert content.count(b"<f4") == 1
    path.write_bytes(content.replace(b"<f4", b"<f2"))
    with pytest.raises(InputError):
        Checkpoints(variables, tmp_path).restore()
    assert np.asarray(variables[0]).min() == 1


@pytest.mark.parametrize(
    "shapes", [((2, 3), ()), ((2, 3), (), (4,), (1,)), ((2, 3), (), (5,)), ((3, 2), (), (4,))]
)
def test_a_checkpoint_of_another_model(tmp_path, shapes):
    saved(tmp_path, 1)
    variables = [keras.Variable(np.full(shape, 7.0)) for shape in shapes]
    before = values(variables)
    with pytest.raises(InputError, match="no checkpoint"):
        Checkpoints(variables, tmp_path).restore()
    assert values(variables) == before


@pytest.mark.parametrize("content", [{}, {"done": 3}, {"done": [1, 0]}, {"x": [1.0]}])
def test_an_archive_that_is_no_checkpoint(tmp_path, content):
    np.savez(tmp_path / "00001_00000000.npz", **content)
    with pytest.raises(InputError, match="no checkpoint"):
        restored(tmp_path)


def test_a_full_disk_leaves_the_checkpoints_alone(tmp_path, monkeypatch):
    saved(tmp_path, 3)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(ModelError, match="00004.*No space left on device; free some space"):
            Checkpoints(filled(4), tmp_path).save(Progress(4))
    assert restored(tmp_path) == (3, values(filled(3)))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="cannot write"):
        Checkpoints(filled(1), tmp_path / "file" / "some").save(Progress(1))
