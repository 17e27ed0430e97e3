"""GoogLeNet on ImageNet: Szegedy et al., "Going deeper with convolutions", CVPR 2015.

    python experiments/train.py --config=experiments/configs/googlenet_imagenet.py --workdir=runs/googlenet_imagenet \\
        --config.dataset.data_dir=path/to/tensorflow_datasets

Published: 10.07 % top-5 error on the validation set, one network, one crop; 9.15 % with ten crops (table 3). The ten
crops of a trained network: `python experiments/evaluate.py --workdir=... --crops=ten`.

From section 6: boxes of 8 to 100 % of the area, photometric distortions after Howard 2013, momentum of 0.9, a learning
rate that falls by 4 % every 8 epochs, auxiliary heads with a weight of 0.3. The paper names neither batch size nor
learning rate nor weight decay nor length: 32, 0.01, 2e-4 and 250 epochs are those of Caffe's bvlc_googlenet. What
differs: the paper averages the weights over time (Polyak) and trains asynchronously on many machines.

Images are read at 256 pixels. Needs imagenet2012 prepared as array_record. Not run here at full size. `:smoke` after
the config's name trains two steps on generated images, on any machine.
"""

from cnn_research.config import base_config, is_smoke, shrink


def get_config(mode: str = ""):
    smoke = is_smoke(mode)
    size, crop = (84, 79) if smoke else (256, 224)
    config = base_config()
    config.model.name = "googlenet"
    config.dataset.name = "imagenet2012"
    config.dataset.eval_split = "validation"
    config.dataset.test_split = "validation"
    config.dataset.image_size = size
    config.dataset.resize = "crop"
    config.dataset.mean = (0.485, 0.456, 0.406)
    config.dataset.std = (0.229, 0.224, 0.225)
    config.evaluation.crop_size = crop
    config.augment = f"random_resized_crop({crop})|flip|color_jitter(0.5, 0.5, 0.5)|lighting(0.1)"
    config.batch_size = 32
    config.duration = "250ep"
    config.optimizer.name = "momentum"
    config.optimizer.learning_rate = 0.01
    config.optimizer.weight_decay = 2e-4
    config.schedule.name = "step"
    config.schedule.boundaries = tuple(f"{epoch}ep" for epoch in range(8, 250, 8))
    config.schedule.factor = 0.96
    return shrink(config, image_size=90) if smoke else config
