"""ZFNet on ImageNet: Zeiler & Fergus, "Visualizing and understanding convolutional networks", ECCV 2014.

    python experiments/train.py --config=experiments/configs/zfnet_imagenet.py --workdir=runs/zfnet_imagenet \\
        --config.dataset.data_dir=path/to/tensorflow_datasets

Published: 38.4 % top-1 and 16.5 % top-5 error on the validation set, one network (table 2 of arXiv 1311.2901v3, "1
convnet as per Fig. 3"); the ten crops of the test are AlexNet's.

The recipe is that of section 3: pixels from 0 to 255 less their mean, batches of 128, a learning rate of 0.01 and
momentum of 0.9, 70 epochs. What differs: the paper trains on the ten crops that it tests on, here on crops from
anywhere; it lowers the learning rate by hand when the validation error stops falling, here to a tenth after 30, 50 and
65 epochs; it scales filters whose RMS exceeds 0.1 back after every step, here not; it subtracts the mean image, here
the mean colour; it names no weight decay, here AlexNet's.

Images are read at 256 pixels. Needs imagenet2012 prepared as array_record. Not run here at full size (the paper: 12
days on a GTX 580). `:smoke` after the config's name trains two steps on generated images, on any machine.
"""

from cnn_research.config import base_config, is_smoke, shrink


def get_config(mode: str = ""):
    smoke = is_smoke(mode)
    size, crop = (52, 47) if smoke else (256, 224)
    config = base_config()
    config.model.name = "zfnet"
    config.dataset.name = "imagenet2012"
    config.dataset.eval_split = "validation"
    config.dataset.test_split = "validation"
    config.dataset.image_size = size
    config.dataset.resize = "crop"
    config.dataset.mean = (0.485, 0.456, 0.406)
    config.dataset.std = (1 / 255,)  # pixels from 0 to 255, as the initial weights and the normalisation expect them
    config.evaluation.crop_size = crop
    config.evaluation.crops = "ten"
    config.augment = f"random_crop({crop})|flip"
    config.duration = "70ep"
    config.optimizer.name = "momentum"
    config.optimizer.learning_rate = 0.01
    config.optimizer.weight_decay = 5e-4
    config.schedule.name = "step"
    config.schedule.boundaries = ("30ep", "50ep", "65ep")
    return shrink(config, image_size=60) if smoke else config
