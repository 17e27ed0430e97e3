"""ResNet-50 on ImageNet: He, Zhang, Ren & Sun, "Deep residual learning for image recognition", CVPR 2016.

    python experiments/train.py --config=experiments/configs/resnet50_imagenet.py --workdir=runs/resnet50_imagenet \\
        --config.dataset.data_dir=path/to/tensorflow_datasets

Published: 22.85 % top-1 and 6.71 % top-5 error on the validation set, mean of ten crops (table 3); 24.7 % and 7.8 % on
the central crop (the authors' repository, KaimingHe/deep-residual-networks), which is what is evaluated here. The ten
crops of a trained network: `python experiments/evaluate.py --workdir=... --crops=ten`.

The recipe is that of section 3.4: batches of 256, a learning rate of 0.1, weight decay of 1e-4, mirror images,
AlexNet's lighting, strides where the paper has them. What differs: the paper divides the learning rate by ten when the
error stops falling, within 120 epochs, here after 30 and 60 of 90; it scales the shorter side to between 256 and 480
pixels before it crops, here boxes of 8 to 100 % of the area are resized, as in Facebook's fb.resnet.torch and in
torchvision; it recomputes the statistics of batch normalisation after training, here their moving averages are used;
and weights alone decay, where it says nothing.

Images are read at 256 pixels. Needs imagenet2012 prepared as array_record. Not run here at full size. On an accelerator
`--config.precision=bfloat16` halves time and memory. `:smoke` after the config's name trains two steps on generated
images, on any machine.
"""

from cnn_research.config import base_config, is_smoke, shrink


def get_config(mode: str = ""):
    smoke = is_smoke(mode)
    size, crop = (36, 32) if smoke else (256, 224)
    config = base_config()
    config.model.name = "resnet50"
    config.model.stride_in_1x1 = True
    config.dataset.name = "imagenet2012"
    config.dataset.eval_split = "validation"
    config.dataset.test_split = "validation"
    config.dataset.image_size = size
    config.dataset.resize = "crop"
    config.dataset.mean = (0.485, 0.456, 0.406)
    config.dataset.std = (0.229, 0.224, 0.225)
    config.evaluation.crop_size = crop
    config.augment = f"random_resized_crop({crop})|flip|lighting(0.1)"
    config.batch_size = 256
    config.duration = "90ep"
    config.optimizer.name = "momentum"
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 1e-4
    config.schedule.name = "step"
    config.schedule.boundaries = ("30ep", "60ep")
    return shrink(config, image_size=40) if smoke else config
