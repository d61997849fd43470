"""What the tests of `benchmarks/ablations.py` share: its modules, a run's results and a row."""

import dataclasses
import importlib

import pytest

from tests import fixtures_ring as ring


def module(name):
    """One of the benchmarks' modules, which find each other beside themselves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ring.ROOT / "benchmarks")
        return importlib.import_module(name)


table = module("ablation_rows")

RESULTS = {
    "dataset": "digits",
    "test_images": 400,
    "timed_images": 100,
    "device": {"name": "host", "cores": 2},
    "runtime": {"name": "ai_edge_litert", "version": "2.0.3"},
    "weight_epochs": 40,
    "baselines": [
        {"name": "mobilenet_v2_1.0", "latency_ms": 2.0},
        {"name": "mobilenet_v2_0.5", "latency_ms": 1.0},
    ],
    "static": [
        {"name": "expert_00", "latency_ms": 0.5, "gap": 0.25},
        {"name": "expert_01", "latency_ms": 1.5},
        {"name": "expert_02", "latency_ms": 4.0, "gap": -0.125},
        {"name": "mobilenet_v2_1.0", "latency_ms": 2.0, "width": 1.0},
        {"name": "alone_12345678", "latency_ms": 9.0, "expert": 0},
    ],
    "variants": [
        {
            "name": "A",
            "kind": "cascade",
            "target": 0.5,
            "accuracy": 0.75,
            "mean_latency_ms": 1.0,
            "routing_gain": {"gain": 0.03125, "interval": [0.015625, 0.0625]},
            "pays": True,
        },
        {
            "name": "B",
            "kind": "search",
            "target": 0.25,
            "accuracy": 0.5,
            "mean_latency_ms": 0.5,
            "routing_gain": None,
            "pays": True,
        },
    ],
}
ROW = table.Row(
    dataset="digits",
    setting="priced",
    seed=0,
    name="A",
    kind="cascade",
    target=0.5,
    accuracy=0.75,
    latency_ratio=0.5,
    latency_share=0.25,
    routing_gain=0.03125,
    routing_gain_interval=(0.015625, 0.0625),
    expert_gap=0.25,
    pays=True,
)
HEADER = {
    "date": "2024-05-06",
    "machine": {"cpu": "A Processor", "cores": 2},
    "versions": {"Python": "3.11.7", "keras": "3.9.0"},
    "device": "host",
    "runtime": "ai_edge_litert 2.0.3",
    "commands": ["python benchmarks/ablations.py --dataset=digits --seeds=0"],
    "images": {"training": 0, "test": 400, "timed": 100},
    "epochs": {"pretrain": 12, "search": 16, "finetune": 12},
    "weight_epochs": 40,
    "settings": {"priced": ["--config.search.recipe=priced"]},
    "missed": [],
}


def row(**changes):
    """`ROW` with other values."""
    return dataclasses.replace(ROW, **changes)
