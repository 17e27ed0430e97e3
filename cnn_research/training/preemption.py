"""Notices that this process, or another one of the same run, is asked to leave."""

import os
import signal
import threading

from cnn_research.training import parallel

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Preemption:
    """While entered, SIGTERM and the first Ctrl-C only set `requested`; a second Ctrl-C interrupts at once.

    On several hosts SIGTERM is left to JAX, which tells the other processes of it; the first Ctrl-C is made one.

    Outside the main thread (some notebooks) Python allows no handlers, and nothing is noticed.
    """

    def __init__(self):
        self.requested = False  # of this process
        self._together = parallel.is_connected()
        self._asked = 0
        self._previous = {}

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is threading.main_thread():
            signals = (signal.SIGINT,) if self._together else SIGNALS
            self._previous = {s: signal.signal(s, self._notice) for s in signals}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def reached(self) -> bool:
        """Whether to save and leave now: the same answer in all processes. To be asked after each call of a step."""
        self._asked += 1
        return parallel.reached_preemption(self._asked) if self._together else self.requested

    def _notice(self, number: int, frame: object) -> None:
        self.requested = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._together:
            os.kill(os.getpid(), signal.SIGTERM)
