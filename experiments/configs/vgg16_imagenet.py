"""VGG-16 on ImageNet: Simonyan & Zisserman, "Very deep convolutional networks for large-scale image recognition",
ICLR 2015, configuration D.

    python experiments/train.py --config=experiments/configs/vgg16_imagenet.py --workdir=runs/vgg16_imagenet \\
        --config.dataset.data_dir=path/to/tensorflow_datasets

Published: 27.0 % top-1 and 8.8 % top-5 error on the validation set, trained and tested at a single scale of 256 (table
3). With other augmentation torchvision's weights have 28.41 % and 9.62 %, one central crop.

The recipe is that of section 3.1: pixels from 0 to 255 less their mean colour, crops of 224 out of 256, mirror images,
lighting, batches of 256, 74 epochs, weight decay of 5e-4, the initialisation that its last paragraph recommends
(Glorot & Bengio). What differs: the paper divides the learning rate by ten when the validation accuracy stops rising,
three times in all, here after 30, 50 and 65 epochs; it crops from the whole image, here from its central square; it
tests by sliding the network over the image and its mirror image, here on the central crop and its mirror image.

Images are read at 256 pixels. Needs imagenet2012 prepared as array_record. Not run here at full size (the paper: two to
three weeks on four Titan Black). `:smoke` after the config's name trains two steps on generated images, on any machine
with 5 GB to spare.
"""

from cnn_research.config import base_config, is_smoke, shrink


def get_config(mode: str = ""):
    smoke = is_smoke(mode)
    size, crop = (36, 32) if smoke else (256, 224)
    config = base_config()
    config.model.name = "vgg16"
    config.dataset.name = "imagenet2012"
    config.dataset.eval_split = "validation"
    config.dataset.test_split = "validation"
    config.dataset.image_size = size
    config.dataset.resize = "crop"
    config.dataset.mean = (0.485, 0.456, 0.406)
    config.dataset.std = (1 / 255,)  # pixels from 0 to 255: thirteen rectified layers of Glorot's weights shrink them
    config.evaluation.crop_size = crop
    config.evaluation.flip = True
    config.augment = f"random_crop({crop})|flip|lighting(0.1)"
    config.batch_size = 256
    config.duration = "74ep"
    config.optimizer.name = "momentum"
    config.optimizer.learning_rate = 0.01
    config.optimizer.weight_decay = 5e-4
    config.schedule.name = "step"
    config.schedule.boundaries = ("30ep", "50ep", "65ep")
    return shrink(config, image_size=40) if smoke else config
