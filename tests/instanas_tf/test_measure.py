"""Measured numbers become a calibrated table; and the command's mistakes."""

import numpy as np
import pytest

from instanas_tf import measure, spaces
from instanas_tf.errors import InputError
from instanas_tf.latency import LatencyTable
from tests import fixtures_ring as ring

SPACE = spaces.get("tiny")


def table():
    op_ms = tuple(tuple(0.1 * (1 + cell + op) for op in range(3)) for cell in range(3))
    return LatencyTable(SPACE, op_ms, 0.3, 0.2, 0.05, "small")


def networks(count, seed):
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, 2, (count, 3, 3)).astype(np.float32)
    return {f"network_{seed}_{index}": policy for index, policy in enumerate(drawn)}


def test_calibration_finds_a_known_scale():
    calibration, validation = networks(6, 0), networks(4, 1)
    both = calibration | validation
    measured = {name: 1.25 * float(table().static_ms(policy)) for name, policy in both.items()}
    found = measure.calibrate(table(), calibration, validation, measured)
    assert found.scale == pytest.approx(1.25)
    assert found.controller_ms == 0.05
    for name, policy in both.items():
        assert float(found.static_ms(policy)) == pytest.approx(measured[name])
    assert found.calibration["calibration"]["count"] == 6
    report = found.calibration["validation"]
    assert report["count"] == 4
    assert report["mean_absolute_percentage_error"] == pytest.approx(0.0, abs=1e-4)
    unscaled = found.calibration["validation_unscaled"]
    assert unscaled["mean_absolute_percentage_error"] == pytest.approx(20.0)
    assert unscaled["bias_percent"] == pytest.approx(-20.0)


def test_one_disturbed_network_does_not_move_the_scale():
    calibration = networks(7, 0)
    measured = {name: 2.0 * float(table().static_ms(p)) for name, p in calibration.items()}
    measured["network_0_3"] *= 50
    found = measure.calibrate(table(), calibration, {}, measured)
    assert found.scale == pytest.approx(2.0)
    assert set(found.calibration) == {"calibration"}


def test_too_few_networks():
    with pytest.raises(InputError, match="5 experts are too few .*calibration_experts to at least"):
        measure.calibrate(table(), networks(5, 0), {}, {})


def test_summary():
    calibration, validation = networks(6, 0), networks(4, 1)
    measured = {
        name: 1.25 * float(table().static_ms(policy))
        for name, policy in (calibration | validation).items()
    }
    rows = dict(measure.summary(measure.calibrate(table(), calibration, validation, measured)))
    assert rows["controller"] == "0.050 ms"
    assert rows["scale factor"] == "1.250"
    assert rows["error on 4 other experts"] == "0.0 %"
    assert "reference network" in rows


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["extra"], "unexpected argument 'extra'"),
        (["--devcie=host"], "devcie"),
        ([], "no run below runs/; train first"),
        (["--workdir=missing"], "--workdir=missing holds no run"),
    ],
)
def test_mistakes(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert measure.main(["measure", *arguments]) == 2
    assert words in ring.said(capsys.readouterr().err, "measure")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def untrained(tmp_path):
    """A folder with a run's config alone."""
    from instanas_tf.pipeline.config import default_config
    from instanas_tf.pipeline.workdir import open_workdir, start
    from instanas_tf.train import override

    config = override(default_config(), ring.overrides())
    workdir = open_workdir(tmp_path / "run", config)
    start(workdir, config)
    return workdir


def test_damaged_config(capsys, untrained):
    untrained.config.write_text("{")
    assert measure.main(["measure", f"--workdir={untrained.root}"]) == 2
    assert "config.json is damaged" in ring.said(capsys.readouterr().err, "measure")


def test_unknown_device(capfd, untrained, monkeypatch):
    from export import probes

    def unwanted(*args, **kwargs):
        raise AssertionError("probes are converted before the device is looked at")

    monkeypatch.setenv("PYTHONPATH", str(ring.ROOT))
    monkeypatch.setattr(probes, "write_probes", unwanted)
    assert measure.main(["measure", f"--workdir={untrained.root}", "--device=toaster"]) == 2
    assert "toaster" in capfd.readouterr().err
    assert not untrained.latency_table.exists()
