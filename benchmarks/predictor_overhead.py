"""What the predictor takes beside the invocations of the files that it runs.

    python benchmarks/predictor_overhead.py [--bundle=DIR,...] [--rounds=50] [--keep=DIR]

Without --bundle it writes exports of a space with random weights: one network alone, a
controller with four experts of which one runs, and a cascade of three experts on shared features
of which all run. Each runtime that is installed measures in a process of its own, where the
predictor and the bare calls of the same interpreters take turns in random order; figures are
sums over the images of medians over the rounds, in processor time of the one thread, so that
other work on the machine disturbs little. The last line is one JSON object, for each runtime
and export:

- `overhead`: what `predict` of one image takes beyond setting the inputs, invoking and reading
  the outputs of the same files in the same order, as a share of that. At most 0.05 is wanted.
- `overhead_batch`: the same of one call for all images.
- `overhead_over_invoke`: as `overhead`, but setting inputs and reading outputs count as well.
- `overhead_us` and `bare_ms`: for one image.
"""

from __future__ import annotations

import importlib.util
import json
import pathlib
import tempfile

from absl import app, flags, logging

from export.runtime import RUNTIMES
from instanas_tf import children, startup

_BUNDLE = flags.DEFINE_list("bundle", [], "Folders of exports; empty: random weights.")
_KEEP = flags.DEFINE_string("keep", "", "Folder to leave the exports of random weights in.")
_SPACE = flags.DEFINE_string("space", "mobilenet_v2_32", "Search space of the random weights.")
_ROUNDS = flags.DEFINE_integer("rounds", 50, "Times that each image is timed.", lower_bound=1)
_IMAGES = flags.DEFINE_integer("images", 10, "Number of images.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of weights, images and order.")

KEEPS = (0.1, 0.2, 0.3, 0.4)  # Share of the ops that are on in each expert.
SHARED = 4  # Cells that the experts of the cascade share.


def random_exports(root: pathlib.Path, space_name: str, seed: int) -> list[pathlib.Path]:
    """Writes an export of each kind with random weights.

    Args:
        root: folder that gets a folder for each.
        space_name: of the search space.
        seed: of the policies and weights.
    """
    import keras
    import numpy as np

    from export import graphs
    from export.routed import Rules
    from instanas_tf import spaces
    from instanas_tf.models import expert, routers

    keras.utils.set_random_seed(seed)
    space = spaces.get(space_name)
    generator = np.random.default_rng(seed)
    shape = (space.num_cells, space.num_ops)
    policies = [(generator.random(shape) < keep).astype(int) for keep in KEEPS]
    pixels = ((127.5,) * 3, (64.0,) * 3)
    count, shared = len(KEEPS), min(SHARED, space.num_cells)
    experts = {
        f"expert_{index:02d}": graphs.Classifier(expert.static_network(space, policy, *pixels))
        for index, policy in enumerate(policies)
    }
    router = routers.ImageRouter(space.image_size, count, "half", *pixels)
    front = expert.front_network(space, policies[0], *pixels, shared)
    rests = {
        name: graphs.Classifier(expert.rest_network(space, policy, shared))
        for name, policy in zip(experts, policies[:3], strict=False)
    }
    kinds = {
        "alone": ({"expert_00": experts["expert_00"]}, Rules(0, (-1,), (0.0,))),
        "controller": (
            {"controller": graphs.DeployedFront(None, router), **experts},
            Rules.named(count),
        ),
        "cascade": (
            {"controller": graphs.DeployedFront(front, None), **rests},
            Rules(0, (1, 2, -1), (1.0, 1.0, 0.0), True),
        ),
    }
    return [_write(root / name, models, rules, space) for name, (models, rules) in kinds.items()]


def _write(folder: pathlib.Path, models, rules, space) -> pathlib.Path:
    """One export with the shapes of the models' own inputs."""
    from export import convert, manifest

    folder.mkdir(parents=True)
    image = (1, space.image_size, space.image_size, 3)
    features = tuple(models["controller"].front.output.shape[1:]) if rules.features else ()
    shapes = {
        name: (1, *features) if rules.features and name != "controller" else image
        for name in models
    }
    paths = convert.write_models(models, folder, shapes)
    entries = [
        manifest.entry(name, "expert" if name.startswith("expert") else name, path)
        for name, path in paths.items()
    ]
    variant = {
        "name": "A",
        "controller": "controller" if rules.needs_front else None,
        "decide": None,
        "experts": [name for name in models if name.startswith("expert")],
        "routing": rules.to_json("random"),
    }
    labels = [str(index) for index in range(space.num_classes)]
    manifest.write(folder, entries, variants=[variant], selected="A", labels=labels)
    return folder


def measure(folders: list[pathlib.Path]) -> dict[str, dict[str, dict[str, float]]]:
    """Figures of all exports with each runtime that is installed.

    Raises:
        RuntimeError: no runtime is installed, or a worker fails.
    """
    found = {}
    for runtime in RUNTIMES:
        if importlib.util.find_spec(runtime) is None:
            continue
        settings = map(str, (runtime, _ROUNDS.value, _IMAGES.value, _SEED.value, *folders))
        done = children.run_module("benchmarks.predictor_worker", *settings)
        if done.returncode:
            raise RuntimeError(f"{runtime}: {done.stderr}")
        found[runtime] = json.loads(done.stdout.splitlines()[-1])
    if not found:
        raise RuntimeError(f"no runtime is installed; install one of {', '.join(RUNTIMES)}")
    return found


def main(argv) -> None:
    """Prints a table of shares and the JSON object."""
    logging.set_verbosity(logging.WARNING)
    with tempfile.TemporaryDirectory() as root:
        folders = [pathlib.Path(folder).resolve() for folder in _BUNDLE.value]
        if not folders:
            startup.import_tensorflow()
            folders = random_exports(pathlib.Path(_KEEP.value or root), _SPACE.value, _SEED.value)
        found = measure(folders)
    for runtime, exports in found.items():
        for name, figures in exports.items():
            print(
                f"{runtime:15} {name:12} overhead {figures['overhead']:6.1%} "
                f"({figures['overhead_us']:.0f} us of {figures['bare_ms']:.2f} ms), "
                f"in a batch {figures['overhead_batch']:6.1%}"
            )
    rounded = {
        runtime: {
            name: {key: round(value, 4) for key, value in figures.items()}
            for name, figures in exports.items()
        }
        for runtime, exports in found.items()
    }
    print(json.dumps(rounded))


if __name__ == "__main__":
    app.run(main)
