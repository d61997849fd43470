"""The oracles' own numbers; what they do in a search is in test_tuner.py."""

import keras_tuner as kt

from instanas_tf import oracles
from instanas_tf.pipeline import config as config_module
from instanas_tf.pipeline import knobs
from instanas_tf.pipeline.tuning import Plan


def test_a_short_bayesian_search_is_not_all_at_random():
    config, every = config_module.default_config(), knobs.select("all", "priced")

    def random_trials(count):
        plan = Plan(config, "score", "bayesian", every, count)
        return oracles.make_oracle(plan).num_initial_points

    assert [random_trials(count) for count in (1, 9, 900)] == [2, 3, 39]


def test_values_survive_the_way_between_processes():
    found = knobs.select("all", "priced")
    space = oracles.hyperparameters(found)
    for knob in found:
        space.values[knob.name] = space.get(knob.name) * 1.2345678901234
    again = kt.HyperParameters.from_proto(space.to_proto()).values
    for knob in found:
        assert knob.nearest(again[knob.name]) == knob.nearest(space.values[knob.name])
