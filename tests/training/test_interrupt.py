import os
import signal

import pytest

pytest.importorskip("lightning", reason="the training extra is not installed")
from perceivers.training.interrupt import Interrupt


def press():
    os.kill(os.getpid(), signal.SIGINT)


def fail():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as Lightning does
    raise ZeroDivisionError


def test_ctrl_c_by_phase(tmp_path, caplog):
    """Stops a run that starts; one that trains after its step, or at once the second time; is ignored while it is saved."""
    before, interrupt = signal.getsignal(signal.SIGINT), Interrupt(tmp_path / "last.ckpt")
    with interrupt, pytest.raises(KeyboardInterrupt):
        press()
    with interrupt:
        interrupt.on_train_start(None, None)
        press()
        assert interrupt.requested
        assert "press Ctrl-C again to stop now" in caplog.text
        with pytest.raises(KeyboardInterrupt):
            press()
        interrupt.teardown(None, None, "fit")
        press()
        press()
    assert signal.getsignal(signal.SIGINT) is before


def test_the_handler_is_restored_after_an_error(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError), Interrupt(tmp_path / "last.ckpt"):
        fail()
    assert signal.getsignal(signal.SIGINT) is before
