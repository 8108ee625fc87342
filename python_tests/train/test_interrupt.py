from __future__ import annotations

import os
import signal
import threading

import pytest

from hyenarec.train.interrupt import Interrupt, TrainingInterrupted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_only_noted_and_the_handler_comes_back(number):
    before = signal.getsignal(number)
    with Interrupt() as interrupt:
        assert interrupt.number == 0
        os.kill(os.getpid(), number)
        assert interrupt.number == number
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_interrupts_at_once():
    with pytest.raises(KeyboardInterrupt), Interrupt():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_what_a_launcher_sends_after_ctrl_c_does_not():
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    assert interrupt.number == signal.SIGINT


def test_other_threads_train_without_handlers():
    handlers = []

    def enter():
        with Interrupt():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGINT)]


def test_uncaught_it_is_the_status_of_the_signal():
    assert TrainingInterrupted(signal.SIGTERM).code == 143
