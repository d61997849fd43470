"""One process, several GPUs of a host, or several hosts that train together.

Source: TensorFlow's guide "Distributed training"; hosts are named by the environment
variable TF_CONFIG. Every process runs the same stages on the same work directory, which all
of them see; the chief alone writes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import signal
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from instanas_tf.errors import InputError, InstanasError, ModelError

_PACKAGE = pathlib.Path(__file__).resolve().parents[1]
_EXAMPLE = (
    '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}'
)


@dataclasses.dataclass(frozen=True)
class Cluster:
    """This process's part in a training.

    Attributes:
        strategy: a `tf.distribute.Strategy`, or None for one process and one device.
        worker: number of this process, the chief's being 0.
        workers: number of processes.
        gather: int64 tensor [1] -> those of all replicas; None with one process.
    """

    strategy: Any = None
    worker: int = 0
    workers: int = 1
    gather: Any = None

    @property
    def is_chief(self) -> bool:
        """Whether this process writes."""
        return self.worker == 0

    @property
    def replicas(self) -> int:
        """How many devices share a batch."""
        return 1 if self.strategy is None else self.strategy.num_replicas_in_sync

    def scope(self) -> contextlib.AbstractContextManager:
        """The context in which trained models and their optimizers are built."""
        return contextlib.nullcontext() if self.strategy is None else self.strategy.scope()

    def rows(self, batch_size: int) -> tuple[int, int] | None:
        """Which rows of a global batch are this process's; None for all.

        Raises:
            InputError: the batch cannot be shared out evenly.
        """
        if batch_size % self.replicas:
            raise InputError(
                f"a batch must be a multiple of the {self.replicas} replicas. Received: "
                f"{batch_size}; change config.train.batch_size, config.search.batch_size or "
                "config.finetune.batch_size"
            )
        if self.workers == 1:
            return None
        share = batch_size // self.workers
        return self.worker * share, (self.worker + 1) * share

    def everybodys(self, value: int) -> list[int]:
        """The same number of each process, in their order; waits for all of them.

        Raises:
            ModelError: one of them is gone.
        """
        if self.workers == 1:
            return [value]
        import tensorflow as tf

        try:
            gathered = self.gather(tf.constant([value], tf.int64))
        except tf.errors.OpError as error:
            raise ModelError(
                f"worker {self.worker} lost another worker, which says why; start all of them "
                "again with the same command"
            ) from error
        found = self.strategy.experimental_local_results(gathered)
        return found[0].numpy().tolist()[:: self.replicas // self.workers]

    def wait(self) -> None:
        """Waits until every process is here."""
        self.everybodys(0)

    def agree(self, what: str, text: str, kind: type[InstanasError] = InputError) -> None:
        """Refuses to go on unless all processes have the same text.

        Raises:
            InstanasError: of the given kind: they differ, in every process.
        """
        digest = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
        found = self.everybodys(digest)
        if len(set(found)) > 1:
            other = next(i for i, value in enumerate(found) if value != found[0])
            raise kind(
                f"{what} of worker {other} differs from the chief's; start every worker with "
                "the same"
            )


ALONE = Cluster()


def join(config: ConfigDict) -> Cluster:
    """Finds out what this process is part of, and checks that all parts fit together.

    Args:
        config: of the run.

    Raises:
        InputError: TF_CONFIG cannot be used, or the processes differ.
        ModelError: the others cannot be reached.
    """
    task = read_tf_config(os.environ.get("TF_CONFIG", ""))
    import keras

    if keras.backend.backend() != "tensorflow":
        if task is not None:
            raise InputError(
                "TF_CONFIG is set, and several hosts train on TensorFlow alone; unset it, or set "
                "KERAS_BACKEND=tensorflow"
            )
        return ALONE
    import tensorflow as tf

    if task is None and os.environ.get("TPU_NAME"):
        return Cluster(_tpu_strategy(config))
    if task is None:
        if len(tf.config.list_physical_devices("GPU")) > 1:
            return Cluster(tf.distribute.MirroredStrategy())
        return ALONE
    index, workers = task
    try:
        with _interruptible():
            strategy = tf.distribute.MultiWorkerMirroredStrategy()
    except (tf.errors.OpError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"the cluster of TF_CONFIG cannot be joined ({str(error).splitlines()[0]}); see that "
            "the address of this worker is free and all workers run"
        ) from error
    cluster = Cluster(strategy, index, workers, _gather(strategy))
    cluster.agree("the config", json.dumps(json.loads(config.to_json()), sort_keys=True))
    cluster.agree("the version of TensorFlow or Keras", f"{tf.__version__} {keras.__version__}")
    cluster.agree("the code of instanas_tf", _code())
    return cluster


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Lets Ctrl-C end the process while TensorFlow waits outside of Python.

    SIGTERM does not: there TensorFlow puts a handler of its own in Python's place.
    """
    kept = None
    with contextlib.suppress(ValueError):  # In a thread it is not ours to set.
        kept = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        if kept is not None:
            signal.signal(signal.SIGINT, kept)


def _tpu_strategy(config: ConfigDict) -> Any:
    """The TPU that TPU_NAME names. No TPU was at hand: this has not been run."""
    import tensorflow as tf

    if config.train.routed:
        raise InputError(
            "TPU_NAME is set, and TPUs need static shapes; pass --config.train.routed=False, or "
            "unset it"
        )
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver()
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    except (tf.errors.OpError, ValueError, OSError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"the TPU that TPU_NAME names cannot be used ({reason}); unset it to train without"
        ) from error


def _gather(strategy: Any) -> Any:
    """A compiled function: int64 tensor [1] -> those of all replicas, on each replica."""
    import tensorflow as tf

    def of_replica(value):
        value = tf.identity(value)  # On the device of the replica.
        return tf.distribute.get_replica_context().all_gather(value, axis=0)

    @tf.function(input_signature=[tf.TensorSpec([1], tf.int64)])
    def of_all(value):
        return strategy.run(of_replica, args=(value,))

    return of_all


def read_tf_config(text: str) -> tuple[int, int] | None:
    """The number of this worker and of all workers, out of TF_CONFIG.

    Args:
        text: JSON as TensorFlow's guide describes it, with workers and at most one chief, who
            is then worker 0.

    Returns:
        (worker, workers), or None if there is no more than one.

    Raises:
        InputError: it is no such JSON.
    """
    if not text:
        return None
    received = " ".join(text.split())[:200]
    try:
        content = json.loads(text)
        cluster, task = content["cluster"], content["task"]
        kind, index = task["type"], task["index"]
        chiefs, workers = cluster.get("chief", []), cluster.get("worker", [])
        unknown = set(cluster) - {"chief", "worker"}
        mine = cluster[kind]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"TF_CONFIG must be JSON such as {_EXAMPLE}. Received: {received} ({error!r})"
        ) from error
    lists = [chiefs, workers]
    addresses = [address for found in lists if isinstance(found, list) for address in found]
    problem = ""
    if unknown:
        problem = f"the task {sorted(unknown)[0]!r} is not supported, only chief and worker are"
    elif not all(isinstance(found, list) for found in lists) or len(chiefs) > 1:
        problem = "chief must be a list of one address, worker a list"
    elif not all(map(_is_address, addresses)):
        problem = "every address must be HOST:PORT, the port from 1 to 65535"
    elif len(set(addresses)) != len(addresses):
        problem = "every address must be there once"
    elif type(index) is not int or not 0 <= index < len(mine):
        problem = f"task.index must be 0 to {len(mine) - 1}"
    if problem:
        raise InputError(f"TF_CONFIG cannot be used: {problem}. Received: {received}")
    if len(addresses) < 2:
        return None
    return (index + len(chiefs) if kind == "worker" else 0), len(addresses)


def _is_address(text: Any) -> bool:
    if not isinstance(text, str):
        return False
    host, _, port = text.rpartition(":")
    return bool(host) and port.isascii() and port.isdigit() and 0 < int(port) < 2**16


def _code() -> str:
    """Digest of this package's source."""
    total = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        total.update(path.relative_to(_PACKAGE).as_posix().encode() + b"\0" + path.read_bytes())
    return total.hexdigest()
