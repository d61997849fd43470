"""The latency table: literal sums, and files that are read strictly."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instanas_tf import files, spaces
from instanas_tf.errors import InputError
from instanas_tf.latency import LatencyTable, prediction_error

EMPTY = np.zeros((3, 3), np.float32)
ONE_EACH = np.array([[1, 0, 0], [0, 0, 1], [0, 1, 0]], np.float32)

# Stem and head cost 0.75 ms. The empty policy runs ir3_e3 in cell 1, 16 ms.
STATIC = [(EMPTY, 16.75), (ONE_EACH, 1 + 32 + 128 + 0.75), (np.ones((3, 3)), 511.75)]


@pytest.mark.parametrize(("policy", "expected"), STATIC)
def test_latency_is_the_sum_of_what_runs(tiny_table, policy, expected):
    assert tiny_table.static_ms(policy) == expected
    assert tiny_table.latency_ms(policy) == expected + 3.0


def test_scale_stretches_all_but_the_controller(tiny_table):
    scaled = dataclasses.replace(tiny_table, scale=2.0)
    assert scaled.fixed_ms == 1.5
    np.testing.assert_array_equal(scaled.costs_ms[0], [2, 4, 8])
    assert scaled.static_ms(EMPTY) == 33.5
    assert scaled.latency_ms(EMPTY) == 36.5


def test_the_latencies_that_others_are_compared_with(tiny_table):
    assert tiny_table.reference_ms == 1 + 8 + 64 + 0.75
    assert tiny_table.l_base_ms == 76.75
    assert tiny_table.l_max_ms == 514.75
    assert tiny_table.l_min_ms == 19.75


def test_tensors_and_arrays_have_the_same_latency(tiny_table, tiny_policies):
    from keras import ops

    expected = tiny_table.latency_ms(tiny_policies)
    assert expected.shape == (512,)
    found = tiny_table.latency_ms(ops.convert_to_tensor(tiny_policies), ops.sum)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


PROBABILITIES = np.arange(1, 10).reshape(3, 3) / 10.0


def test_latency_of_probabilities_is_the_expectation_over_all_policies(tiny_table, tiny_policies):
    chances = np.where(tiny_policies > 0, PROBABILITIES, 1 - PROBABILITIES).prod(axis=(1, 2))
    expected = chances @ tiny_table.latency_ms(tiny_policies.astype(float))
    np.testing.assert_allclose(tiny_table.latency_ms(PROBABILITIES), expected, rtol=1e-9)


def test_gradient_of_the_expected_latency_is_exact(tiny_table):
    import tensorflow as tf
    from keras import ops

    probabilities = tf.constant(PROBABILITIES, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(probabilities)
        expected_ms = tiny_table.static_ms(probabilities, ops.sum)
    # The latency is linear in each probability: a difference over any step is its derivative.
    differences = np.empty((3, 3))
    for place in np.ndindex(3, 3):
        on, off = PROBABILITIES.copy(), PROBABILITIES.copy()
        on[place], off[place] = 1.0, 0.0
        differences[place] = tiny_table.static_ms(on) - tiny_table.static_ms(off)
    gradient = tape.gradient(expected_ms, probabilities)
    np.testing.assert_allclose(gradient, differences, rtol=1e-5)
    # Cell 0 may be skipped, so its derivatives are the costs; in cell 1 an op that is on also
    # saves the default op: 8 - 16 * (1 - 0.5) * (1 - 0.6) = 4.8.
    np.testing.assert_allclose(differences[0], [1, 2, 4], rtol=1e-6)
    assert differences[1, 0] == pytest.approx(4.8)


@pytest.mark.parametrize(
    "changes",
    [
        {"op_ms": ((1.0, 2.0, 4.0),)},
        {"op_ms": ((1.0, 2.0, 0.0), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0))},
        {"op_ms": ((1.0, 2.0, float("nan")), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0))},
        {"stem_ms": 0.0},
        {"head_ms": -1.0},
        {"controller_ms": float("inf")},
        {"scale": 0.0},
        {"scale": float("nan")},
    ],
)
def test_a_table_refuses_what_is_no_latency(tiny_table, changes):
    with pytest.raises(ValueError, match="Received: "):
        dataclasses.replace(tiny_table, **changes)


def reseal(path, content):
    """Writes `content` with a checksum that is right; NaN cannot be sealed, and keeps the old."""
    content = dict(content)
    content.pop("checksum", None)
    try:
        checksum = files.digest(content)
    except ValueError:
        checksum = "0" * 64
    path.write_text(json.dumps({**content, "checksum": checksum}))


@pytest.fixture
def saved(tmp_path, tiny_table):
    """A table on disk: its path, and its content."""
    path = tmp_path / "latency_table.json"
    tiny_table.save(path)
    return path, json.loads(path.read_text())


def refused(path, **arguments):
    """The message of the InputError that loading ends with; it must be one line with a remedy."""
    with pytest.raises(InputError) as caught:
        LatencyTable.load(path, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert "instanas_tf.measure" in message
    return message


def test_a_table_is_the_same_after_saving_and_loading(saved, tiny, tiny_table):
    path, _ = saved
    assert LatencyTable.load(path) == tiny_table
    assert LatencyTable.load(path, tiny, "small", "none") == tiny_table


def test_missing_files_and_other_files_are_refused(tmp_path):
    path = tmp_path / "latency_table.json"
    assert "does not exist" in refused(path)
    for text in ("", "no JSON", "\x00", '{"format":'):
        path.write_text(text)
        assert "damaged" in refused(path)
    path.write_bytes(b"\xff\xfe")
    assert "damaged" in refused(path)
    for text in ("[]", "3", "null", "{}", '{"format": "instanas_tf/manifest"}'):
        path.write_text(text)
        assert "is no latency table" in refused(path)


def test_another_version_is_refused(saved):
    path, content = saved
    reseal(path, {**content, "version": 2})
    assert "version 2, not 1" in refused(path)


def test_a_missing_or_an_unknown_key_is_refused(saved):
    path, content = saved
    for key in sorted(set(content) - {"format", "version"}):
        path.write_text(json.dumps({name: content[name] for name in content if name != key}))
        assert f"missing or unknown key '{key}'" in refused(path)
    reseal(path, {**content, "remark": "fast"})
    assert "missing or unknown key 'remark'" in refused(path)


def test_a_change_by_hand_is_refused(saved):
    path, content = saved
    for changes in ({"stem_ms": 0.4}, {"checksum": "0" * 64}, {"device": {"model": "other"}}):
        path.write_text(json.dumps({**content, **changes}))
        assert "the checksum is wrong" in refused(path)


@pytest.mark.parametrize("number", [0.0, -1.0, float("nan"), float("inf"), "1.0", None, [1.0]])
def test_an_entry_that_is_no_latency_is_refused(saved, number):
    path, content = saved
    rows = [list(row) for row in content["op_ms"]]
    rows[1][2] = number
    reseal(path, {**content, "op_ms": rows})
    refused(path)
    for key in ("stem_ms", "head_ms", "controller_ms", "scale"):
        reseal(path, {**content, key: number})
        refused(path)


def test_a_table_of_something_else_is_refused(saved, tiny):
    path, content = saved
    other = spaces.get("tiny", width=2.0, num_classes=3)
    assert "another space" in refused(path, space=other)
    assert "another controller (small, not published)" in refused(path, controller_kind="published")
    assert "another quantization (none, not int8)" in refused(path, quantization="int8")
    reseal(path, {**content, "quantization": "int8"})
    assert "another quantization (int8, not none)" in refused(path, space=tiny)
    assert LatencyTable.load(path, tiny, quantization="int8").quantization == "int8"


SCALARS = st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=3)
DAMAGE = SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(st.text(max_size=3), SCALARS)


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_any_damage_ends_in_an_input_error_or_a_table(tmp_path_factory, tiny, tiny_table, data):
    path = tmp_path_factory.mktemp("damage") / "latency_table.json"
    tiny_table.save(path)
    content = json.loads(path.read_text())
    key = data.draw(st.sampled_from(sorted(content)))
    reseal(path, {**content, key: data.draw(DAMAGE)})
    try:
        table = LatencyTable.load(path, tiny, "small")
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert table.space == tiny


MILLISECONDS = st.floats(1e-6, 1e6)
TEXT = st.text(max_size=8)
NOTES = st.dictionaries(TEXT, TEXT | st.integers() | st.floats(-1e9, 1e9), max_size=3)


@settings(deadline=None, max_examples=50)
@given(
    numbers=st.lists(MILLISECONDS, min_size=13, max_size=13),
    texts=st.tuples(TEXT, TEXT, TEXT),
    notes=st.tuples(NOTES, NOTES, NOTES, NOTES),
    width=st.sampled_from([0.5, 1.0, 2.0]),
)
def test_every_table_survives_a_file(tmp_path_factory, numbers, texts, notes, width):
    table = LatencyTable(
        spaces.get("tiny", width=width),
        tuple(tuple(numbers[start : start + 3]) for start in (0, 3, 6)),
        *numbers[9:12],
        texts[0],
        numbers[12],
        *notes,
        texts[1],
        texts[2],
    )
    path = pathlib.Path(tmp_path_factory.mktemp("table"), "latency_table.json")
    table.save(path)
    assert LatencyTable.load(path, table.space, texts[0], texts[1]) == table


@pytest.mark.parametrize(
    ("predicted", "measured", "error", "bias", "ordered"),
    [
        ([1.1, 1.8], [1.0, 2.0], 10.0, 0.0, 1.0),
        ([2.0, 1.0], [1.0, 2.0], 75.0, 25.0, 0.0),
        ([2.0, 1.0], [1.0, 1.04], (100 + 100 / 26) / 2, (100 - 100 / 26) / 2, None),
        ([1.5], [2.0], 25.0, -25.0, None),
        # Of the pairs (1, 2), (1, 4), (2, 4) the last one is turned round.
        ([1.0, 4.0, 3.0], [1.0, 2.0, 4.0], (0 + 100 + 25) / 3, (0 + 100 - 25) / 3, 2 / 3),
    ],
)
def test_prediction_error(predicted, measured, error, bias, ordered):
    found = prediction_error(predicted, measured)
    assert found["count"] == len(measured)
    assert found["mean_absolute_percentage_error"] == pytest.approx(error)
    assert found["bias_percent"] == pytest.approx(bias, abs=1e-9)
    assert found["ordered_right"] == (None if ordered is None else pytest.approx(ordered))
