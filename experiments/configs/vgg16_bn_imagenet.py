"""VGG-16 with batch normalisation on ImageNet: the network of Simonyan & Zisserman, ICLR 2015, normalised after every
convolution as Ioffe & Szegedy 2015 propose, with torchvision's recipe.

    python experiments/train.py --config=experiments/configs/vgg16_bn_imagenet.py --workdir=runs/vgg16_bn_imagenet \\
        --config.dataset.data_dir=path/to/tensorflow_datasets

Published in no paper. torchvision's weights of this recipe (IMAGENET1K_V1) have 26.640 % top-1 and 8.484 % top-5 error
on the validation set, one central crop of 224 out of 256.

torchvision's references/classification: boxes of 8 to 100 % of the area, mirror images, batches of 256, a learning rate
of 0.1 divided by ten after 30 and 60 of 90 epochs, weight decay of 1e-4 on all parameters. What differs: torchvision
starts the fully-connected layers from N(0, 0.01^2), here as the convolutions.

Images are read at 256 pixels. Needs imagenet2012 prepared as array_record. Not run here at full size. `:smoke` after
the config's name trains two steps on generated images, on any machine with 5 GB to spare.
"""

from cnn_research.config import base_config, is_smoke, shrink


def get_config(mode: str = ""):
    smoke = is_smoke(mode)
    size, crop = (36, 32) if smoke else (256, 224)
    config = base_config()
    config.model.name = "vgg16_bn"
    config.model.kernel_init = "he"
    config.dataset.name = "imagenet2012"
    config.dataset.eval_split = "validation"
    config.dataset.test_split = "validation"
    config.dataset.image_size = size
    config.dataset.resize = "crop"
    config.dataset.mean = (0.485, 0.456, 0.406)
    config.dataset.std = (0.229, 0.224, 0.225)
    config.evaluation.crop_size = crop
    config.augment = f"random_resized_crop({crop})|flip"
    config.batch_size = 256
    config.duration = "90ep"
    config.optimizer.name = "momentum"
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 1e-4
    config.optimizer.decay = "all"
    config.schedule.name = "step"
    config.schedule.boundaries = ("30ep", "60ep")
    return shrink(config, image_size=40) if smoke else config
