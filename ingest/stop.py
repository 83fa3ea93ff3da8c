"""SIGTERM ends a command as Ctrl-C does, once, wherever in the command it arrives."""

import functools
import multiprocessing
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# Long enough to leave the callback that dropped an interrupt, too short for a person to notice.
_AGAIN_S = 0.01

_came = False
_dropped: type[BaseException] | None = None


class Stopped(KeyboardInterrupt):
    """SIGTERM came, as from a batch system at the end of a job's time."""


@contextmanager
def stoppable() -> Iterator[None]:
    """In the block, SIGTERM raises `Stopped`; further ones are ignored, to the process's end.

    Where Python drops what is raised (callbacks of weak references, which importing makes, and
    `__del__`), `Stopped` and Ctrl-C's interrupt are raised again once that is left and no error
    is being cleaned up after. An error that comes first, as of workers that are stopped, becomes
    `Stopped`.
    """
    handler, hook = signal.signal(signal.SIGTERM, _stop), sys.unraisablehook
    sys.unraisablehook = functools.partial(_unraisable, hook)
    try:
        yield
    except Exception as error:
        if _came:
            # click puts its own in place of an interrupt.
            cause = error.__cause__
            raise (cause if isinstance(cause, Stopped) else Stopped()) from None
        raise
    finally:
        if _dropped:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if _came:
            _stay_quiet()
        else:
            sys.unraisablehook = hook
            signal.signal(signal.SIGTERM, handler)


def _stay_quiet() -> None:
    """To the end of the process, where what was left half made may complain of it."""
    # Python's end takes its handlers away; what is ignored stays so.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.unraisablehook = lambda _: None
    warnings.simplefilter("ignore")


def _stop(*_: object) -> None:
    global _came
    if _came:
        return
    _came = True
    # Ctrl-C reaches the workers too; this does not, and to wait for their blocks takes minutes.
    for worker in multiprocessing.active_children():
        worker.terminate()
    raise Stopped


def _unraisable(otherwise: Callable[..., object], told: "sys.UnraisableHookArgs") -> None:
    global _dropped
    if issubclass(told.exc_type, KeyboardInterrupt):
        _dropped = told.exc_type
        signal.signal(signal.SIGALRM, _raise_again)
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
    else:
        otherwise(told)


def _raise_again(_: int, frame: FrameType | None) -> None:
    assert _dropped is not None
    if sys.exc_info()[0] or (frame and frame.f_code is _unraisable.__code__):
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
    else:
        raise _dropped
