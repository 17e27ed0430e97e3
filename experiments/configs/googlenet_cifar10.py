"""GoogLeNet on CIFAR-10: the network of Szegedy et al., "Going deeper with convolutions", CVPR 2015, in torchvision's
normalised form and without the auxiliary heads.

    python experiments/train.py --config=experiments/configs/googlenet_cifar10.py --workdir=runs/googlenet_cifar10 \\
        --config.dataset.data_dir=path/to/tensorflow_datasets

Published in no paper: this is the ImageNet network as it is. It halves the image five times, so that of 32x32 pixels
the first inception modules see 4x4 positions, those of stage 4 see 2x2 and the last two a single one. Networks made for
small images, such as resnet20_cifar10, keep more of them and do better.

The recipe is the usual one for CIFAR-10: batches of 128, 200 epochs, a learning rate of 0.1 divided by ten after half
and three quarters of them, weight decay of 5e-4, random crops of the image padded by 4 pixels, mirror images.

Needs cifar10 prepared as array_record; see docs/data.md. Run here for five minutes alone. `:smoke` after its name
trains two steps on generated images.
"""

from cnn_research.config import base_config, is_smoke, shrink


def get_config(mode: str = ""):
    config = base_config()
    config.model.name = "googlenet_bn"
    config.model.auxiliary_heads = False
    config.dataset.name = "cifar10"
    config.dataset.mean = (0.4914, 0.4822, 0.4465)
    config.dataset.std = (0.2470, 0.2435, 0.2616)
    config.augment = "pad_and_crop(4)|flip"
    config.duration = "200ep"
    config.optimizer.name = "momentum"
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 5e-4
    config.schedule.name = "step"
    config.schedule.boundaries = ("50%", "75%")
    return shrink(config, image_size=16) if is_smoke(mode) else config
