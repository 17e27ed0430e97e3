"""ResNet-50 of torchvision, fine-tuned on one's own images: a folder with a subfolder of images for each class.

    python experiments/train.py --config=experiments/configs/finetune_resnet50.py --workdir=runs/finetune_resnet50 \\
        --config.dataset.name=folder:path/to/images --config.init.weights=path/to/resnet50-11ad3fa6.pth

The weights are a file of torchvision's, which is read without PyTorch, or the workdir of an earlier run. The last layer
is a new one, of as many classes as there are folders.

What lies before layer4 stays as it is, its batch statistics too: what it sees is general (Yosinski et al. 2014, "How
transferable are features in deep neural networks?"), and a few hundred images are not enough to improve it. layer4
learns at a tenth of the rate of the new head. With many images, or of a kind unlike photographs, train all of it:
`--config.optimizer.freeze='()' --config.freeze_batch_stats=False`, at a lower rate.

No published figure: the images are one's own. `:smoke` after the config's name trains two steps on generated images,
from random weights.
"""

from cnn_research.config import base_config, is_smoke, shrink


def get_config(mode: str = ""):
    smoke = is_smoke(mode)
    size, crop = (36, 32) if smoke else (256, 224)
    config = base_config()
    config.model.name = "resnet50"
    config.init.head = "new"
    config.dataset.name = "folder:images"
    config.dataset.image_size = size
    config.dataset.resize = "crop"
    config.dataset.mean = (0.485, 0.456, 0.406)
    config.dataset.std = (0.229, 0.224, 0.225)
    config.evaluation.crop_size = crop
    config.augment = f"random_resized_crop({crop})|flip"
    config.batch_size = 32
    config.duration = "20ep"
    config.optimizer.name = "momentum"
    config.optimizer.learning_rate = 0.01
    config.optimizer.weight_decay = 1e-4
    config.optimizer.freeze = ("^conv1/", "^norm1/", "^layer[123]_")
    config.optimizer.learning_rate_multipliers = ("^layer4_=0.1",)
    config.freeze_batch_stats = True
    config.schedule.warmup = "5%"
    return shrink(config, image_size=40) if smoke else config
