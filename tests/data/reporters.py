"""A reporter that keeps what data modules report."""

from typing import Any

from softmax_torch.data.progress import Reporter


class Messages(Reporter):
    """Keeps messages, and the descriptions of bars."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, label: str, text: str) -> None:
        self.lines.append(f"{label}: {text}")

    def bar(self, label: str, text: str, done: int, total: int, transient: bool = False) -> Any:
        self.lines.append(f"{label}: {text} from {done} to {total}")
        return super().bar(label, text, done, total, transient)
