"""A trainer that prints and writes nothing."""

from typing import Any

from lightning import Callback, Trainer


def trainer(
    max_epochs: int, *callbacks: Callback, kind: type[Trainer] = Trainer, **options: Any
) -> Any:
    """Return a trainer for a CPU; Lightning's options take precedence over those here."""
    settings: dict[str, Any] = {
        "max_epochs": max_epochs,
        "accelerator": "cpu",
        "callbacks": list(callbacks),
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
    }
    return kind(**(settings | options))
