"""Controller and experts with a TFLite runtime alone, as an app would run them.

from export.predictor import Predictor
Predictor("runs/digits/export").predict(images)
"""

from __future__ import annotations

import dataclasses
import pathlib
import time

import numpy as np

from export import manifest
from export.routed import Routed, Rules
from export.runtime import TfliteModel
from instanas_tf.errors import InputError


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The answer for one image.

    Attributes:
        label: name of the class.
        class_index: its index.
        probability: mean softmax of the experts that ran, at that class.
        expert: name of the expert that ran last.
        experts: names of all that ran, in order.
        latency_ms: of the controller, if there is one, and the experts together.
    """

    label: str
    class_index: int
    probability: float
    expert: str
    experts: tuple[str, ...]
    latency_ms: float


class Predictor:
    """Classifies images with an export of all experts, whatever decides which of them run.

    Args:
        folder: of the export.
        threads: of the runtime.
        runtime: `auto`, `tflite_runtime` or `ai_edge_litert`.

    Raises:
        InputError: the export is incomplete, damaged or changed.
        ModelError: no runtime is installed, or a file cannot be loaded.
    """

    def __init__(self, folder: str | pathlib.Path, threads: int = 1, runtime: str = "auto"):
        if threads < 1:
            raise InputError(f"`threads` must be at least 1. Received: threads={threads}")
        content = manifest.read(pathlib.Path(folder))
        self.labels = _labels(content, folder)
        try:
            self._routed = _load(content, threads, runtime)
            if self._routed.classes != len(self.labels):
                raise ValueError(
                    f"`labels` must name the {self._routed.classes} classes of the experts. "
                    f"Received: {len(self.labels)} labels"
                )
        except ValueError as error:
            raise InputError(f"{folder}/{manifest.NAME}: {error}; {manifest.REMEDY}") from error
        self.expert_names = tuple(model.name for model in content.of_kind("expert"))
        self.image_shape = self._routed.image_shape[1:]

    def predict(self, images: np.ndarray) -> list[Prediction]:
        """Classifies images.

        Args:
            images: raw pixels 0 to 255 in any numeric type, [n, H, W, 3] or [H, W, 3], of
                the size that `image_shape` says.

        Returns:
            One prediction an image.

        Raises:
            InputError: another shape, or no numbers.
        """
        try:
            images = np.asarray(images)
        except ValueError as error:
            raise InputError("`images` must be one array: the images differ in shape") from error
        batch = images[None] if images.ndim == 3 else images
        if batch.ndim != 4 or batch.shape[1:] != self.image_shape or batch.dtype.kind not in "uif":
            raise InputError(
                f"`images` must be raw pixels of shape [n, {', '.join(map(str, self.image_shape))}]"
                f". Received: shape {images.shape}, dtype {images.dtype}"
            )
        batch = batch.astype(np.float32)
        if not np.isfinite(batch).all():
            raise InputError("`images` must be finite numbers. Received: NaN or infinity")
        return [self._predict_one(image) for image in batch]

    def _predict_one(self, image: np.ndarray) -> Prediction:
        start = time.perf_counter()
        answer = self._routed.run(image[None])
        latency_ms = (time.perf_counter() - start) * 1e3
        index = int(np.argmax(answer.probabilities))
        ran = tuple(self.expert_names[expert] for expert in answer.ran)
        return Prediction(
            label=self.labels[index],
            class_index=index,
            probability=float(answer.probabilities[index]),
            expert=ran[-1],
            experts=ran,
            latency_ms=latency_ms,
        )


def _labels(content: manifest.Manifest, folder: str | pathlib.Path) -> tuple[str, ...]:
    """Names of the classes."""
    labels = content.content.get("labels")
    if not isinstance(labels, list) or not all(isinstance(name, str) for name in labels):
        raise InputError(f"{folder}/{manifest.NAME} lacks labels; {manifest.REMEDY}")
    return tuple(labels)


def _load(content: manifest.Manifest, threads: int, runtime: str) -> Routed:
    """The system that a manifest describes; ValueError if its parts do not fit together."""
    fronts, experts = content.of_kind("controller"), content.of_kind("expert")
    count = content.content.get("experts")
    if type(count) is not int or len(experts) != count:
        raise ValueError(
            f"the export holds {len(experts)} of {count} experts, and any of them may have to run"
        )
    if len(fronts) > 1:
        raise ValueError(f"the export must hold one controller. Received: {len(fronts)}")
    rules = Rules.from_json(content.content.get("routing"))
    rules.require_parts(bool(fronts), count)
    names = [model.name for model in experts]
    if names != sorted(set(names)):  # From cheap to dear, as the rules count them.
        raise ValueError("the manifest mixes up its experts")
    for model in (*fronts, *experts):
        model.verify()

    def load(model: manifest.ModelEntry) -> TfliteModel:
        return TfliteModel(model.path, threads, runtime)

    return Routed(load(fronts[0]) if fronts else None, [load(model) for model in experts], rules)
