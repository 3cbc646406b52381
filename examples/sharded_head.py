"""Train a head whose classes are divided over several processes.

    torchrun --nproc-per-node 2 examples/sharded_head.py [--folder sharded_head]

Every process runs this file. Each holds its share of the classes and gets the same rows, so that
the loss is the same on all. A second run continues from the last checkpoint; it may have another
number of processes.
"""

import argparse
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from softmax_torch.parallel import ShardedSoftmaxRegression

FEATURES, CLASSES, ROWS, STEPS = 64, 20_000, 256, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("sharded_head"))
    folder = parser.parse_args().folder
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")

    torch.manual_seed(0)  # the same parameters and rows everywhere
    model = ShardedSoftmaxRegression(FEATURES, CLASSES, device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    # A checkpoint is named by its step; torch writes its .metadata last.
    done = max((int(metadata.parent.name) for metadata in folder.glob("*/.metadata")), default=0)
    if done:
        load(model, optimizer, folder / str(done))

    centres = torch.randn(CLASSES, FEATURES)
    for step in range(done, done + STEPS):
        y = torch.randint(100, (ROWS,))  # 100 of the classes, so that 10 steps learn something
        x = centres[y] + 0.1 * torch.randn(ROWS, FEATURES)
        loss = model.loss(x.to(device), y.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if dist.get_rank() == 0:
            print(f"step {step}  loss {loss.item():.4f}", flush=True)

    weights, momentum = get_state_dict(model, optimizer)
    state = {"model": weights, "optimizer": momentum}
    dcp.save(state, checkpoint_id=folder / str(done + STEPS))
    dist.destroy_process_group()


def load(
    model: ShardedSoftmaxRegression, optimizer: torch.optim.Optimizer, checkpoint: Path
) -> None:
    """Load parameters and momentum; each process loads its own share."""
    weights, momentum = get_state_dict(model, optimizer)
    state = {"model": weights, "optimizer": momentum}
    dcp.load(state, checkpoint_id=checkpoint)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state["optimizer"])


if __name__ == "__main__":
    main()
    # A gloo thread that DTensor's meshes keep alive may abort the process while Python shuts down
    # (https://github.com/pytorch/pytorch/issues/190489). The work is done: leave at once.
    sys.stdout.flush()
    os._exit(0)
