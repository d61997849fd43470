"""CIFAR-10 at 16 px on two CPU cores: enough images to judge by whether choosing by image pays.

    python -m instanas_tf.train --config=configs/cifar10_small.py --workdir=runs/cifar10_small \
        --config.data.data_dir=FOLDER

FOLDER holds `cifar10/3.0.2`, as tensorflow-datasets prepares it; nothing is downloaded. 15,000
images train the experts, 5,000 validate, 4,500 train controllers, and 26,200 judge: the 10,000
of the test split and 16,200 that are held back. 26 epochs in all, about three quarters of
an hour; the README has the results. `benchmarks/ablations.py --dataset=cifar10` runs it
with and without each of its parts.
"""

from instanas_tf.pipeline.config import default_config


def get_config():
    """The default settings with CIFAR-10's data, fewer epochs and dearer targets."""
    config = default_config()
    with config.unlocked():
        config.data.name = "cifar10"
        config.data.download = False
        config.data.validation_fraction = 0.1
        config.data.controller_fraction = 0.1
        # Cut off last: of the 40,500 that validation and controllers leave of 50,000.
        config.data.held_back_fraction = 0.4
        config.data.train_images = 15_000
        config.data.augmentation.pad = 2
        config.data.augmentation.flip = True
        config.data.augmentation.cutout = 4
        config.space.name = "mobilenet_v2_16"
        config.space.merge = "shortcut"
        config.train.batch_size = 64
        config.pretrain.epochs = 3
        config.pretrain.learning_rate = 0.05
        config.search.epochs = 2
        config.finetune.epochs = 21
        config.variants.targets = (1.4, 1.0, 0.7)
        config.evaluate.alone = 2
        config.evaluate.baseline_widths = (1.0, 0.5)
    return config.lock()
