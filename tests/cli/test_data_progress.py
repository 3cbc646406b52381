"""Messages and progress bars of data modules appear in the columns of the program's reports."""

import pytest

from softmax_torch.cli.data_progress import ConsoleReporter


def test_messages_and_bars_are_printed(capfd: pytest.CaptureFixture[str]) -> None:
    reporter = ConsoleReporter()
    reporter.message("features", "train 15 x 8, read from [a]/b.npy")
    assert capfd.readouterr().out == "features    train 15 x 8, read from [a]/b.npy\n"
    with reporter.bar("features", "train of resnet18", 1, 3) as advance:
        advance(2)
    printed = capfd.readouterr().out
    assert "features    train of resnet18 " in printed
    assert "3/3" in printed


def test_a_transient_bar_needs_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with ConsoleReporter().bar("decoding", "", 0, 3, transient=True) as advance:
        advance(3)
    assert capfd.readouterr().out.strip() == ""
