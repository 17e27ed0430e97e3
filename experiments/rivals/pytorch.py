"""The other side of `benchmark step --against=torch`: the same step in plain PyTorch, in a process of its own.

Needs torch, and torchvision for the networks that it has; nothing of this project, so that any Python will do. Read
from standard input are a JSON object and then, line by line, how many steps to make; written to standard output are a
JSON object with versions and the seconds of the first step, and then the seconds of a step each time.
"""

import json
import sys
import time

try:
    import torch
except ModuleNotFoundError:
    sys.exit(f"{sys.executable} has no torch: install it there, or name a Python that has it by --python=...")
from torch import nn
from torch.nn import functional as F


class LeNet5(nn.Module):
    def __init__(self, num_classes, image_shape, dropout_rate=0.0):
        super().__init__()
        height, width, channels = image_shape
        padding = 2 if (height, width) == (28, 28) else 0
        h, w = (((size + 2 * padding - 4) // 2 - 4) // 2 for size in (height, width))
        self.dropout = nn.Dropout(dropout_rate)
        self.c1, self.c3 = nn.Conv2d(channels, 6, 5, padding=padding), nn.Conv2d(6, 16, 5)
        self.c5, self.f6, self.output = nn.Linear(16 * h * w, 120), nn.Linear(120, 84), nn.Linear(84, num_classes)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.c1(x)), 2)
        x = F.max_pool2d(F.relu(self.c3(x)), 2).flatten(1)
        x = self.dropout(F.relu(self.c5(x)))
        return self.output(self.dropout(F.relu(self.f6(x))))


class Block(nn.Module):
    def __init__(self, inputs, features, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, features, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(features), nn.BatchNorm2d(features)
        self.stride, self.new = stride, features - inputs

    def forward(self, x):
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        if self.new:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new))
        return F.relu(x + y)


class CifarResNet(nn.Module):
    def __init__(self, num_classes, channels, depth):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        blocks = []
        for stage in range(3):
            for index in range((depth - 2) // 6):
                first = stage > 0 and index == 0
                blocks.append(Block(16 * 2 ** (stage - first), 16 * 2**stage, 2 if first else 1))
        self.blocks, self.output = nn.Sequential(*blocks), nn.Linear(64, num_classes)

    def forward(self, x):
        return self.output(self.blocks(F.relu(self.norm1(self.conv1(x)))).mean((2, 3)))


TORCHVISION = {
    "alexnet_owt": "alexnet",
    "googlenet_bn": "googlenet",
    **{name: name for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")},
    **{name: name for name in ("densenet121", "densenet161", "densenet169", "densenet201")},
    **{f"vgg{depth}{norm}": f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")},
}
CIFAR = ("densenet_bc_100_12", "vgg16_bn_cifar")  # torchvision's layers, other first or last ones
CIFAR_RESNETS = {f"resnet{depth}": depth for depth in (20, 32, 44, 56, 110)}


def import_torchvision():
    try:
        import torchvision
    except RuntimeError:  # its compiled part doesn't fit this PyTorch; no classifier needs its operators
        for module in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[module]
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision

        torchvision.operators = library  # gone with it
    return torchvision


def create(spec):
    name, classes, channels = spec["network"], spec["num_classes"], spec["image_shape"][-1]
    if name == "lenet5" and spec["fields"].keys() <= {"dropout_rate"}:
        return LeNet5(classes, spec["image_shape"], **spec["fields"])
    fields = dict(spec["fields"])
    fields.pop("kernel_init", None)  # initial values make no step faster or slower
    if name == "googlenet_bn":  # in training ours has auxiliary heads by default, torchvision's has others
        if spec["train"] and fields.get("auxiliary_heads", True):
            raise SystemExit("googlenet_bn is compared without its auxiliary heads: auxiliary_heads=False")
        fields.pop("auxiliary_heads", None)
    if fields:
        raise SystemExit(f"{name} with {spec['fields']} has no PyTorch counterpart here: leave these fields out")
    if name in CIFAR_RESNETS:
        return CifarResNet(classes, channels, CIFAR_RESNETS[name])
    if name not in {*TORCHVISION, *CIFAR} or channels != 3:
        known = ", ".join(sorted(["lenet5", *CIFAR_RESNETS, *CIFAR, *TORCHVISION]))
        raise SystemExit(f"{name} with {channels} channels has no PyTorch counterpart here; there are {known}")
    torchvision = import_torchvision()
    if name == "densenet_bc_100_12":
        model = torchvision.models.DenseNet(12, (16, 16, 16), 24, num_classes=classes)
        model.features.conv0 = nn.Conv2d(channels, 24, 3, 1, 1, bias=False)
        for layer in ("norm0", "relu0", "pool0"):
            setattr(model.features, layer, nn.Identity())
        return model
    if name == "vgg16_bn_cifar":  # after five pools 32 pixels are one
        return nn.Sequential(torchvision.models.vgg16_bn().features, nn.Flatten(), nn.Linear(512, classes))
    extra = {"aux_logits": False, "init_weights": False} if name == "googlenet_bn" else {}
    return getattr(torchvision.models, TORCHVISION[name])(num_classes=classes, **extra)


def create_optimizer(settings, parameters):
    name, rate, decay = settings["name"], settings["learning_rate"], settings["weight_decay"]
    if name in ("sgd", "momentum", "nesterov"):
        momentum = 0.0 if name == "sgd" else settings["momentum"]
        return torch.optim.SGD(parameters, rate, momentum, weight_decay=decay, nesterov=name == "nesterov")
    if name in ("adam", "adamw"):
        optimizer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
        betas = settings["beta1"], settings["beta2"]
        return optimizer(parameters, rate, betas, settings["epsilon"], weight_decay=decay)
    raise SystemExit(
        f"optimizer {name} has no PyTorch counterpart here; there are sgd, momentum, nesterov, adam, adamw"
    )


def main():
    spec = json.loads(sys.stdin.readline())
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, spec["precision"])
    model = create(spec).to(device, memory_format=torch.channels_last).train(spec["train"])
    height, width, channels = spec["image_shape"]
    x = torch.rand(spec["batch_size"], channels, height, width, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(spec["num_classes"], (spec["batch_size"],), device=device)
    optimizer = create_optimizer(spec["optimizer"], model.parameters()) if spec["train"] else None
    network = torch.compile(model) if device == "cuda" else model

    def step():
        if not spec["train"]:
            with torch.inference_mode(), torch.autocast(device, dtype, enabled=dtype != torch.float32):
                return network(x)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            loss = F.cross_entropy(network(x), labels)
        loss.backward()
        optimizer.step()

    def run(count):
        began = time.perf_counter()
        for _ in range(count):
            step()
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / count

    first = run(1)
    run(2)
    about = {"torch": torch.__version__, "device": device, "threads": torch.get_num_threads(), "first_seconds": first}
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        print(run(int(line)), flush=True)


if __name__ == "__main__":
    main()
