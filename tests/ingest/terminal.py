"""A program run on a terminal of its own."""

import os
import pty
import subprocess
from collections.abc import Sequence


def on_terminal(command: Sequence[str], columns: int) -> str:
    """What this command sends to a terminal of so many columns."""
    mine, its = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": str(columns)}
    with subprocess.Popen(command, stdout=its, stderr=its, env=environment) as process:
        os.close(its)
        shown = b""
        # Linux ends a terminal that nobody holds with EIO.
        try:
            while piece := os.read(mine, 1 << 16):
                shown += piece
        except OSError:
            pass
    os.close(mine)
    assert process.returncode == 0
    return shown.decode()
