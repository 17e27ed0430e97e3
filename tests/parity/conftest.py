"""torchvision's networks with random weights. PyTorch is imported by these fixtures only, so that whoever lacks it can
collect the tests.
"""

import numpy as np
import pytest


@pytest.fixture(scope="session")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="session")
def torchvision(torch):
    """torchvision declares gradients for operators of its compiled part, which the CPU build of PyTorch can't load.

    No classifier uses them, but without a declaration the import fails.
    """
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    yield pytest.importorskip("torchvision")
    del library  # the operators are gone with it


@pytest.fixture
def random_network(torch, torchvision):
    """name -> torchvision's network in evaluation mode, with random weights and statistics."""

    def make(name, **fields):
        with torch.device("meta"):  # without torchvision's own initial values, which take seconds
            network = torchvision.models.get_model(name, weights=None, **fields)
        network.to_empty(device="cpu")
        generator = torch.Generator().manual_seed(0)
        norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0, (2 / parameter[0].numel()) ** 0.5, generator=generator)
                else:
                    parameter.normal_(0, 0.2, generator=generator)
            for norm in norms:
                norm.weight.uniform_(0.5, 1.5, generator=generator)
                norm.reset_running_stats()
                norm.momentum = 1.0
            # Statistics of real activations, and then somewhat others: with any numbers the residuals would grow from
            # block to block, until the last ones' biases and means, right or wrong, made no difference.
            if norms:
                network.train()(torch.randn(4, 3, 64, 64, generator=generator))
            for norm in norms:
                norm.momentum = 0.1
                deviation = norm.running_var.sqrt()
                norm.running_mean += deviation * torch.empty_like(deviation).normal_(0, 0.2, generator=generator)
                norm.running_var *= torch.empty_like(deviation).uniform_(0.5, 1.5, generator=generator)
        return network.eval()

    return make


@pytest.fixture
def random_images():
    """(N, H, W) -> float32[N, H, W, 3]."""
    return lambda *shape: np.random.default_rng(0).normal(size=(*shape, 3)).astype(np.float32)
