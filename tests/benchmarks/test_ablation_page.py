"""The rows and the page of the table of what each piece buys."""

import json

import pytest

from instanas_tf.errors import InputError
from tests import fixtures_ring as ring
from tests.fixtures_ablations import HEADER, RESULTS, ROW, module, row

table, page, ablations = map(module, ("ablation_rows", "ablation_page", "ablations"))


def test_rows_of_results():
    first, second = table.rows_of(RESULTS, "digits", "priced", 0)
    assert first == ROW
    assert second == row(
        name="B",
        kind="search",
        target=0.25,
        accuracy=0.5,
        latency_ratio=0.25,
        latency_share=0.125,
        routing_gain=None,
        routing_gain_interval=None,
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": []}, "must hold a variant"),
        ({"baselines": []}, "must hold mobilenet_v2_1.0"),
        ({"static": RESULTS["static"][1:2]}, "an expert trained alone"),
        ({"variants": [{**RESULTS["variants"][0], "accuracy": 1.5}]}, "`accuracy` must be"),
        ({"variants": [{**RESULTS["variants"][0], "pays": 1}]}, "`pays` must be"),
        ({"variants": [{"name": "A"}]}, "'routing_gain' is missing"),
        ({"dataset": "cifar10"}, "it is of 'cifar10'"),
        ({"static": None}, "is damaged"),
        ({"runtime": "ai_edge_litert"}, "is damaged"),
    ],
)
def test_damaged_results(tmp_path, changes, message):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(RESULTS | changes))
    with pytest.raises(InputError, match=message):
        table.read_results(path, "digits", "priced", 0)


def test_a_table_round_trips(tmp_path):
    rows = [ROW, row(routing_gain=None, routing_gain_interval=None)]
    table.write_table(tmp_path / "a.json", {"digits": HEADER}, rows)
    assert table.read_table(tmp_path / "a.json") == ({"digits": HEADER}, rows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "its format is 'other'"),
        ({"datasets": {}}, "no header for digits"),
        ({"rows": [ROW.to_json() | {"extra": 1}]}, "extra"),
        ({"rows": [ROW.to_json() | {"routing_gain_interval": [0.5, 0.25]}]}, "interval"),
        ({"rows": [ROW.to_json() | {"seed": -1}]}, "`seed` must be"),
    ],
)
def test_a_damaged_table(tmp_path, changes, message):
    path = tmp_path / "a.json"
    table.write_table(path, {"digits": HEADER}, [ROW])
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(InputError, match=message):
        table.read_table(path)


def test_spread():
    assert page.spread([0.75], 1, 100.0) == "75.0"
    assert page.spread([0.5, 1.0], 2) == "0.75 (0.50 to 1.00)"
    assert page.spread([-0.0001], 1) == "0.0"


def test_a_line_of_the_table():
    lines = page.table([ROW]).splitlines()
    assert lines[2] == (
        "| `priced` | A (asked: 0.5) | cascade | 75.0 | 0.50 [0.25] | 3.1, 1.6 … 6.2 | 1 of 1 "
        "| 25.0 |"
    )


def test_a_line_over_two_seeds():
    other = row(seed=1, kind="image", accuracy=0.25, routing_gain=None, routing_gain_interval=None)
    lines = page.table([ROW, other, row(setting="all")]).splitlines()
    assert lines[2] == (
        "| `priced` | A (asked: 0.5) | cascade, image | 50.0 (25.0 to 75.0) "
        "| 0.50 (0.50 to 0.50) [0.25] | 3.1, 1.6 … 6.2 | 2 of 2 | 25.0 (25.0 to 25.0) |"
    )
    assert lines[3].startswith("| `all` (1 of 2 seeds) |")


def test_facts():
    rows = [
        ROW,
        row(setting="all", routing_gain=0.0625, expert_gap=0.0),
        row(setting="start", routing_gain=-0.03125, pays=False),
        row(setting="image", pays=False),
        row(setting="image", seed=1),
    ]
    assert page.facts(rows) == [
        "Over its variants and seeds `all` gains most over static networks as fast, 6.2 points on "
        "average, and `start` least, -3.1.",
        "Choosing by image pays in every variant of every seed: `priced`, `all`.",
        "Choosing by image pays in some variants of some seeds: `image`.",
        "Choosing by image pays in no variant of any seed: `start`.",
        "Mean gain against `priced`, in points: `all` +3.1, `start` -6.2, `image` +0.0.",
        "Experts lose most against training alone in `priced` (25.0 points) and least in `all` "
        "(0.0).",
    ]


def test_facts_without_a_gain():
    assert page.facts([row(routing_gain=None, routing_gain_interval=None)]) == [
        "Choosing by image pays in every variant of every seed: `priced`."
    ]


def test_the_page_is_made_from_the_rows(tmp_path):
    out, where = tmp_path / "a.json", tmp_path / "docs" / "a.md"
    missed = [{"setting": "priced", "seed": 0, "targets": [0.5]}]
    rows = [ROW, row(dataset="cifar10", routing_gain=None, routing_gain_interval=None)]
    table.write_table(out, {"digits": HEADER, "cifar10": HEADER | {"missed": missed}}, rows)
    flags = ("--page_only", f"--out={out}", f"--page={where}")
    code, _, err = ring.quietly(ablations.main, *flags)
    assert (code, err) == (0, "")
    text = where.read_text()
    assert text.count("\n## ") == 2
    assert "    python benchmarks/ablations.py --dataset=digits --seeds=0\n" in text
    assert "host, ai_edge_litert 2.0.3. Seeds 0." in text
    assert "- `priced`: `--config.search.recipe=priced`" in text
    assert "A Processor, 2 cores; Python 3.11.7, keras 3.9.0" in text
    assert "[../a.json](../a.json)" in text
    assert "`priced` (seed 0): 0.5." in text
    assert "pretrain 12, search 16, finetune 12" in text
    assert (tmp_path / "docs" / "a.png").read_bytes().startswith(b"\x89PNG")
    first = where.read_bytes()
    assert ring.quietly(ablations.main, *flags)[0] == 0
    assert where.read_bytes() == first
