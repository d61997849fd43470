"""Controller and experts with a TFLite runtime alone, as an app would run them.

from export.predictor import Predictor
Predictor("runs/digits/export").predict(images)

The command `python -m export.predictor` is in `predictor_cli.py`.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
import threading
import time

import numpy as np

from export import budget, manifest
from export.bundled import SignatureModel
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
    """Classifies images with an export, whatever decides which of the experts run.

    Files of their own are loaded if they are there, else their signatures in the one file.
    Several threads may share one; their images take turns.

    Args:
        folder: of the export.
        threads: of the runtime.
        runtime: `auto`, `tflite_runtime` or `ai_edge_litert`.
        variant: which one of the export; empty: the one it was exported for.
        budget_ms: picks the most accurate variant whose latency is at most that, instead.
        by: which of the latencies that were measured at the export: `mean`, `p95` or `worst`.

    Attributes:
        labels: names of the classes.
        variant: the manifest's entry of the variant that runs.
        expert_names: of its experts, from cheap to dear.
        image_shape: (H, W, 3) of the images.

    Raises:
        InputError: the export is incomplete, damaged or changed; there is no such variant, or
            none that is quick enough.
        ModelError: no runtime is installed, or a file cannot be loaded.
    """

    def __init__(
        self,
        folder: str | pathlib.Path,
        threads: int = 1,
        runtime: str = "auto",
        variant: str = "",
        budget_ms: float | None = None,
        by: str = "mean",
    ):
        if threads < 1:
            raise InputError(f"`threads` must be at least 1. Received: threads={threads}")
        content = manifest.read(pathlib.Path(folder))
        self.labels = _labels(content, folder)
        details = [entry.details for entry in content.variants]
        selected = content.content.get("selected", "")
        self.variant = budget.choose(details, budget_ms, by, variant, selected)
        chosen = next(v for v in content.variants if v.name == self.variant["name"])
        try:
            self._routed = _load(content, chosen, threads, runtime)
            if self._routed.classes != len(self.labels):
                raise ValueError(
                    f"`labels` must name the {self._routed.classes} classes of the experts. "
                    f"Received: {len(self.labels)} labels"
                )
        except ValueError as error:
            raise InputError(f"{folder}/{manifest.NAME}: {error}; {manifest.REMEDY}") from error
        self._turn = threading.Lock()  # A runtime keeps one set of inputs and outputs.
        self._routed.warm_up()  # The first run of a file is slower.
        self.expert_names = chosen.experts
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
        if self._routed.image_dtype == np.uint8 and batch.dtype != np.uint8:
            with np.errstate(invalid="ignore"):
                batch = np.clip(np.rint(_finite(batch)), 0, 255).astype(np.uint8)
        elif self._routed.image_dtype == np.float32:
            batch = _finite(batch.astype(np.float32))
        return [self._predict_one(batch[index : index + 1]) for index in range(len(batch))]

    def _predict_one(self, image: np.ndarray) -> Prediction:
        with self._turn:
            start = time.perf_counter()
            answer = self._routed.run(image)
            latency_ms = (time.perf_counter() - start) * 1e3
        index = int(answer.probabilities.argmax())
        ran = tuple([self.expert_names[expert] for expert in answer.ran])
        return Prediction(
            label=self.labels[index],
            class_index=index,
            probability=float(answer.probabilities[index]),
            expert=ran[-1],
            experts=ran,
            latency_ms=latency_ms,
        )


def _finite(images: np.ndarray) -> np.ndarray:
    """The images, if they hold numbers alone."""
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        raise InputError("`images` must be finite numbers. Received: NaN or infinity")
    return images


def _labels(content: manifest.Manifest, folder: str | pathlib.Path) -> tuple[str, ...]:
    """Names of the classes."""
    labels = content.content.get("labels")
    if not isinstance(labels, list) or not all(isinstance(name, str) for name in labels):
        raise InputError(f"{folder}/{manifest.NAME} lacks labels; {manifest.REMEDY}")
    return tuple(labels)


def _load(
    content: manifest.Manifest, variant: manifest.VariantEntry, threads: int, runtime: str
) -> Routed:
    """The system that a manifest describes; ValueError if its parts do not fit together."""
    rules = Rules.from_json(variant.routing)
    rules.require_parts(variant.controller is not None, len(variant.experts))
    if list(variant.experts) != sorted(set(variant.experts)):  # From cheap to dear.
        raise ValueError("the manifest mixes up its experts")
    controller = content.model(variant.controller) if variant.controller else None
    experts = [content.model(name) for name in variant.experts]
    if wrong := [model.name for model in experts if model.kind != "expert"]:
        raise ValueError(f"{wrong[0]} must be an expert, as variant {variant.name} runs it")
    needed = [model for model in (controller, *experts) if model is not None]
    bundle = content.bundle
    if bundle is None or all(model.path.exists() for model in needed):
        bundle = None
        for model in needed:
            model.verify()
    else:
        bundle.verify()

    def load(model: manifest.ModelEntry) -> TfliteModel:
        if bundle is not None:
            return SignatureModel(bundle.path, model.name, threads, runtime)
        return TfliteModel(model.path, threads, runtime)

    return Routed(load(controller) if controller else None, [load(e) for e in experts], rules)


if __name__ == "__main__":
    from export import predictor_cli

    sys.exit(predictor_cli.main())
