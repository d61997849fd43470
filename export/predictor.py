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
from export.runtime import TfliteModel
from instanas_tf.errors import InputError


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The answer for one image.

    Attributes:
        label: name of the class.
        class_index: its index.
        probability: softmax of the expert's logits at that class.
        expert: name of the expert that ran.
        latency_ms: of controller and expert together.
    """

    label: str
    class_index: int
    probability: float
    expert: str
    latency_ms: float


class Routed:
    """Runs the controller on an image, then the expert that it names.

    Args:
        controller: its integer output is the index of the expert.
        experts: in the order of that index.
    """

    def __init__(self, controller: TfliteModel, experts: list[TfliteModel]):
        self.controller = controller
        self.experts = experts
        self._choice = controller.output_index("i")
        self._logits = [expert.output_index("f") for expert in experts]
        self.widths = tuple(expert.output_width("f") for expert in experts)

    def run(self, image: np.ndarray) -> tuple[int, np.ndarray]:
        """Index of the expert and its logits [1, N] for one float32 image [1, H, W, 3]."""
        chosen = int(self.controller.run_one(image, self._choice)[0])
        return chosen, self.experts[chosen].run_one(image, self._logits[chosen])


class Predictor:
    """Classifies images with an export of `export_tflite --expert=all`.

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
        controllers, experts = content.of_kind("controller"), content.of_kind("expert")
        if len(controllers) != 1 or not experts:
            raise InputError(f"{folder} holds no controller with experts; {manifest.REMEDY}")
        if len(experts) != content.content.get("experts"):
            raise InputError(
                f"{folder} holds {len(experts)} of {content.content.get('experts')} experts, "
                f"and the controller may choose any; {manifest.REMEDY}"
            )
        labels = content.content.get("labels")
        if not isinstance(labels, list) or not all(isinstance(name, str) for name in labels):
            raise InputError(f"{folder}/{manifest.NAME} lacks labels; {manifest.REMEDY}")
        for model in (*controllers, *experts):
            model.verify()
        if [model.name for model in experts] != [f"expert_{i:02d}" for i in range(len(experts))]:
            raise InputError(f"{folder}/{manifest.NAME} mixes up its experts; {manifest.REMEDY}")
        self.labels = tuple(labels)
        self.expert_names = tuple(model.name for model in experts)
        self._routed = Routed(
            TfliteModel(controllers[0].path, threads, runtime),
            [TfliteModel(model.path, threads, runtime) for model in experts],
        )
        if any(width != len(labels) for width in self._routed.widths):
            raise InputError(
                f"{folder}/{manifest.NAME} has {len(labels)} labels, and its experts have other "
                f"numbers of classes; {manifest.REMEDY}"
            )
        self.image_shape = self._routed.controller.input_shape[1:]

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
        chosen, logits = self._routed.run(image[None])
        latency_ms = (time.perf_counter() - start) * 1e3
        exponentials = np.exp(logits[0] - np.max(logits[0]))
        index = int(np.argmax(logits[0]))
        return Prediction(
            label=self.labels[index],
            class_index=index,
            probability=float(exponentials[index] / exponentials.sum()),
            expert=self.expert_names[chosen],
            latency_ms=latency_ms,
        )
