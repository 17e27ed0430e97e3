"""ResNet-18 on CIFAR-10: the ImageNet network of He, Zhang, Ren & Sun, "Deep residual learning for image recognition",
CVPR 2016, with a stem for small images, a 3x3 convolution without stride or pooling.

    python experiments/train.py --config=experiments/configs/resnet18_cifar10.py --workdir=runs/resnet18_cifar10 \\
        --config.dataset.data_dir=path/to/tensorflow_datasets

Published in no paper, though used in many. OpenMMLab's mmpretrain reports 5.18 % test error for this network and recipe
(configs/resnet, resnet18_8xb16_cifar10).

The recipe is mmpretrain's: batches of 128, 200 epochs, a learning rate of 0.1 divided by ten after 100 and 150, weight
decay of 1e-4 on all parameters, random crops of the image padded by 4 pixels, mirror images.

Needs cifar10 prepared as array_record; see docs/data.md. Run here for five minutes alone. `:smoke` after its name
trains two steps on generated images.
"""

from cnn_research.config import base_config, is_smoke, shrink


def get_config(mode: str = ""):
    config = base_config()
    config.model.name = "resnet18"
    config.model.stem = "cifar"
    config.dataset.name = "cifar10"
    config.dataset.mean = (0.4914, 0.4822, 0.4465)
    config.dataset.std = (0.2470, 0.2435, 0.2616)
    config.augment = "pad_and_crop(4)|flip"
    config.duration = "200ep"
    config.optimizer.name = "momentum"
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 1e-4
    config.optimizer.decay = "all"
    config.schedule.name = "step"
    config.schedule.boundaries = ("50%", "75%")
    return shrink(config, image_size=16) if is_smoke(mode) else config
