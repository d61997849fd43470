"""Which policies become the experts: K of all that the search visited, or of those it ended with.

A search that collapses to one policy still visits others on its way, and neighbours of those
and a few hand-made anchors cost nothing but an evaluation. All of them are judged on the
validation split by the supernet as it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from instanas_tf import files
from instanas_tf.errors import InputError
from instanas_tf.latency import LatencyTable
from instanas_tf.models import compiled
from instanas_tf.models.supernet import Supernet
from instanas_tf.pipeline import callbacks, data, fitting, variants
from instanas_tf.pipeline.search import pick_epochs
from instanas_tf.pipeline.workdir import WorkDir
from instanas_tf.search import expert_set, medoids
from instanas_tf.spaces.space import SearchSpace

_EXPLORE = 5  # Purpose of random numbers.


def visited(
    epochs: list[int], config: ConfigDict, images: data.ImageData, workdir: WorkDir
) -> expert_set.PolicyCounts:
    """The policies that the controllers of some epochs give the training images."""
    controller = fitting.make_controller(config, images)

    def infer(images):
        return controller.logits(images, training=False)

    run = compiled.function(infer, controller.variables)  # Once for all epochs.
    found = []
    for epoch in epochs:
        callbacks.load_weights(controller, workdir.controller(epoch))
        logits = [np.asarray(run(batch)) for batch in fitting.images_of(images.train)]
        found.append(expert_set.count_policies(np.concatenate(logits) >= 0, controller.space))
    return expert_set.merge_counts(found)


def judge(supernet: Supernet, policies: np.ndarray, split: data.Split) -> np.ndarray:
    """Accuracy of each policy on a split, normalised by the statistics of its own batches.

    That is what an expert has once it is recalibrated, and one function serves all policies.
    The supernet's moving statistics are changed: load its weights again afterwards.

    Args:
        supernet: with trained weights.
        policies: 0/1 [n, L, K].
        split: the images.

    Returns:
        [n].
    """
    size = min(fitting.EVAL_BATCH, split.count)
    batches = [b for b in data.eval_batches(split, size) if len(b[1]) == size]
    labels = np.concatenate([labels for _, labels in batches])

    def infer(images, policy):
        return supernet((images, policy), training=True)

    run = compiled.function(infer, supernet.variables)  # Once for all policies.
    found = []
    for policy in np.asarray(policies, np.float32):
        tiled = np.broadcast_to(policy, (size, *policy.shape))
        logits = np.concatenate([np.asarray(run(images, tiled)) for images, _ in batches])
        found.append(np.mean(np.argmax(logits, axis=-1) == labels))
    return np.array(found)


def candidates(
    found: expert_set.PolicyCounts, config: ConfigDict, space: SearchSpace
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """The policies that experts are chosen among.

    Args:
        found: what the search visited.
        config: of the run.
        space: the search space.

    Returns:
        Policies [n, L, K], all different; how often each is wanted [n], 0 for anchors and
        neighbours; and the indices of those that `config.experts.required` names.
    """
    settings = config.experts
    anchors = [policy for _, policy in expert_set.anchors(space)]
    required = expert_set.named_anchors(space, settings.required)
    wanted = found.policies[: settings.candidates]
    generator = np.random.default_rng([config.seed, _EXPLORE])
    neighbours = expert_set.mutations(
        np.concatenate([wanted, anchors]), space, settings.explore, generator
    )
    pool = np.concatenate([required, wanted, np.stack(anchors), neighbours])
    counts = np.zeros(len(pool))
    counts[len(required) :][: len(wanted)] = found.counts[: len(wanted)]
    (cheap,) = expert_set.named_anchors(space, ("cheap",))
    pool = expert_set.with_shared_cells(
        np.asarray(space.effective(pool)), cheap, settings.shared_cells
    )
    _, first, index = np.unique(
        pool.reshape(len(pool), -1), axis=0, return_index=True, return_inverse=True
    )
    order = np.argsort(first)  # As they came: the most wanted first.
    place = np.argsort(order)[index.reshape(-1)]
    total = np.bincount(place, weights=counts, minlength=len(first))
    return pool[np.sort(first)], total, sorted(set(place[: len(required)].tolist()))


def choose(
    config: ConfigDict,
    images: data.ImageData,
    table: LatencyTable,
    supernet: Supernet,
    workdir: WorkDir,
) -> dict[str, Any]:
    """The experts of a run, from cheap to dear.

    Args:
        config: of the run.
        images: the dataset.
        table: measured latencies.
        supernet: with the weights that the search left; its moving statistics are changed.
        workdir: of the run, whose search is done.

    Returns:
        As JSON: `policies`, a dict of op names for each expert; `epochs` that were picked;
        `unique_policies` and `varying_bits` of what the search visited.

    Raises:
        InputError: more experts are asked for than there are different policies.
    """
    rows = callbacks.read_metrics(workdir.metrics)
    picked = pick_epochs(rows, config.variants.targets)
    space = table.space
    if config.experts.choice == "picked":
        found = visited(picked, config, images, workdir)
        experts = expert_set.choose_experts(found, config.experts.count, config.seed)
    else:
        found = visited(list(range(1, config.search.epochs + 1)), config, images, workdir)
        pool, counts, required = candidates(found, config, space)
        if len(pool) < max(config.experts.count, len(required)):
            raise InputError(
                f"config.experts.count must be at most {len(pool)}, the different policies that "
                f"there are, and at least {len(required)}, those of config.experts.required. "
                f"Received: {config.experts.count}"
            )
        accuracy, latency = judge(supernet, pool, images.validation), table.static_ms(pool)
        chosen = medoids.choose_medoids(
            medoids.Candidates(pool, wanted(counts, accuracy, latency), accuracy, latency),
            config.experts.count,
            required=required,
        )
        experts = pool[chosen]
    experts = experts[np.argsort(table.static_ms(experts), kind="stable")]
    return {
        "epochs": picked,
        "policies": [space.policy_names(policy) for policy in experts],
        "unique_policies": found.unique,
        "varying_bits": found.varying_bits,
    }


def wanted(counts: np.ndarray, accuracy: np.ndarray, latency_ms: np.ndarray) -> np.ndarray:
    """Weights of the candidates: half for what the search wanted, half for the Pareto front.

    A search that collapsed wants one policy; without the second half all other experts would
    be arbitrary.

    Args:
        counts: images that asked for each, [n].
        accuracy: [n].
        latency_ms: [n].
    """
    order = np.lexsort((-accuracy, latency_ms))
    best = np.maximum.accumulate(np.concatenate([[-1.0], accuracy[order][:-1]]))
    front = np.zeros(len(counts))
    front[order] = accuracy[order] > best
    shares = counts / counts.sum() if counts.sum() else counts
    return shares + front / front.sum()


def choose_once(
    config: ConfigDict,
    images: data.ImageData,
    table: LatencyTable,
    supernet: Supernet,
    workdir: WorkDir,
) -> dict[str, Any]:
    """What `choose` gave the chief the first time: rounding might make another choice differ."""
    path = workdir.chosen
    if workdir.cluster.is_chief and not path.exists():
        files.write_json(path, choose(config, images, table, supernet, workdir))
    workdir.cluster.wait()
    return variants.read_chosen(path, table.space)
