"""AlexNet on ImageNet: Krizhevsky, Sutskever & Hinton, "ImageNet classification with deep convolutional neural
networks", NIPS 2012.

    python experiments/train.py --config=experiments/configs/alexnet_imagenet.py --workdir=runs/alexnet_imagenet \\
        --config.dataset.data_dir=path/to/tensorflow_datasets

Published: 40.7 % top-1 and 18.2 % top-5 error on the validation set, one network, mean of ten crops (table 2, "1 CNN").

The recipe is that of sections 2, 4 and 5: pixels from 0 to 255 less their mean, crops of 224 out of 256, mirror images,
lighting, batches of 128, 90 epochs, weight decay of 5e-4. What differs: the paper divides the learning rate by ten
whenever the validation error stops falling, three times in all, here after 30, 60 and 80 epochs; it subtracts the mean
image, here the mean colour; and it counts 50,000 validation images in ten crops once, here after every epoch.

Images are read at 256 pixels. Needs imagenet2012 prepared as array_record. Not run here at full size; on a CPU
alexnet_one_tower is faster. `:smoke` after the config's name trains two steps on generated images, on any machine.
"""

from cnn_research.config import base_config, is_smoke, shrink


def get_config(mode: str = ""):
    smoke = is_smoke(mode)
    size, crop = (72, 67) if smoke else (256, 224)
    config = base_config()
    config.model.name = "alexnet"
    config.dataset.name = "imagenet2012"
    config.dataset.eval_split = "validation"
    config.dataset.test_split = "validation"
    config.dataset.image_size = size
    config.dataset.resize = "crop"
    config.dataset.mean = (0.485, 0.456, 0.406)
    config.dataset.std = (1 / 255,)  # pixels from 0 to 255, as the initial weights and the normalisation expect them
    config.evaluation.crop_size = crop
    config.evaluation.crops = "ten"
    config.augment = f"random_crop({crop})|flip|lighting(0.1)"
    config.duration = "90ep"
    config.optimizer.name = "momentum"
    config.optimizer.learning_rate = 0.01
    config.optimizer.weight_decay = 5e-4
    config.schedule.name = "step"
    config.schedule.boundaries = ("30ep", "60ep", "80ep")
    return shrink(config, image_size=80) if smoke else config
