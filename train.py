"""Train softmax regression: python train.py fit --help."""

from softmax_torch.cli import main

if __name__ == "__main__":
    main()
