"""The dispatcher: help, exit status, and nothing imported that a command does not need."""

import importlib
import importlib.util
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from perceivers import cli
from perceivers.__main__ import main


def test_help_is_complete_and_light():
    script = "import sys\nfrom perceivers.__main__ import main\ntry: main(['--help'])\nfinally: print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout
    for command in cli.COMMANDS:
        assert f"  {command} " in said
    assert said.endswith("False\n")


def test_every_command_is_a_file():
    for module, *_ in cli.COMMANDS.values():
        assert importlib.util.find_spec(f"perceivers.cli.{module}") is not None


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ValueError("x=1 is wrong"), 2, "perceivers info: x=1 is wrong\n"),
        (OSError("the disk is full"), 1, "perceivers info: the disk is full\n"),
        (FloatingPointError("nan"), 1, "perceivers info: nan\n"),
        (KeyboardInterrupt(), 130, ""),
        (
            ModuleNotFoundError("no kornia", name="kornia"),
            1,
            "perceivers info needs kornia: pip install 'perceivers[train]'\n",
        ),
    ],
)
def test_exit_status(error, status, message, monkeypatch, capsys):
    def fail(arguments):
        raise error

    monkeypatch.setattr(importlib, "import_module", lambda name: SimpleNamespace(main=fail))
    assert main(["info"]) == status
    assert capsys.readouterr().err == message


def test_ctrl_c_is_ignored_only_at_the_end_of_the_process(monkeypatch, capsys):
    before, handlers = signal.getsignal(signal.SIGINT), []
    monkeypatch.setattr(signal, "signal", lambda number, handler: handlers.append(handler))
    assert main(["info"]) == 0
    assert handlers == []
    monkeypatch.setattr(sys, "argv", ["perceivers", "info"])
    assert main() == 0
    assert handlers == [signal.SIG_IGN]
    assert signal.getsignal(signal.SIGINT) is before
    assert "perceivers" in capsys.readouterr().out
