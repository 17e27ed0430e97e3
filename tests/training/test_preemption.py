import os
import signal
import threading

import pytest

from cnn_research.training import parallel
from cnn_research.training.preemption import Preemption


@pytest.fixture(autouse=True)
def handlers():
    """The handlers from before, which fail the test: a signal that nobody notices would end the whole run of tests."""

    def unnoticed(number, frame):
        pytest.fail(f"signal {number} was not noticed")

    before = {number: signal.signal(number, unnoticed) for number in (signal.SIGTERM, signal.SIGINT)}
    yield dict.fromkeys(before, unnoticed)
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number):
    os.kill(os.getpid(), number)  # Python runs the handler before the next line of the main thread


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_is_noticed_and_nothing_else_happens(number, handlers):
    with Preemption() as preemption:
        assert not preemption.requested and not preemption.reached()
        send(number)
        assert preemption.requested and preemption.reached()
    assert {n: signal.getsignal(n) for n in handlers} == handlers


def test_sigterm_may_come_again():
    with Preemption() as preemption:
        for _ in range(3):
            send(signal.SIGTERM)
        assert preemption.requested


@pytest.mark.parametrize("before", [[signal.SIGINT], [signal.SIGTERM, signal.SIGINT], [signal.SIGINT, signal.SIGTERM]])
def test_second_ctrl_c_interrupts(before, handlers):
    with pytest.raises(KeyboardInterrupt), Preemption() as preemption:
        for number in before:
            send(number)
        assert preemption.requested
        send(signal.SIGINT)
        pytest.fail("the second Ctrl-C was swallowed")
    assert {n: signal.getsignal(n) for n in handlers} == handlers


def test_ctrl_c_after_sigterm_is_the_first():
    with Preemption() as preemption:
        send(signal.SIGTERM)
        try:
            send(signal.SIGINT)
        except KeyboardInterrupt:
            pytest.fail("the first Ctrl-C interrupted")
        assert preemption.requested


def test_handlers_of_others_come_back():
    seen = []
    signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    with Preemption() as preemption:
        send(signal.SIGTERM)
        assert seen == [] and preemption.requested
    send(signal.SIGTERM)
    assert seen == [signal.SIGTERM]


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_handlers_that_are_no_functions_come_back(handler):
    signal.signal(signal.SIGTERM, handler)
    with Preemption() as preemption:
        send(signal.SIGTERM)
        assert preemption.requested
    assert signal.getsignal(signal.SIGTERM) is handler


def test_handlers_come_back_after_an_exception(handlers):
    with pytest.raises(RuntimeError), Preemption():
        raise RuntimeError
    assert {n: signal.getsignal(n) for n in handlers} == handlers


def test_runs_one_after_the_other_notice_their_own_signals_alone():
    with Preemption() as first:
        send(signal.SIGINT)
    with Preemption() as second:
        assert first.requested and not second.requested
        send(signal.SIGINT)  # its first
        assert second.requested


def test_in_another_thread_nothing_is_touched(handlers):
    seen, errors = [], []

    def use():
        try:
            with Preemption() as preemption:
                seen.append({n: signal.getsignal(n) for n in handlers})
                seen.append(preemption.requested)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert not errors and seen == [handlers, False]
    assert {n: signal.getsignal(n) for n in handlers} == handlers


# On several hosts JAX notices SIGTERM (see tests/end_to_end/test_hosts.py) and says when all leave.


@pytest.fixture
def hosts(monkeypatch):
    monkeypatch.setattr(parallel, "is_connected", lambda: True)
    monkeypatch.setattr(parallel, "reached_preemption", lambda asked: asked == 7)


def test_on_several_hosts_they_leave_when_they_have_agreed_to(hosts):
    with Preemption() as preemption:
        assert [preemption.reached() for _ in range(10)] == [False] * 6 + [True] + [False] * 3


def test_on_several_hosts_ctrl_c_becomes_sigterm(hosts):
    seen = []
    signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))  # as JAX does
    with Preemption() as preemption:
        send(signal.SIGTERM)
        assert seen == [signal.SIGTERM]
        send(signal.SIGINT)
        assert seen == [signal.SIGTERM] * 2 and not preemption.reached()
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
