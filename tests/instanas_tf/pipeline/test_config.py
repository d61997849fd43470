"""Settings: read back as they were written, and checked before a run starts."""

import json

import pytest

from instanas_tf.errors import InputError
from instanas_tf.pipeline import checks, config, config_files
from tests.fixtures_ring import ROOT, overrides

PRESETS = {"default": config.default_config, "published": config.published_config}


@pytest.mark.parametrize("preset", PRESETS)
def test_presets(preset):
    made = PRESETS[preset]()
    checks.check(made)
    assert made.is_locked
    assert config_files.flatten(made).keys() == config_files.flatten(config.default_config()).keys()


@pytest.mark.parametrize("preset", PRESETS)
def test_round_trip(preset, tmp_path):
    made = PRESETS[preset]()
    (tmp_path / "config.json").write_text(made.to_json())
    read = config_files.from_json(tmp_path / "config.json")
    assert config_files.flatten(read) == config_files.flatten(made)
    assert read.is_locked
    assert read.pretrain.keep == made.pretrain.keep
    assert type(read.pretrain.keep) is type(read.pretrain.keep[0]) is tuple
    assert read.variants.targets == made.variants.targets
    assert json.loads(read.to_json()) == json.loads(made.to_json())
    checks.check(read)


@pytest.mark.parametrize("content", ["[]", "[1]", "3", '"text"', "null", '{"seed": "0"}'])
def test_from_json_of_something_else(content, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(InputError, match="choose another --workdir") as caught:
        config_files.from_json(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_config_files(path):
    checks.check(config_files.load(str(path)))


def test_no_path_is_the_default():
    assert config_files.load("") == config.default_config()


def test_integers_serve_as_floats():
    made = config.default_config()
    with made.ignore_type():
        made.pretrain.learning_rate = 1
    config_files.check_keys(made)


def test_names():
    config_files.check_names(["config.seed", "config.data.augmentation.flip"])
    with pytest.raises(InputError, match="did you mean config.data.augmentation.flip?"):
        config_files.check_names(["config.data.augmentation.filp"])
    with pytest.raises(InputError, match="see instanas_tf/pipeline/config.py"):
        config_files.check_names(["config.zzzzzzzzzzzzzzzzzzzzzzzzzzzzzz"])


def test_every_default_is_checked_or_free():
    known = config_files.flatten(config.default_config())
    listed = [
        *checks.CHOICES,
        *checks.AT_LEAST,
        *checks.ABOVE_ZERO,
        *checks.SHARES,
        *checks.KNOTS,
        *checks.POSITIVE_LISTS,
        *checks.NAMES,
    ]
    assert set(listed) <= set(known)
    assert len(listed) == len(set(listed))


def test_the_small_run_changes_settings_that_exist():
    config_files.check_names([item.split("=")[0].lstrip("-") for item in overrides()])
