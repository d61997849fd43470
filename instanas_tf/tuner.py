"""KerasTuner's loop around our trials: one after the other, alone or for a chief.

An error of ours marks a trial as failed in one line; any other ends the search, where
KerasTuner's own tuners would swallow it.
"""

from __future__ import annotations

import _thread
import contextlib
import dataclasses
import functools
import io
import socket
import threading
import time
from collections.abc import Callable

import grpc
import keras_tuner as kt
from ml_collections import ConfigDict

from instanas_tf import files
from instanas_tf import trial as trial_module
from instanas_tf.errors import DeviceError, InputError, ModelError
from instanas_tf.oracles import make_oracle
from instanas_tf.pipeline import data, tuning
from instanas_tf.pipeline.knobs import shortened, turned
from instanas_tf.pipeline.tuning import Plan, Role, Row, TuneDir
from instanas_tf.pipeline.workdir import locked

FAILURES = 3  # Failed trials in a row that end the search.
LOOK_SECS = 5.0  # Between two looks of the chief for workers that are gone.

Say = Callable[[str], None]


def share(plan: Plan, values: dict) -> float:
    """Share of the epochs that an oracle's values give a trial; 1 unless it is Hyperband."""
    return min(
        1.0, values.get("tuner/epochs", plan.config.search.epochs) / plan.config.search.epochs
    )


class TrialTuner(kt.engine.base_tuner.BaseTuner):
    """Runs trials through the stages of training.

    Hyperband's budget is the number of the search's epochs, and all stages are shortened by
    the same share, to one epoch each at the least. A trial that is promoted is trained anew,
    since the schedules of each stage depend on its length; only its latency table is kept.

    Args:
        plan: of the search.
        folder: of the search.
        role: of this process.
        images: the dataset; None for a chief.
        say: told in a line what is going on.
    """

    def __init__(
        self, plan: Plan, folder: TuneDir, role: Role, images: data.ImageData | None, say: Say
    ):
        self.plan, self.folder, self.role = plan, folder, role
        self.images, self.say = images, say
        self.failures = 0
        # KerasTuner reads its files back only if this one is there, which it writes late.
        mark = folder.state / f"{role.name}.json"
        mark.unlink(missing_ok=True)
        if not role.is_worker and (folder.state / "oracle.json").exists():
            files.write_json(mark, {})
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                super().__init__(
                    make_oracle(plan),
                    directory=str(folder.root),
                    project_name=folder.state.name,
                )
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"{folder.state} is damaged ({reason}); start the search anew in another --workdir"
            ) from error

    def config_of(self, values: dict) -> ConfigDict:
        """The config of a trial."""
        return shortened(
            turned(self.plan.config, self.plan.knobs, values), share(self.plan, values)
        )

    def pre_create_trial(self):
        """Keeps a worker that waits for the others from asking the chief all the time."""
        if self.role.is_worker:
            time.sleep(0.2)

    def run_trial(self, trial, *args, **kwargs):
        """Runs the stages of a trial that are left.

        Returns:
            The objective by its name.

        Raises:
            FailedTrialError: the training failed.
            InstanasError: whatever would meet the next trial too; this one stays unfinished.
        """
        values = trial.hyperparameters.values
        known = {name for name in values if not name.startswith("tuner/")}
        if known != {knob.name for knob in self.plan.knobs}:
            if not self.role.is_worker:
                raise InputError(
                    f"{self.folder.state} is damaged (trial {trial.trial_id} has other knobs); "
                    "start the search anew in another --workdir"
                )
            raise InputError(
                f"the chief at {self.role.address} has another search ({', '.join(sorted(known))} "
                "are its knobs); give all processes the same arguments"
            )
        knobs = " ".join(f"{k.name}={k.nearest(values[k.name]):g}" for k in self.plan.knobs)
        goes_on = " goes on" if self.folder.trial(trial.trial_id).config.exists() else ""
        self.say(f"== trial {trial.trial_id}{goes_on}: {knobs}{self._budget(values)}")
        outcome = trial_module.run(
            self.config_of(values),
            self.plan.config,
            self.images,
            self.folder.trial(trial.trial_id),
            self.folder.tables,
        )
        if outcome.reason:
            self.say(f"trial {trial.trial_id} failed: {outcome.reason}")
            raise kt.errors.FailedTrialError(outcome.reason)
        value = outcome.value(self.plan.objective, self.plan.target)
        self.say(
            f"trial {trial.trial_id}: {self.plan.objective} {value:.4f}, validation accuracy "
            f"{outcome.accuracy:.4f}, {outcome.latency_ms:.3f} ms, "
            f"{outcome.latency_ratio:.2f} of the reference network"
        )
        return {self.plan.objective: value}

    def _budget(self, values: dict) -> str:
        given = share(self.plan, values)
        return f", {given:.0%} of the epochs" if given < 1 else ""

    def _try_run_and_update_trial(self, trial, *args, **kwargs):
        """Lets errors through that KerasTuner would swallow, and prints no traceback."""
        try:
            self._run_and_update_trial(trial, *args, **kwargs)
        except kt.errors.FailedTrialError as error:
            trial.status, trial.message = "FAILED", str(error)
        else:
            trial.status = "COMPLETED"

    def on_trial_end(self, trial):
        """Tells the oracle, writes the table, and stops if nothing but failures come.

        Raises:
            ModelError: several trials in a row failed.
        """
        super().on_trial_end(trial)
        if not self.role.is_worker:
            tuning.write_table(self.folder, self.plan, self.rows())
        self.failures = self.failures + 1 if trial.status == "FAILED" else 0
        if self.failures == FAILURES:
            raise ModelError(
                f"{FAILURES} trials in a row failed, the last one because: {trial.message}"
            )

    def rows(self) -> list[Row]:
        """All trials so far; not for a worker, which does not know them."""
        return [self._row(found) for found in self.oracle.trials.values()]

    def _row(self, found) -> Row:
        values = found.hyperparameters.values
        knobs = {knob.name: knob.nearest(values[knob.name]) for knob in self.plan.knobs}
        row = Row(found.trial_id, "interrupted", knobs, share(self.plan, values))
        outcome = trial_module.read_outcome(self.folder.trial(found.trial_id).root)
        if outcome is None or found.status not in ("COMPLETED", "FAILED"):
            return row
        if outcome.reason:
            return dataclasses.replace(row, status="failed", reason=outcome.reason)
        return dataclasses.replace(
            row,
            status="done",
            value=outcome.value(self.plan.objective, self.plan.target),
            accuracy=outcome.accuracy,
            latency_ms=outcome.latency_ms,
            latency_ratio=outcome.latency_ratio,
        )


def is_gone(tuner: TrialTuner, name: str) -> bool:
    """Whether no process holds a worker's folder; says so if that is the case."""
    try:
        with locked(tuner.folder.worker(name)):
            tuner.say(f"worker {name} is gone; its trial goes on in the next worker that asks")
            return True
    except InputError:
        return False


def watch(tuner: TrialTuner, stop: threading.Event) -> None:
    """Takes trials back from workers that are gone, until told to stop.

    A chief that cannot write is interrupted: the error came up in a thread of its server, and
    KerasTuner's lock stays taken by it.
    """
    while not stop.wait(LOOK_SECS):
        if tuner.oracle.failure is not None:
            _thread.interrupt_main()
            return
        tuner.oracle.drop_gone()


def search(tuner: TrialTuner) -> None:
    """Runs a search to its end, in the role that the tuner has.

    Raises:
        InputError: the chief's address cannot be used.
        DeviceError: the chief does not answer.
        InstanasError: what stopped a trial.
    """
    with contextlib.ExitStack() as around:
        if tuner.role.is_chief:
            require_free(tuner.role.address)
            tuner.oracle.is_gone = functools.partial(is_gone, tuner)
            stop = threading.Event()
            around.callback(stop.set)
            threading.Thread(target=watch, args=(tuner, stop), daemon=True).start()
        try:
            tuner.search(verbose=0)
        except KeyboardInterrupt:
            if tuner.role.is_chief and tuner.oracle.failure is not None:
                raise tuner.oracle.failure from None
            raise
        except grpc.RpcError as error:
            raise DeviceError(
                f"the chief at {tuner.role.address} does not answer "
                f"({_details(error)}); start it again with the same command, then this worker"
            ) from error


def require_free(address: str) -> None:
    """Raises InputError unless a chief can listen at IP:PORT.

    KerasTuner's server would share a port with that of another search.
    """
    ip, _, port = address.rpartition(":")
    try:
        with socket.socket() as found:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind((ip, int(port)))
            found.listen()
    except OSError as error:
        raise InputError(
            f"cannot listen at {address} ({error.strerror or error}); choose another "
            "KERASTUNER_ORACLE_IP or KERASTUNER_ORACLE_PORT"
        ) from error


def _details(error: grpc.RpcError) -> str:
    details = getattr(error, "details", lambda: "")() or "no reason given"
    return details.splitlines()[0]
