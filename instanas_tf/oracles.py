"""KerasTuner's oracles, which choose the values of trials, as this package uses them.

What differs from KerasTuner's own (1.4.8): their files are written in one piece and agree with
each other when they are read back, and a worker that is gone loses its trial to the next one,
where KerasTuner's chief would wait for it for ever.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import keras_tuner as kt

from instanas_tf import files
from instanas_tf.errors import ModelError
from instanas_tf.pipeline import tuning
from instanas_tf.pipeline.knobs import Knob
from instanas_tf.pipeline.tuning import Plan

_NEVER = 2**31  # KerasTuner's own limit would leave its lock taken.


class WholeFiles(kt.Oracle):
    """An oracle whose files are whole or not there, and agree with each other.

    Attributes:
        failure: why a file could not be written; None as long as all could.
        is_gone: says of a worker's name whether it is gone; set by a chief.
    """

    failure: ModelError | None = None
    is_gone: Callable[[str], bool] = staticmethod(lambda name: False)

    def save(self):
        """Writes `oracle.json` in one piece."""
        self._write(pathlib.Path(self._get_oracle_fname()), self.get_state())

    def _save_trial(self, trial):
        path = pathlib.Path(self._get_trial_dir(trial.trial_id)) / "trial.json"
        self._write(path, trial.get_state())

    def _write(self, path: pathlib.Path, state: dict) -> None:
        try:
            files.write_json(path, state)
        except ModelError as error:
            self.failure = error
            raise

    def reload(self):
        """Reads all files back; what the oracle had not noted yet does not count.

        That is a trial that was about to start, and the result of one that was about to end.

        Raises:
            InputError: a file is no JSON.
            ValueError: the file of a trial is missing.
        """
        state = pathlib.Path(self._get_oracle_fname())
        for path in [state, *sorted(state.parent.glob("trial_*/trial.json"))]:
            files.read_json(path, "start the search anew in another --workdir")
        super().reload()
        missing = [name for name in self.start_order if name not in self.trials]
        if missing:
            raise ValueError(f"trial_{missing[0]}/trial.json is missing")
        self.trials = {name: self.trials[name] for name in self.start_order}
        for name in self._retry_queue:
            values = self.trials[name].hyperparameters
            self.trials[name] = kt.engine.trial.Trial(values, trial_id=name, status="RUNNING")

    @kt.synchronized
    def create_trial(self, tuner_id):
        """Gives a worker a trial; with none left it waits for as long as others are at work.

        So it can take over the trial of a worker that dies.
        """
        self.drop_gone()
        trial = super().create_trial(tuner_id)
        if trial.status == "STOPPED" and self.ongoing_trials:
            trial.status = "IDLE"
            self.tuner_ids.add(tuner_id)
        return trial

    @kt.synchronized
    def drop_gone(self):
        """Queues the trials of workers that are gone, for the next worker that asks."""
        for name in sorted(self.tuner_ids):
            if self.is_gone(name):
                self.tuner_ids.discard(name)
                lost = self.ongoing_trials.pop(name, None)
                if lost is not None:
                    self._retry_queue.append(lost.trial_id)


class Hyperband(WholeFiles, kt.oracles.HyperbandOracle):
    """Hyperband: many trials with few epochs, and more epochs for the best of them."""


class Bayesian(WholeFiles, kt.oracles.BayesianOptimizationOracle):
    """A Gaussian process of what was tried."""


class Random(WholeFiles, kt.oracles.RandomSearchOracle):
    """Values drawn at random."""


def hyperparameters(knobs: tuple[Knob, ...]) -> kt.HyperParameters:
    """Knobs as KerasTuner's space."""
    space = kt.HyperParameters()
    for knob in knobs:
        if knob.kind == "choice":
            space.Choice(knob.name, list(knob.values), ordered=True)
        else:
            space.Float(knob.name, *knob.values, sampling=knob.kind)
    return space


def make_oracle(plan: Plan) -> kt.Oracle:
    """The oracle that chooses the values of a plan's trials."""
    shared = {
        "objective": kt.Objective(plan.objective, plan.direction),
        "hyperparameters": hyperparameters(plan.knobs),
        "allow_new_entries": False,
        "tune_new_entries": False,
        "seed": plan.config.seed + 1,  # KerasTuner takes 0 for none.
        "max_consecutive_failed_trials": _NEVER,
    }
    if plan.tuner == "hyperband":
        oracle = Hyperband(max_epochs=plan.config.search.epochs, factor=tuning.FACTOR, **shared)
        oracle.max_trials = plan.max_trials
        return oracle
    if plan.tuner == "random":
        return Random(max_trials=plan.max_trials, **shared)
    # A third of the trials at random at most, else a short search would be nothing but random.
    first = max(2, min(3 * len(plan.knobs), plan.max_trials // 3))
    return Bayesian(max_trials=plan.max_trials, num_initial_points=first, **shared)
