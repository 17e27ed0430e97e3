"""Notices that this process is asked to leave."""

import signal
import threading

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Preemption:
    """While entered, SIGTERM and the first Ctrl-C only set `requested`; a second Ctrl-C interrupts at once.

    Outside the main thread (some notebooks) Python allows no handlers, and nothing is noticed.
    """

    def __init__(self):
        self.requested = False
        self._previous = {}

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is threading.main_thread():
            self._previous = {s: signal.signal(s, self._notice) for s in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _notice(self, number: int, frame: object) -> None:
        self.requested = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
