"""Commands of the stages. Ctrl-C while they are imported ends them without a traceback, and the shell sees 130."""

import sys
from types import TracebackType


def _quiet_interrupt(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        _other_errors(kind, error, trace)


_other_errors = sys.excepthook
sys.excepthook = _quiet_interrupt
