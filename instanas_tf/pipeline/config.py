"""The documented default of every setting, and the published preset.

A config file is a short Python file with a function `get_config()` that starts from
`default_config()` or `published_config()` and changes what it needs. Nothing here imports
TensorFlow, so that command lines answer at once.
"""

from __future__ import annotations

from ml_collections import ConfigDict

RECIPES = ("priced", "published")


def default_config() -> ConfigDict:
    """Settings that train the whole ring on scikit-learn's digits in three to four minutes."""
    config = ConfigDict({"seed": 0})
    # A mean latency asked for, in ms on the device; 0: the shares of config.variants.targets.
    config.target_ms = 0.0
    config.data = _data()
    config.space = _space()
    config.controller = _controller()
    config.train = _train()
    config.pretrain = _pretrain()
    config.latency = _latency()
    config.search = _search()
    config.variants = _variants()
    config.experts = _experts()
    config.finetune = _finetune()
    config.route = _route()
    config.evaluate = _evaluate()
    return config.lock()


def _data() -> ConfigDict:
    """The dataset and its splits."""
    data = ConfigDict()
    data.name = "digits"  # "digits", "folder", "npz", or a dataset of tensorflow-datasets.
    data.data_dir = ""  # Where tensorflow-datasets, the folder of images or the .npz file lies.
    data.download = True  # Let tensorflow-datasets download what is missing.
    data.image_size = 16  # Images are resized to this many pixels, both ways.
    data.validation_fraction = 0.15  # Of the training images, by class.
    data.test_fraction = 0.2  # Only where the dataset has no test split of its own.
    # Of the training images, kept from the experts so that controllers can be trained on
    # outcomes that the experts did not learn by heart; 0: none can be trained.
    data.controller_fraction = 0.1
    # Of the training images, added to the test split: narrower intervals, fewer to train on.
    data.held_back_fraction = 0.0
    data.train_images = 0  # Use so many training images; 0 takes all.
    data.validation_images = 0  # Likewise.
    data.test_images = 0  # Likewise.
    data.memory_limit_mib = 4096  # Larger decoded splits are read anew in each epoch; not npz.
    data.unreadable_limit = 0.01  # Share of unreadable files that is tolerated.
    data.augmentation = ConfigDict()
    data.augmentation.pad = 1  # Zero-pad by so many pixels and crop back.
    data.augmentation.flip = False  # Mirror left and right; wrong for digits.
    data.augmentation.cutout = 0  # Side of the square that is blanked; 0 is off.
    return data


def _space() -> ConfigDict:
    """What may be built."""
    space = ConfigDict()
    space.name = "mobilenet_v2_16"  # See instanas_tf/spaces/mobilenet_v2.py.
    space.width = 1.0  # Multiplies all channels, rounded to multiples of 8.
    space.merge = "shortcut"  # "sum" as published, or "shortcut": one a cell.
    return space


def _controller() -> ConfigDict:
    """What looks at an image and decides."""
    controller = ConfigDict()
    controller.kind = "small"  # See instanas_tf/spaces/controllers.py; "published": the paper's.
    controller.logit_stddev = 0.5  # Of the last layer's initial weights.
    return controller


def _train() -> ConfigDict:
    """What the stages share."""
    train = ConfigDict()
    train.batch_size = 64
    train.clip_norm = 5.0  # Global norm of the gradient; 0 does not clip.
    train.bn_momentum = 0.9  # Of moving statistics in supernet and controller.
    train.label_smoothing = 0.0
    train.routed = True  # Run each op only on the images that chose it; on TensorFlow.
    # "float32", or "mixed_bfloat16": quicker on most accelerators, slower on many CPUs.
    train.precision = "float32"
    train.checkpoint_secs = 300.0  # The state is saved after each epoch, and within it so often.
    return train


def _pretrain() -> ConfigDict:
    """Stage 1: the supernet under path dropout."""
    pretrain = ConfigDict()
    pretrain.epochs = 10
    pretrain.learning_rate = 0.05
    pretrain.schedule = "cosine"  # "cosine", or "step": ÷10 at 50 % and 75 %.
    pretrain.weight_decay = 1e-4
    # Fixed networks that are trained in each step beside the random ones, by name: `least`,
    # `most`, or an op that is then on in every cell. Empty as published.
    pretrain.anchors = ("ir3_e6",)
    # Probability of keeping a (image, cell, op) bit as [progress, keep] knots, linear between.
    pretrain.keep = ((0.0, 1.0), (0.25, 1.0), (0.65, 0.3), (1.0, 0.3))
    # From this progress on it is drawn anew for each image from `keep_range`.
    pretrain.keep_random_from = 0.65
    pretrain.keep_range = (0.1, 0.5)
    return pretrain


def _latency() -> ConfigDict:
    """Stage 2: what is measured, and how."""
    latency = ConfigDict()
    latency.device = "host"
    latency.runtime = "auto"  # "auto", "tflite_runtime" or "ai_edge_litert".
    latency.threads = 1
    latency.rounds = 5
    latency.warmup_runs = 5
    latency.min_runs = 20
    latency.min_secs = 0.02  # Of each model in each round.
    latency.calibration_experts = 8  # At least 6; they fit the scale factor.
    latency.validation_experts = 20  # They measure the error of the prediction.
    return latency


def _search() -> ConfigDict:
    """Stage 3: controller and supernet together. One key chooses between two recipes."""
    search = ConfigDict()
    search.recipe = "priced"  # "priced" or "published"; each has a section of its own.
    search.epochs = 12
    search.batch_size = 0  # 0: that of config.train.
    search.controller_learning_rate = 2e-3
    search.controller_decay_epochs = 0  # Divide by 10 so often; 0 keeps the rate.
    search.supernet_learning_rate = 0.02
    search.supernet_weight_decay = 1e-4
    search.priced = _priced()
    search.published = _published()
    return search


def _priced() -> ConfigDict:
    """Accuracy is rewarded, and latency has a price that is steered to a target."""
    priced = ConfigDict()
    priced.alternate = "step"  # "step": both networks in each step; "epoch": by turns.
    priced.shuffle_share = 0.3  # Share of supernet batches with permuted policies.
    # Exploration bound: p' = αp + (1-α)(1-p), as (progress, α) knots.
    priced.alpha = ((0.0, 0.92), (1.0, 0.99))
    priced.reward_correct = 30.0
    priced.reward_wrong = 0.0
    priced.entropy = "full"  # "full" Bernoulli entropy, or the published "half".
    priced.entropy_weight = 0.0  # β, on the mean over images of the summed entropy.
    # Weight of H(mean p) - ratio · mean H(p), which keeps the images' policies apart.
    priced.diversity_weight = 1.0
    priced.diversity_ratio = 1.2
    # Target mean latency as (progress, share of the reference network's) knots.
    priced.target = ((0.0, 1.5), (0.6, 0.5), (1.0, 0.5))
    priced.price_rate = 0.5  # λ grows by this times (mean latency - target), as shares.
    return priced


def _published() -> ConfigDict:
    """A reward within a window of latencies, as in arXiv 1811.10201."""
    published = ConfigDict()
    published.alternate = "epoch"
    published.shuffle_share = 1.0
    published.alpha = ((0.0, 0.8), (1.0, 0.8))
    published.reward_correct = 30.0  # w_pos.
    published.reward_wrong = 0.0  # w_neg.
    published.gamma = 1.0  # Power of the latency reward.
    published.entropy = "half"
    published.entropy_weight = 0.8
    # The window's upper end falls from upper_start·L_max to upper_end·L_base.
    published.upper_start = 0.7
    published.upper_end = 0.5
    published.lower_guard = 0.5  # κ in lb = min(L_min, κ·ub).
    return published


def _variants() -> ConfigDict:
    """What mean latencies are asked for; each becomes a variant."""
    variants = ConfigDict()
    # Shares of the reference network's latency, controller included, as measured.
    variants.targets = (0.7, 0.5)
    return variants


def _experts() -> ConfigDict:
    """How many networks ship, and how they are chosen."""
    experts = ConfigDict()
    experts.count = 4  # K.
    # "history": k-medoids over all policies that the search visited, `explore` random
    # neighbours of them and the anchors; "picked": k-means over those of the picked epochs.
    experts.choice = "history"
    experts.required = (
        "least",
        "ir3_e6",
        "most",
    )  # Anchors that are always among the K of "history".
    experts.candidates = 32  # Of those visited, the most wanted, that are judged.
    experts.explore = 16
    experts.shared_cells = 0  # The first cells are the same in all experts, and can be shared.
    experts.recalibration_images = 2048  # For each expert's normalisation statistics.
    return experts


def _finetune() -> ConfigDict:
    """Stage 4: the weights for the experts."""
    finetune = ConfigDict()
    # "sandwich": the cheapest, the dearest and `between` others in each step, all images each;
    # "assigned": each image runs the expert that the search's controller gives it (published).
    finetune.rule = "sandwich"
    finetune.epochs = 12
    finetune.batch_size = 0  # 0: that of config.train.
    finetune.learning_rate = 0.05
    finetune.weight_decay = 1e-4
    finetune.between = 2
    finetune.distillation = 0.0  # Share of the smaller experts' targets that the dearest sets.
    return finetune


def _route() -> ConfigDict:
    """Stage 5: who decides which experts run, for each target latency."""
    route = ConfigDict()
    # Controllers that are made, and compared on the validation split: "search": that of the
    # search; "image": a CNN on the image; "features": a head on the experts' shared first
    # cells; "cascade": on to a larger expert when the margin is small; "start": a CNN on the
    # image that may begin anywhere in a cascade.
    route.kinds = ("search", "image", "features", "cascade", "start")
    route.image_controllers = ("small", "half")  # See instanas_tf/spaces/controllers.py.
    route.epochs = 12  # Of each learned controller.
    route.learning_rate = 3e-3
    route.temperature = 0.1  # Of the choice in training, in units of accuracy.
    # Prices, in accuracy for the latency of the reference network, drawn in training.
    route.price_range = (0.01, 1.0)
    route.longest = 3  # Experts that may run for an image.
    # An expert's answer counts in a cascade's mean by a power of its latency; these are tried.
    route.weight_powers = (0.0, 0.5)
    # Points that another kind must lead the cascade by on the validation split to be chosen.
    route.lead = 0.003
    route.interval = 0.0  # Half width that the validation split must allow; 0 asks for none.
    return route


def _evaluate() -> ConfigDict:
    """Stage 6: what results are compared with."""
    evaluate = ConfigDict()
    # Experts that are trained alone too, evenly from the cheapest to the dearest; 0: all.
    evaluate.alone = 2
    evaluate.baseline_widths = (1.0, 0.5)  # All-`ir3_e6` networks trained alone.
    evaluate.rounds = 3  # Passes over the timed test images.
    evaluate.timed_images = 1000  # Test images on which latency is measured, at most.
    return evaluate


def published_config() -> ConfigDict:
    """The published settings for CIFAR-10 (arXiv 1811.10201 and its official code).

    What differs: images of the training split are held back for validation, weight decay is
    decoupled from the gradient, and there is no dropout in front of the classifier (its rate
    is not known).
    """
    config = default_config()
    with config.unlocked():
        config.data.name = "cifar10"
        config.data.image_size = 32
        config.data.validation_fraction = 0.1
        config.data.controller_fraction = 0.0
        config.data.augmentation.pad = 4
        config.data.augmentation.flip = True
        config.data.augmentation.cutout = 16
        config.space.name = "mobilenet_v2_32"
        config.space.merge = "sum"
        config.controller.kind = "published"
        config.controller.logit_stddev = 0.0  # 0: Keras's default initialiser.
        config.train.clip_norm = 0.0
        config.pretrain.epochs = 300
        config.pretrain.learning_rate = 0.01
        config.pretrain.schedule = "step"
        config.pretrain.keep = ((0.0, 1.0), (0.5, 1.0), (1.0, 0.5))
        config.pretrain.keep_random_from = 1.0
        config.pretrain.anchors = ()
        config.search.recipe = "published"
        config.search.epochs = 500
        config.search.batch_size = 32
        config.search.controller_learning_rate = 5e-4
        config.search.controller_decay_epochs = 100
        config.search.supernet_learning_rate = 5e-4
        config.variants.targets = (0.9, 0.6, 0.5, 0.35, 0.17)
        config.experts.count = 8
        config.experts.choice = "picked"
        config.finetune.rule = "assigned"
        config.finetune.epochs = 300
        config.finetune.batch_size = 256
        config.finetune.learning_rate = 1e-3
        config.finetune.weight_decay = 4e-5
        config.route.kinds = ("search",)
    return config.lock()
