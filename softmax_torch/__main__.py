"""The program: ``python -m softmax_torch fit`` is ``softmax-torch fit``."""

from softmax_torch.cli import main

if __name__ == "__main__":
    main()
