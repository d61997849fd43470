"""A few steps of each stage on the tiny space, for processes that must come to the same.

As a command, `python -m tests.fixtures_twins JOBS RESULT`: JOBS is a JSON list of arguments
of `run`; RESULT an archive of all that it returns.
"""

import functools
import json
import os
import pathlib
import sys

import numpy as np

IMAGES = 8  # In a batch.
DRAWS = 4096
STAGES = ("pretrain", "search_priced", "search_published", "sandwich", "assigned", "alone")


def batch(step):
    """Images and labels of a step."""
    generator = np.random.default_rng([5, step])
    labels = generator.integers(0, 3, IMAGES).astype(np.int32)
    images = generator.uniform(0, 255, (IMAGES, 8, 8, 3)) * (1 + labels[:, None, None, None]) / 3
    return images.astype(np.float32), labels


def make_model(stage, routed, merge):
    """The model that a stage trains, weights by the seed."""
    import keras

    from instanas_tf import spaces
    from instanas_tf.latency import LatencyTable
    from instanas_tf.models.controller import Controller
    from instanas_tf.models.expert import static_network
    from instanas_tf.models.supernet import Supernet
    from instanas_tf.models.training import sgd
    from instanas_tf.pipeline.finetune import Assigned, Sandwich
    from instanas_tf.pipeline.pretrain import Alone, PathDropout
    from instanas_tf.search.instance_aware import InstaNAS, SearchSettings

    keras.utils.set_random_seed(3)
    space, colours = spaces.get("tiny", num_classes=3, merge=merge), ((120.0,) * 3, (60.0,) * 3)
    if stage == "alone":
        network = static_network(space, np.eye(3), *colours)
        return Alone(network, sgd(0.05, 1e-4, network.trainable_variables), 0.1, 1.0)
    supernet = Supernet(space, *colours, routed=routed)
    weights = sgd(0.05, 1e-4, supernet.trainable_variables)
    if stage == "pretrain":
        model = PathDropout(supernet, weights, np.eye(3)[None], (0.2, 0.9), 0.1, 1.0, 0)
        model.random_keep.assign(1.0)
        return model
    experts = np.stack([np.eye(3), *map(space.single_op_policy, space.op_names)])
    if stage == "sandwich":
        weights = sgd(0.02, 1e-4, supernet.variables_of(experts[:3]))  # Of three losses.
        return Sandwich(supernet, experts[:3], weights, 0.1, 1.0, distillation=0.5)
    controller = Controller(space, "small", *colours, logit_stddev=0.5)
    if stage == "assigned":
        return Assigned(supernet, [controller], experts, weights, 0.1, 1.0)
    table = LatencyTable(
        space, ((1.0, 2.0, 4.0), (8.0, 16.0, 32.0), (3.0, 5.0, 7.0)), 0.5, 0.25, 3.0, "small"
    )
    adam = keras.optimizers.Adam(0.001)
    adam.build(controller.trainable_variables)
    settings = {
        "search_priced": SearchSettings(
            "priced", "step", 1.0, entropy_weight=0.1, diversity_weight=0.5, label_smoothing=0.1
        ),
        "search_published": SearchSettings(
            "published", "epoch", 1.0, 3.0, -1.0, entropy_weight=0.1, diversity_weight=0.5
        ),
    }[stage]
    model = InstaNAS(supernet, controller, table, settings, adam, weights, 1.0, 0)
    model.target.assign(0.5)
    return model


def draw_alike():
    """Makes `keras.random.uniform` draw the same numbers on every backend."""
    import keras
    from keras import ops

    table = np.random.default_rng(1).uniform(size=(64, DRAWS)).astype(np.float32)

    def uniform(shape, minval=0.0, maxval=1.0, dtype=None, seed=None):
        del dtype
        row = ops.take(ops.convert_to_tensor(table), ops.cast(seed.next()[1] % 64, "int32"), axis=0)
        drawn = ops.reshape(row[: int(np.prod(shape))], shape)
        return minval + (maxval - minval) * drawn

    keras.random.uniform = uniform


@functools.cache  # Two of them would give the same names to what they sum up.
def mirrored(replicas):
    """The strategy for all jobs of this process."""
    import tensorflow as tf

    return tf.distribute.MirroredStrategy([f"CPU:{n}" for n in range(replicas)])


def run(stage, routed, merge="sum", steps=3, replicas=1, alike=False, saved=None):
    """Takes some steps.

    Args:
        stage: one of `STAGES`.
        routed: whether ops run on the images that chose them alone.
        merge: of the space.
        steps: how many.
        replicas: logical CPUs that share each batch; there must be as many.
        alike: whether to draw numbers that do not depend on the backend.
        saved: folder of a checkpoint to start from; it is written if there is none.

    Returns:
        {name: array}: the values of all steps, and the state.
    """
    import keras

    from instanas_tf.models import compiled
    from instanas_tf.pipeline.checkpoints import Checkpoints, Progress
    from instanas_tf.pipeline.cluster import Cluster

    if alike:
        draw_alike()
    keras.backend.clear_session()  # Names count anew.
    strategy = mirrored(replicas) if replicas > 1 else None
    with Cluster(strategy).scope():
        model = make_model(stage, routed, merge)
    if saved:
        checkpoints = Checkpoints(model.state, pathlib.Path(saved))
        if not checkpoints.paths():
            checkpoints.save(Progress(1))
        checkpoints.restore()
    stepper = compiled.stepper(model, (), strategy)
    logs = {}
    for step in range(steps):
        for name, value in stepper(*batch(step), model.active(step, 0)).items():
            logs.setdefault(name, []).append(float(value))
    stepper.write()
    found = {name: np.array(values) for name, values in logs.items()}
    for index, variable in enumerate(model.state):
        found[f"state {index} {variable.name}"] = np.asarray(variable)
    return found


def difference(ours, theirs):
    """The largest difference of two arrays, as a share of the largest value.

    Or of 0.01, as means that should be 0 are off by the rounding of what they are means of.
    """
    assert ours.shape == theirs.shape
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    return float(np.max(np.abs(ours - theirs), initial=0) / max(1e-2, np.max(np.abs(ours))))


def read(result):
    """{name: array} of each job of a command."""
    with np.load(result) as archive:
        arrays = dict(archive)
    count = 1 + max(int(name.partition("/")[0]) for name in arrays)
    found = [{} for _ in range(count)]
    for name, value in arrays.items():
        number, _, rest = name.partition("/")
        found[int(number)][rest] = value
    return found


def main(jobs, result):
    """See the file."""
    content = json.loads(jobs)
    devices = max(each.get("replicas", 1) for each in content)
    if os.environ.get("KERAS_BACKEND", "tensorflow") == "tensorflow":
        import tensorflow as tf

        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * devices
        )
    arrays = {}
    for number, each in enumerate(content):
        arrays |= {f"{number}/{name}": value for name, value in run(**each).items()}
    np.savez(result, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
