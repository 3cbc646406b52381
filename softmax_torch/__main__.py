"""Show versions, kernels, threads and devices, for bug reports: ``python -m softmax_torch``."""

from softmax_torch.loss.config import show_config

if __name__ == "__main__":
    show_config()
