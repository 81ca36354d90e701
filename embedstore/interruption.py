"""What the command line does about SIGINT and SIGTERM: it ends with one line and with the code that a shell expects.

While a command runs, the first signal raises ``Interrupted`` in the main thread, so that files and locks are given
back. Before, afterwards and at a second signal there is nothing to give back, or no time for it: the process ends where
it stands. What was committed is safe in either case.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:  # the module typing would take longer to import than all of this
    from collections.abc import Iterator
    from types import FrameType
    from typing import NoReturn

MESSAGES = {
    signal.SIGINT: "interrupted; what was committed stays, run the same command again to go on",
    signal.SIGTERM: "terminated; what was committed stays, run the same command again to go on",
}


class Interrupted(BaseException):
    """A signal asked the command to end. Like KeyboardInterrupt it passes by ``except Exception``."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.message = MESSAGES[signal.Signals(number)]
        self.exit_code = 128 + number


def leave_at_once() -> None:
    """From now on a signal ends the process where it stands. A signal that was ignored stays ignored."""
    _handle(_leave)


@contextmanager
def interruptible() -> Iterator[None]:
    """Within the block the first signal raises Interrupted; a second one ends the process where it stands."""
    _handle(_raise)
    sys.unraisablehook = _unraisable
    try:
        yield
    finally:
        leave_at_once()


def end(interrupted: Interrupted) -> NoReturn:
    """End the process after an interruption, without waiting for threads that may still be reading."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue
    os._exit(interrupted.exit_code)


def _handle(handler: object) -> None:
    for number in MESSAGES:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup and the shell's & ask for
            signal.signal(number, handler)  # type: ignore[arg-type]


def _raise(number: int, frame: FrameType | None) -> None:
    leave_at_once()
    if _is_importing(frame):
        _leave(number, None)  # an exception in the middle of a compiled module's start can crash the interpreter
    raise Interrupted(number)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _leave(number: int, _: FrameType | None) -> None:
    interrupted = Interrupted(number)
    try:
        # Past Python's buffers: the signal may have come in the middle of writing to them.
        os.write(2, f"embedstore: error: {interrupted.message}\n".encode())
    except OSError:
        pass
    os._exit(interrupted.exit_code)


def _unraisable(event: sys.UnraisableHookArgs) -> None:
    """Python drops an exception that is raised in a finalizer; a signal must not be lost that way."""
    if isinstance(event.exc_value, Interrupted):
        _leave(event.exc_value.args[0], None)
    sys.__unraisablehook__(event)
