"""LeNet-5 as it was published, on MNIST: LeCun, Bottou, Bengio & Haffner, "Gradient-based learning applied to document
recognition", Proc. IEEE 86(11), 1998.

    python experiments/train.py --config=experiments/configs/lenet5_paper_mnist.py --workdir=runs/lenet5_paper_mnist \\
        --config.dataset.data_dir=path/to/tensorflow_datasets
"""

from cnn_research.config import base_config, is_smoke, shrink


def get_config(mode: str = ""):
    config = base_config()
    config.model.name = "lenet5_paper"
    config.dataset.name = "mnist"
    config.dataset.mean = (0.1 / 1.275,)  # background at -0.1, ink at 1.175
    config.dataset.std = (1 / 1.275,)
    config.batch_size = 32
    config.duration = "20ep"
    config.optimizer.learning_rate = 0.001
    config.schedule.warmup = "5%"
    return shrink(config, image_size=28) if is_smoke(mode) else config
