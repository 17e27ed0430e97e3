"""What `mnist_speedrun` is measured against: LeNet-5 on MNIST in plain PyTorch, until it is right 99 times in 100.

Adam with a learning rate of 1e-3, batches of 128, all images in memory; tested after each epoch. Needs torch and numpy,
and nothing of this project. Timed as a whole process:

    time python experiments/rivals/pytorch_mnist.py mnist.npz

The file holds uint8 images [N, 28, 28] and int labels as train_image, train_label, test_image and test_label;
docs/performance.md says how to write it.
"""

import sys
import time

import numpy as np
import torch
from pytorch import LeNet5  # beside this file
from torch.nn import functional as F

GOAL, MOST_EPOCHS = 0.99, 30


def main():
    began = time.perf_counter()
    torch.manual_seed(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    file = np.load(sys.argv[1])
    images, test_images = (
        (torch.from_numpy(file[f"{split}_image"])[:, None].float() / 255 - 0.1307) / 0.3081
        for split in ("train", "test")
    )
    labels, test_labels = (torch.from_numpy(file[f"{split}_label"]).long() for split in ("train", "test"))
    network = LeNet5(10, (28, 28, 1))
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for epoch in range(1, MOST_EPOCHS + 1):
        network.train()
        for index in torch.randperm(len(images)).split(128):
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(network(images[index]), labels[index]).backward()
            optimizer.step()
        network.eval()
        with torch.inference_mode():
            right = sum(
                (network(x).argmax(1) == y).sum().item()
                for x, y in zip(test_images.split(500), test_labels.split(500), strict=True)
            )
        accuracy = right / len(test_images)
        print(f"epoch {epoch}: {accuracy:.4f} after {time.perf_counter() - began:.1f} s", flush=True)
        if accuracy >= GOAL:
            return
    sys.exit(f"not {GOAL} after {MOST_EPOCHS} epochs")


if __name__ == "__main__":
    main()
