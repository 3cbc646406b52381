"""Every place where this package depends on internals of Lightning, with the reason.

Checked with Lightning 2.6.6; tests/test_lightning_compat*.py fail where Lightning changes them.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quiet"]


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's notes and advertisements, and three warnings that are wrong here.

    The warnings have no class of their own, and are recognised by their text:

    - "LeafSpec is deprecated": Lightning 2.6 uses an interface that torch 2.15 deprecates;
    - "Be aware that when using `ckpt_path`": a checkpoint holds the state of callbacks, such as the
      one that writes checkpoints, that an evaluation does not have;
    - "It is recommended to use sync_dist=True": metrics are reduced over the processes before they
      are logged.
    """
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*LeafSpec.* is deprecated")
        warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`")
        warnings.filterwarnings("ignore", message="It is recommended to use .*sync_dist=True")
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
