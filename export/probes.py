"""One small model for each part of a space, and whole experts to calibrate their sum on."""

from __future__ import annotations

import dataclasses
import pathlib

import keras
import numpy as np
from tqdm import tqdm

from export import convert, graphs, manifest
from instanas_tf import files
from instanas_tf.models.blocks import ConvNorm, image_normalization, make_op
from instanas_tf.models.controller import Controller
from instanas_tf.models.expert import static_network
from instanas_tf.models.supernet import has_own_shortcut
from instanas_tf.pipeline.routers import SearchRouter
from instanas_tf.spaces.space import CellSpec, OpSpec, SearchSpace

_MEAN, _STD = (127.5,) * 3, (64.0,) * 3


@dataclasses.dataclass(frozen=True)
class ProbeSet:
    """Names of the probes that fill a table.

    Attributes:
        manifest: of all probe files.
        ops: L rows of K names; equal specs share a probe.
        calibration: expert name -> policy 0/1 [L, K], for the scale factor.
        validation: expert name -> policy, for the error of the prediction.
    """

    manifest: pathlib.Path
    ops: tuple[tuple[str, ...], ...]
    calibration: dict[str, np.ndarray]
    validation: dict[str, np.ndarray]


def op_name(cell: CellSpec, spec: OpSpec, shortcut: bool) -> str:
    """Name of the probe of an op; the same for cells in which the op is the same."""
    add = "_add" if shortcut else ""
    return f"{spec.name}_{cell.size}px_{cell.in_channels}_{cell.out_channels}_s{cell.stride}{add}"


def op_probe(cell: CellSpec, spec: OpSpec, shortcut: bool) -> keras.Model:
    """A model of one op alone, [1, H, W, C] -> [1, H', W', C']."""
    inputs = keras.Input((cell.size, cell.size, cell.in_channels))
    op = make_op(spec, channels=cell.out_channels, stride=cell.stride, shortcut=shortcut)
    return keras.Model(inputs, op(inputs), name="op")


def stem_probe(space: SearchSpace) -> keras.Model:
    """Normalisation and stem."""
    images = keras.Input((space.image_size, space.image_size, 3))
    features = image_normalization(_MEAN, [s * s for s in _STD])(images)
    stem = ConvNorm(space.stem_channels, 3, space.stem_stride, "relu")
    return keras.Model(images, stem(features), name="stem")


def head_probe(space: SearchSpace) -> keras.Model:
    """Last convolution, pool and classifier."""
    last = space.cells[-1]
    inputs = keras.Input((last.out_size, last.out_size, last.out_channels))
    features = ConvNorm(space.head_channels, 1, 1, "relu")(inputs)
    features = keras.layers.GlobalAveragePooling2D()(features)
    return keras.Model(inputs, keras.layers.Dense(space.num_classes)(features), name="head")


def random_policies(space: SearchSpace, count: int, seed: int) -> list[np.ndarray]:
    """Different networks spread over the range of costs: the share of ops on varies."""
    generator = np.random.default_rng(seed)
    found: dict[bytes, np.ndarray] = {}
    shape = (space.num_cells, space.num_ops)
    keeps = np.linspace(0.08, 0.6, count)
    for keep in keeps:
        for _ in range(100):  # A tiny space may run out of different networks.
            drawn = (generator.uniform(size=shape) < keep).astype(np.float32)
            policy = np.asarray(space.effective(drawn), np.float32)
            if policy.tobytes() not in found:
                found[policy.tobytes()] = policy
                break
    policies = list(found.values())
    return [policies[i] for i in generator.permutation(len(policies))]


def write_probes(
    space: SearchSpace,
    controller_kind: str,
    experts: int,
    folder: pathlib.Path,
    *,
    calibration: int,
    validation: int,
    seed: int,
) -> ProbeSet:
    """Converts all probes, each distinct one once, and writes their manifest.

    Args:
        space: the search space.
        controller_kind: which controller to probe.
        experts: how many experts the controller will choose among.
        folder: where the files go.
        calibration: whole experts for the scale factor.
        validation: whole experts for the error of the prediction.
        seed: of the experts' policies.

    Raises:
        ModelError: a probe cannot be converted, or the disk is full.
    """
    builders: dict[str, tuple] = {}
    rows = []
    for cell in space.cells:
        row = []
        for spec in space.ops:
            shortcut = has_own_shortcut(cell, spec, space.merge)
            name = op_name(cell, spec, shortcut)
            shape = (1, cell.size, cell.size, cell.in_channels)
            builders[name] = (op_probe, (cell, spec, shortcut), shape)
            row.append(name)
        rows.append(tuple(row))
    last = space.cells[-1]
    image = (1, space.image_size, space.image_size, 3)
    builders["stem"] = (stem_probe, (space,), image)
    head_shape = (1, last.out_size, last.out_size, last.out_channels)
    builders["head"] = (head_probe, (space,), head_shape)
    policies = random_policies(space, calibration + validation, seed)
    names = [f"network_{index:02d}" for index in range(len(policies))]
    networks = dict(zip(names, policies, strict=True))
    for name, policy in networks.items():
        builders[name] = (static_network, (space, policy, _MEAN, _STD), image)
    chooser = np.stack(policies[: max(1, experts)])
    builders["controller"] = (_controller_probe, (space, controller_kind, chooser), image)

    entries = []
    for name, (build, arguments, shape) in tqdm(
        builders.items(), desc="converting probes", unit="model", disable=None
    ):
        keras.utils.set_random_seed(seed)
        path = folder / f"{name}.tflite"
        files.write_bytes(path, convert.to_tflite(build(*arguments), shape))
        entries.append(manifest.entry(name, "probe", path))
        keras.backend.clear_session(free_memory=False)
    path = manifest.write(folder, entries, space_hash=space.hash, controller=controller_kind)
    return ProbeSet(
        manifest=path,
        ops=tuple(rows),
        calibration={name: networks[name] for name in names[:calibration]},
        validation={name: networks[name] for name in names[calibration:]},
    )


def _controller_probe(space: SearchSpace, kind: str, experts: np.ndarray) -> keras.Model:
    return graphs.DeployedFront(None, SearchRouter(Controller(space, kind), experts))
