"""A script for the shell completes commands, settings and values."""

import shutil
import subprocess
from pathlib import Path

import pytest

from softmax_torch import cli

COMPLETE = """
source script.sh
complete_words() {
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
    $(complete -p softmax-torch | sed 's/.*-F \\([^ ]*\\).*/\\1/')
    echo "${COMPREPLY[*]}"
}
"""

WORDS = {
    "cal": "calibrate",
    "fit --model.sol": "--model.solver",
    "fit --model.solver n": "newton",
    "fit --data Tab": "TableDataModule",
    "fit --data.tar": "--data.target",
    "fit --config tab": "table",
    "fit --config own": "own.yaml",
    "fit --model.optimizer AdamW": "AdamW",
    "fit --trainer.max_e": "--trainer.max_epochs",
    "calibrate --method v": "vector",
}


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.slow
def test_words_are_completed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    cli.main(["completion", "bash"])
    (here / "script.sh").write_text(capsys.readouterr().out)
    (here / "own.yaml").write_text("name: own\n")
    lines = [f"complete_words softmax-torch {words}\n" for words in WORDS]
    done = subprocess.run(
        ["bash", "-c", COMPLETE + "".join(lines)], capture_output=True, text=True, cwd=here
    )
    assert dict(zip(WORDS, done.stdout.splitlines(), strict=True)) == WORDS, done.stderr


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_have_scripts(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    cli.main(["completion", shell])
    assert "--model.solver" in capsys.readouterr().out


def test_an_unknown_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["completion", "fish"])
    assert stopped.value.code == 2
    assert "completion: expected one of bash, zsh, tcsh; got fish" in capsys.readouterr().err


def test_without_shtab_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "shtab", None)
    with pytest.raises(ImportError, match=r"expected shtab: pip install 'softmax-torch\[comp"):
        cli.main(["completion", "bash"])
