"""DenseNet-BC of depth 100 and growth rate 12 on CIFAR-10: Huang, Liu, van der Maaten & Weinberger, "Densely connected
convolutional networks", CVPR 2017.

    python experiments/train.py --config=experiments/configs/densenet_bc_100_12_cifar10.py \\
        --workdir=runs/densenet_bc_100_12_cifar10 --config.dataset.data_dir=path/to/tensorflow_datasets

Published: 4.51 % test error with 0.8 million parameters (table 2, C10+). densenet_40_12, 5.24 %, trains the same way.

The recipe is that of section 4.2: batches of 64, 300 epochs, a learning rate of 0.1 divided by ten after half and three
quarters of them, weight decay of 1e-4 (in the authors' code of all parameters), Nesterov's momentum of 0.9, random
crops of the image padded by 4 pixels, mirror images, no dropout.

Needs cifar10 prepared as array_record; see docs/data.md. Run here for five minutes alone. `:smoke` after its name
trains two steps on generated images.
"""

from cnn_research.config import base_config, is_smoke, shrink


def get_config(mode: str = ""):
    config = base_config()
    config.model.name = "densenet_bc_100_12"
    config.dataset.name = "cifar10"
    config.dataset.mean = (0.4914, 0.4822, 0.4465)
    config.dataset.std = (0.2470, 0.2435, 0.2616)
    config.augment = "pad_and_crop(4)|flip"
    config.batch_size = 64
    config.duration = "300ep"
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 1e-4
    config.optimizer.decay = "all"
    config.schedule.name = "step"
    config.schedule.boundaries = ("50%", "75%")
    return shrink(config, image_size=16) if is_smoke(mode) else config
