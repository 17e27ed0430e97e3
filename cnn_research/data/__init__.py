"""Datasets, the order in which their examples are trained on, and augmentation."""
