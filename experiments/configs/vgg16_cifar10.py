"""VGG-16 on CIFAR-10: the convolutions of Simonyan & Zisserman, "Very deep convolutional networks for large-scale image
recognition", ICLR 2015, configuration D, normalised, with one linear layer for the paper's three.

    python experiments/train.py --config=experiments/configs/vgg16_cifar10.py --workdir=runs/vgg16_cifar10 \\
        --config.dataset.data_dir=path/to/tensorflow_datasets

Published in no paper. The repository kuangliu/pytorch-cifar reports 7.36 % test error for this network, trained with a
learning rate of 0.1 that is divided by ten after 150 and 250 of 350 epochs, batches of 128 and weight decay of 5e-4.

The recipe here has the same values over 200 epochs, with drops after 100 and 150 as for the other networks on CIFAR-10,
random crops of the image padded by 4 pixels, and mirror images. The rate rises to 0.1 over the first epochs: without
shortcuts, 13 layers take it badly from the start.

Needs cifar10 prepared as array_record; see docs/data.md. Run here for five minutes alone. `:smoke` after its name
trains two steps on generated images.
"""

from cnn_research.config import base_config, is_smoke, shrink


def get_config(mode: str = ""):
    config = base_config()
    config.model.name = "vgg16_bn_cifar"
    config.model.kernel_init = "he"
    config.dataset.name = "cifar10"
    config.dataset.mean = (0.4914, 0.4822, 0.4465)
    config.dataset.std = (0.2470, 0.2435, 0.2616)
    config.augment = "pad_and_crop(4)|flip"
    config.duration = "200ep"
    config.optimizer.name = "momentum"
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 5e-4
    config.optimizer.decay = "all"
    config.schedule.name = "step"
    config.schedule.warmup = "2%"
    config.schedule.boundaries = ("50%", "75%")
    return shrink(config, image_size=32) if is_smoke(mode) else config
