"""Python functions of Keras variables, compiled for the backend that runs.

On TensorFlow a function becomes a `tf.function`; on JAX a pure function of the variables'
values, by Keras's stateless API, and is compiled with `jax.jit`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras

from instanas_tf.models.training import TrainedModel


def function(call: Callable, variables: Sequence[keras.Variable]) -> Callable:
    """Compiles a function that reads variables and changes none.

    Args:
        call: arrays [B, ...] -> a structure of tensors.
        variables: all that `call` reads.

    Returns:
        A function of arrays with any B; it is compiled once on TensorFlow, once for each B
        on JAX.
    """
    return _function_on_jax(call, variables) if _on_jax() else _function_on_tensorflow(call)


def stepper(
    model: TrainedModel, knobs: Sequence[keras.Variable] = (), strategy: Any = None
) -> TensorFlowStepper | JaxStepper:
    """What runs a model's training steps.

    Args:
        model: whose `step` is compiled.
        knobs: variables that are assigned between the steps.
        strategy: a `tf.distribute.Strategy` under which the model was built, or None.
    """
    return JaxStepper(model, knobs) if _on_jax() else TensorFlowStepper(model, strategy)


def _on_jax() -> bool:
    return keras.backend.backend() == "jax"


def _function_on_tensorflow(call: Callable) -> Callable:
    import tensorflow as tf

    compiled = None

    def run(*arrays):
        nonlocal compiled
        tensors = [tf.convert_to_tensor(array) for array in arrays]
        if compiled is None:
            signature = [tf.TensorSpec([None, *t.shape[1:]], t.dtype) for t in tensors]
            compiled = tf.function(call, input_signature=signature)
        return compiled(*tensors)

    return run


def _function_on_jax(call: Callable, variables: Sequence[keras.Variable]) -> Callable:
    import jax

    @jax.jit
    def pure(values, *arrays):
        mapping = list(zip(variables, values, strict=True))
        with keras.StatelessScope(state_mapping=mapping):
            return call(*arrays)

    return lambda *arrays: pure([variable.value for variable in variables], *arrays)


class TensorFlowStepper:
    """Training steps as `tf.function`s, under a strategy if there is one.

    Args:
        model: whose `step` is compiled.
        strategy: a `tf.distribute.Strategy`, or None.
    """

    def __init__(self, model: TrainedModel, strategy: Any = None):
        import tensorflow as tf

        self.strategy = strategy
        self._run = tf.function(model.step if strategy is None else self._distributed(model.step))

    def __call__(self, images, labels, active: tuple[int, ...]) -> dict[str, Any]:
        """One step; returns the values of the active objectives.

        Args:
            images: of this process, [B, H, W, 3]; shared out evenly among its replicas.
            labels: [B].
            active: indices of the objectives that are updated.
        """
        if self.strategy is not None:
            images, labels = self._shares(images), self._shares(labels)
        return self._run(images, labels, active)

    def read(self) -> None:
        """Takes over variables that were assigned outside; nothing is to be done."""

    def write(self) -> None:
        """Writes the state back into the variables; nothing is to be done."""

    def _shares(self, array):
        """One part of an array for each replica of this process."""
        import tensorflow as tf

        replicas = len(self.strategy.extended.worker_devices)
        parts = tf.split(array, replicas)
        return self.strategy.experimental_distribute_values_from_function(
            lambda context: parts[context.replica_id_in_sync_group % replicas]
        )

    def _distributed(self, step: Callable) -> Callable:
        def run(images, labels, active):
            call = functools.partial(step, active=active)
            values = self.strategy.run(call, args=(images, labels))
            # The step gives the same means on all replicas.
            return {
                name: self.strategy.experimental_local_results(value)[0]
                for name, value in values.items()
            }

        return run


class JaxStepper:
    """Training steps as one pure function of the model's state, compiled with `jax.jit`.

    The state is kept here between steps; `write` puts it back into the variables.

    Args:
        model: whose `step` is compiled.
        knobs: variables that are assigned between the steps.
    """

    def __init__(self, model: TrainedModel, knobs: Sequence[keras.Variable] = ()):
        import jax

        self._copy = jax.numpy.copy  # Of what is handed to a step nothing is left.
        self._variables = model.state
        wanted = {id(variable) for variable in knobs}
        self._knobs = [i for i, v in enumerate(self._variables) if id(v) in wanted]
        self._model = model
        self._run = jax.jit(self._pure, static_argnums=3, donate_argnums=0)
        self.read()

    def _pure(self, values, images, labels, active):
        mapping = list(zip(self._variables, values, strict=True))
        with keras.StatelessScope(state_mapping=mapping) as scope:
            logs = self._model.step(images, labels, active)
        return [scope.get_current_value(variable) for variable in self._variables], logs

    def __call__(self, images, labels, active: tuple[int, ...]) -> dict[str, Any]:
        """One step; see `TensorFlowStepper`."""
        for index in self._knobs:
            self._values[index] = self._copy(self._variables[index].value)
        self._values, logs = self._run(self._values, images, labels, active)
        return logs

    def read(self) -> None:
        """Takes over variables that were assigned outside."""
        self._values = [self._copy(variable.value) for variable in self._variables]

    def write(self) -> None:
        """Writes the state back into the variables."""
        for variable, value in zip(self._variables, self._values, strict=True):
            variable.assign(self._copy(value))
