"""A bundle says what its files say, is smaller, and is the same each time."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from export import bundle, bundled, convert, flatbuffer, runtime
from instanas_tf import spaces
from instanas_tf.errors import InputError
from instanas_tf.models.expert import build_expert
from instanas_tf.models.supernet import Supernet
from tests import fixtures_ring as ring

SPACE = spaces.get("tiny", num_classes=3)
SHAPE = (1, 8, 8, 3)
# One op on in each cell, and once more: the second 3x3 convolution of `basic` has a ReLU6.
POLICIES = ([[1, 0, 1], [0, 1, 0], [1, 0, 0]], [[1, 0, 0], [0, 1, 1], [0, 0, 1]])
COMPARE = """
import importlib, json, pathlib, sys
import numpy as np
from export.bundled import SignatureModel
from export.runtime import TfliteModel
folder, runtime = pathlib.Path(sys.argv[1]), sys.argv[2]
module = importlib.import_module(runtime + ".interpreter")
whole = module.Interpreter(str(folder / "bundle.tflite"))
whole.allocate_tensors()
found = {}
for path in sorted(folder.glob("expert_*.tflite")):
    alone = TfliteModel(path, runtime=runtime)
    part = SignatureModel(folder / "bundle.tflite", path.stem, runtime=runtime)
    runner = whole.get_signature_runner(path.stem)
    for seed in range(5):
        image = np.random.default_rng(seed).uniform(0, 255, (1, 8, 8, 3)).astype(np.float32)
        expected = alone.run_one(image, alone.output("f", 2).index)
        rows = runner(images=image)
        assert list(rows) == ["probabilities"]
        got = part.run_one(image, part.output("f", 2).index)
        key = path.stem
        error = np.abs(rows["probabilities"] - expected).max() / max(1, np.abs(expected).max())
        other = np.abs(got - rows["probabilities"]).max()
        found[key] = max(found.get(key, 0), float(error), float(other))
    assert part.input_shape == alone.input_shape == (1, 8, 8, 3)
    assert list(part.run_named(np.zeros(part.input_shape))) == ["probabilities"]
print(json.dumps(found))
"""


def networks():
    """Experts of a supernet, each with normalisation statistics of its own."""
    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(0)
    net = Supernet(SPACE)
    net((np.zeros(SHAPE, np.float32), np.ones((1, 3, 3), np.float32)))
    for layer in normalisations(net):
        layer.gamma.assign(generator.uniform(0.5, 1.5, layer.gamma.shape))
        layer.beta.assign(generator.normal(0.0, 0.5, layer.beta.shape))
    found = {}
    for number, policy in enumerate((*POLICIES, POLICIES[0])):
        network = build_expert(net, np.array(policy, np.float32))
        for layer in normalisations(network):
            layer.moving_mean.assign(generator.normal(0.0, 0.2, layer.moving_mean.shape))
            layer.moving_variance.assign(generator.uniform(0.5, 2.0, layer.moving_mean.shape))
        found[f"expert_{number:02d}"] = network
    return found


def normalisations(model):
    kind = keras.layers.BatchNormalization
    return [layer for layer in model._flatten_layers() if isinstance(layer, kind)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    models = networks()
    convert.write_models(models, folder, dict.fromkeys(models, SHAPE))
    bundle.merge(files_in(folder), folder / "bundle.tflite")
    return folder


def files_in(folder):
    return {path.stem: path for path in folder.glob("expert_*.tflite")}


@pytest.mark.parametrize("name", runtime.installed())
def test_a_bundle_says_what_its_files_say(folder, name):
    done = ring.python("-c", COMPARE, folder, name)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 3
    assert max(found.values()) < 1e-5


def test_equal_kernels_are_in_it_once(folder):
    model = flatbuffer.read(folder / "bundle.tflite")
    users = {}
    for number, graph in enumerate(model.subgraphs):
        for tensor in graph.tensors:
            values = flatbuffer.constant(model, tensor)
            if values is not None and values.ndim == 4 and values.size >= 384:
                users.setdefault(tensor.buffer, set()).add(number)
    # Projections of the first cell are smaller than their outputs, and stay as they are.
    assert sum(len(graphs) > 1 for graphs in users.values()) >= 4
    assert {0, 2} in users.values()
    assert {0, 1, 2} in users.values()
    total = sum(path.stat().st_size for path in files_in(folder).values())
    assert (folder / "bundle.tflite").stat().st_size < 0.8 * total


def test_the_order_of_the_files_does_not_matter(folder, tmp_path):
    backwards = dict(sorted(files_in(folder).items(), reverse=True))
    bundle.merge(backwards, tmp_path / "again.tflite")
    assert (tmp_path / "again.tflite").read_bytes() == (folder / "bundle.tflite").read_bytes()


def test_the_newest_runtime_that_a_file_needs_is_kept(folder, tmp_path):
    paths = files_in(folder)
    for name, version in zip(sorted(paths), (b"1.9.0", b"1.14.0", b"1.5.0"), strict=True):
        model = flatbuffer.read(paths[name])
        bundle._set_min_version(model, version)
        paths[name] = tmp_path / f"{name}.tflite"
        paths[name].write_bytes(flatbuffer.to_bytes(model))
    bundle.merge(paths, tmp_path / "out.tflite")
    assert bundle._min_version(flatbuffer.read(tmp_path / "out.tflite")) == [b"1.14.0"]


def test_a_cut_has_one_signature_and_its_weights_alone(folder):
    path = folder / "bundle.tflite"
    assert bundled.signatures(path) == ("expert_00", "expert_01", "expert_02")
    whole = flatbuffer.read(path)
    for number, name in enumerate(bundled.signatures(path)):
        content = bundled.cut_out(path, name)
        assert len(content) < path.stat().st_size
        model = flatbuffer.parse(content)
        assert [item.signatureKey for item in model.signatureDefs] == [name.encode()]
        assert model.signatureDefs[0].subgraphIndex == 0
        (graph,) = model.subgraphs
        pairs = zip(graph.tensors, whole.subgraphs[number].tensors, strict=True)
        for ours, theirs in pairs:
            got, expected = (
                flatbuffer.constant(*pair) for pair in ((model, ours), (whole, theirs))
            )
            np.testing.assert_array_equal(got, expected)


def test_what_cannot_be_cut(folder, tmp_path):
    path = folder / "bundle.tflite"
    with pytest.raises(ValueError, match=r"it has the signatures \['expert_00', .*'expert_02'\]"):
        bundled.cut_out(path, "controller")
    damaged = tmp_path / "damaged.tflite"
    damaged.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="it is damaged"):
        bundled.cut_out(damaged, "expert_00")
    damaged.write_bytes(b"a text, and no model")
    with pytest.raises(ValueError, match="it is no .tflite file"):
        bundled.signatures(damaged)


def test_files_without_one_signature_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="must name a file"):
        bundle.merge({}, tmp_path / "out.tflite")
    with pytest.raises(
        InputError, match="must have one graph with one signature. Received: 3 and 3"
    ):
        bundle.merge({"all": folder / "bundle.tflite"}, tmp_path / "out.tflite")
    with pytest.raises(InputError, match="gone.tflite cannot be read"):
        bundle.merge({"one": tmp_path / "gone.tflite"}, tmp_path / "out.tflite")
    assert not list(tmp_path.iterdir())


def _converter(weights):
    @tf.function(input_signature=[tf.TensorSpec(SHAPE, tf.float32, name="images")])
    def serve(images):
        return tf.nn.conv2d(images, weights, 1, "SAME")

    return convert._converter(serve.get_concrete_function())


@pytest.mark.parametrize("kind", ["fp16", "dynamic"])
def test_quantised_kernels_are_shared_too(tmp_path, kind):
    kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 64)).astype(np.float32)
    paths = {}
    for name, scale in (("one", 1.0), ("two", np.linspace(0.5, 3.0, 64, dtype=np.float32))):
        converter = _converter(tf.constant(kernel * scale))
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if kind == "fp16":
            converter.target_spec.supported_types = [tf.float16]
        paths[name] = tmp_path / f"{name}.tflite"
        paths[name].write_bytes(flatbuffer.sign(converter.convert(), ["images"], ["features"]))
    bundle.merge(paths, tmp_path / "out.tflite")
    model = flatbuffer.read(tmp_path / "out.tflite")
    kernels = [
        tensor.buffer
        for graph in model.subgraphs
        for tensor in graph.tensors
        if (values := flatbuffer.constant(model, tensor)) is not None and values.size == kernel.size
    ]
    assert len(kernels) == 2
    # The 1,728 entries in half precision are fewer than those of the output, 4,096.
    assert len(set(kernels)) == (2 if kind == "fp16" else 1)
