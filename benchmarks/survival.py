"""Kill runs at random moments, resume them, and compare the results with an undisturbed run.

    python benchmarks/survival.py [--runs 30] [--processes 1] [--seed 0]

A run trains on digits with Adam, a schedule and a checkpoint after every ``training_step``, so that
it spends much of its time on saving. It gets SIGKILL after a random time and is resumed, again and
again, until it completes. Then the parameters, the states of optimizer and schedule, and every row
of metrics.csv have to be equal, to the last bit.

With several processes (gloo) a random one is killed, and the others have to end by themselves.
Before all of them are connected they cannot notice, and are killed too, as torchrun does. Each run
is forked from a process that has everything imported, so that a start takes 0.1 s.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import sys
import tempfile
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only

from softmax_torch import cli
from softmax_torch.training import run_checkpoint

ROOT = Path(__file__).parents[1]
FLAGS = [
    *("--model.optimizer", "Adam", "--model.optimizer.lr", "0.01", "--model.steps_per_call", "8"),
    *("--model.lr_interval", "step", "--model.log_every_n_steps", "7"),
    *("--model.lr_scheduler", "ExponentialLR", "--model.lr_scheduler.gamma", "0.999"),
    *("--trainer.max_epochs", "6", "--trainer.accelerator", "cpu"),
    *("--trainer.enable_progress_bar", "false", "--checkpoint_seconds", "0"),
]
PATIENCE = 10
"""Seconds within which processes have to end after another one was killed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        alone = Path(folder) / "alone"
        began = time.perf_counter()
        codes = finish(start(alone, options.processes, resume=False))
        seconds = time.perf_counter() - began
        assert codes == [0] * options.processes, codes
        expected = outcome(alone)
        kills = saves = 0
        for number in range(options.runs):
            own = Path(folder) / f"run_{number}"
            killed, saving_then = survive(own, options.processes, rng, seconds)
            kills, saves = kills + killed, saves + saving_then
            compare(expected, outcome(own))
    print(
        f"{options.runs} runs in {options.processes} process(es): killed {kills} times, {saves} of "
        f"them while a checkpoint was being written; resumed, all equal the undisturbed run "
        f"({seconds:.1f} s, {len(expected['metrics'])} rows), to the last bit"
    )


def survive(folder: Path, processes: int, rng: random.Random, seconds: float) -> tuple[int, int]:
    """Kill and resume a run until it completes; return all kills, and those during a save."""
    kills = saves = 0
    while True:
        resume = (folder / "runs").exists() and any(folder.glob("runs/*/*/config.yaml"))
        began = time.time()
        children = start(folder, processes, resume)
        if kills < 4:
            time.sleep(rng.uniform(0, seconds))
            victim = rng.choice(children)
            os.kill(victim, signal.SIGKILL)
        codes = finish(children, may_wait=last_written(folder) < began)
        if codes == [0] * processes:
            return kills, saves
        assert -signal.SIGKILL in codes, codes
        kills += 1
        saves += any(folder.glob("runs/*/*/.*.partial")) or any(folder.glob("runs/*/*/next.ckpt"))


def last_written(folder: Path) -> float:
    """Return the time of the last checkpoint, in seconds since the epoch; 0 without one."""
    while True:
        with suppress(FileNotFoundError):  # a file was renamed while files were listed
            return max((p.stat().st_mtime for p in folder.glob("runs/*/*/*.ckpt")), default=0.0)


def start(folder: Path, processes: int, resume: bool) -> list[int]:
    """Fork the processes of a run, and return their ids."""
    folder.mkdir(exist_ok=True)
    flags = list(FLAGS)
    if processes > 1:
        flags += ["--trainer.devices", str(processes), "--trainer.strategy", "ddp"]
    args = ["fit", "--resume", *flags] if resume else ["fit", *flags]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            run(folder, args, rank, processes, port)
        children.append(child)
    return children


def run(folder: Path, args: list[str], rank: int, processes: int, port: int) -> None:
    """Run the program, and end this process."""
    code = 1
    try:
        os.chdir(folder)
        log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if processes > 1:  # the environment that torchrun sets
            rank_zero_only.rank = rank
            os.environ |= {
                "TORCHELASTIC_RUN_ID": "1",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                **dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)),
                **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(processes)),
                "GROUP_RANK": "0",
            }
        warnings.simplefilter("ignore")
        cli.main(args)
        code = 0
    except run_checkpoint.Stopped as stopped:
        code = int(stopped.code or 0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def finish(children: list[int], may_wait: bool = False) -> list[int]:
    """Wait until all processes have ended.

    Args:
        children: ids of the processes.
        may_wait: whether they may be waiting for a process that is dead. Then they are killed.

    Returns:
        The exit status of each, or minus the signal that ended it.
    """
    codes: dict[int, int] = {}
    deadline = None
    while len(codes) < len(children):
        for child in set(children) - codes.keys():
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                codes[child] = os.waitstatus_to_exitcode(status)
                if codes[child] != 0:
                    deadline = deadline or time.monotonic() + PATIENCE
        if deadline is not None and time.monotonic() > deadline:
            for child in set(children) - codes.keys():
                os.kill(child, signal.SIGKILL)
            assert may_wait, f"processes hang after another ended with {codes}"
        time.sleep(0.005)
    return [codes[child] for child in children]


def outcome(folder: Path) -> dict[str, Any]:
    """Return the state of a run at its end, and its metrics."""
    # A run that is killed before config.yaml is written cannot be resumed; a new one follows it.
    runs = (folder / "runs" / "digits").glob("version_*/config.yaml")
    run = max(runs, key=lambda path: int(path.parent.name.removeprefix("version_"))).parent
    last = torch.load(run / "last.ckpt", weights_only=True)
    parts = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch")
    return {part: last[part] for part in parts} | {
        "random": last["softmax_torch"]["processes"],
        "metrics": (run / "metrics.csv").read_text().splitlines(),
    }


def compare(expected: Any, got: Any, where: str = "") -> None:
    """Raise AssertionError where two outcomes differ in any bit."""
    if isinstance(expected, torch.Tensor):
        assert torch.equal(expected, got), where
    elif isinstance(expected, dict):
        assert expected.keys() == got.keys(), where
        for key in expected:
            compare(expected[key], got[key], f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(expected) == len(got), f"{where}: {len(expected)} and {len(got)}"
        for i, (a, b) in enumerate(zip(expected, got, strict=True)):
            compare(a, b, f"{where}[{i}]")
    else:
        assert expected == got, f"{where}: {expected!r} and {got!r}"


if __name__ == "__main__":
    main()
