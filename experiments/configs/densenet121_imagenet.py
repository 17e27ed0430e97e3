"""DenseNet-121 on ImageNet: Huang, Liu, van der Maaten & Weinberger, "Densely connected convolutional networks", CVPR
2017.

    python experiments/train.py --config=experiments/configs/densenet121_imagenet.py \\
        --workdir=runs/densenet121_imagenet --config.dataset.data_dir=path/to/tensorflow_datasets

Published: 25.02 % top-1 and 7.71 % top-5 error on the validation set, one central crop; 23.61 % and 6.66 % with ten
(table 3). The ten crops of a trained network: `python experiments/evaluate.py --workdir=... --crops=ten`.

The recipe is that of section 4.2: batches of 256, 90 epochs, a learning rate of 0.1 divided by ten after 30 and 60,
weight decay of 1e-4, Nesterov's momentum of 0.9. Augmentation is that of Facebook's fb.resnet.torch, in which the paper
was written: boxes of 8 to 100 % of the area, colour jitter, lighting, mirror images; so is decay of all parameters.

Images are read at 256 pixels. Needs imagenet2012 prepared as array_record. Not run here at full size. Where memory is
short, `--config.model.remat=True` keeps an eighth of the activations. `:smoke` after the config's name trains two steps
on generated images, on any machine.
"""

from cnn_research.config import base_config, is_smoke, shrink


def get_config(mode: str = ""):
    smoke = is_smoke(mode)
    size, crop = (36, 32) if smoke else (256, 224)
    config = base_config()
    config.model.name = "densenet121"
    config.dataset.name = "imagenet2012"
    config.dataset.eval_split = "validation"
    config.dataset.test_split = "validation"
    config.dataset.image_size = size
    config.dataset.resize = "crop"
    config.dataset.mean = (0.485, 0.456, 0.406)
    config.dataset.std = (0.229, 0.224, 0.225)
    config.evaluation.crop_size = crop
    config.augment = f"random_resized_crop({crop})|color_jitter(0.4, 0.4, 0.4)|lighting(0.1)|flip"
    config.batch_size = 256
    config.duration = "90ep"
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 1e-4
    config.optimizer.decay = "all"
    config.schedule.name = "step"
    config.schedule.boundaries = ("30ep", "60ep")
    return shrink(config, image_size=40) if smoke else config
