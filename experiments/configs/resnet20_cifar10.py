"""ResNet-20 on CIFAR-10: He, Zhang, Ren & Sun, "Deep residual learning for image recognition", CVPR 2016, section 4.2.

    python experiments/train.py --config=experiments/configs/resnet20_cifar10.py --workdir=runs/resnet20_cifar10 \\
        --config.dataset.data_dir=path/to/tensorflow_datasets

Published: 8.75 % test error (table 6). `--config.model.name=resnet56`, 6.97 %, or another of its depths, trains the
same way; for resnet110, 6.43 %, the paper begins with a learning rate of 0.01.

The recipe is the paper's: batches of 128, 64,000 steps, a learning rate of 0.1 divided by ten after 32,000 and 48,000,
weight decay of 1e-4, random crops of the image padded by 4 pixels, mirror images. What differs: the paper subtracts the
mean image, here the mean colour, divided by its standard deviation; and weights alone decay, where it says nothing.

Needs cifar10 prepared as array_record; see docs/data.md. Run here for five minutes alone. `:smoke` after its name
trains two steps on generated images.
"""

from cnn_research.config import base_config, is_smoke, shrink


def get_config(mode: str = ""):
    config = base_config()
    config.model.name = "resnet20"
    config.dataset.name = "cifar10"
    config.dataset.mean = (0.4914, 0.4822, 0.4465)
    config.dataset.std = (0.2470, 0.2435, 0.2616)
    config.augment = "pad_and_crop(4)|flip"
    config.duration = "64000st"
    config.optimizer.name = "momentum"
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 1e-4
    config.schedule.name = "step"
    config.schedule.boundaries = ("50%", "75%")
    return shrink(config, image_size=16) if is_smoke(mode) else config
