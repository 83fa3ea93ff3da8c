"""What the processes of `fusmae-ingest` are started with."""

import subprocess
import sys

import pytest

CODE = (
    "import sys; sys.argv = ['fusmae-ingest', '--help']\n"
    "from fusmae_ingest import cli\n"
    "assert 'numpy' not in sys.modules, 'numpy has read the setting before it is made'\n"
    "try: cli.main()\n"
    "except SystemExit: pass\n"
    "import os; print(os.environ['OPENBLAS_NUM_THREADS'])"
)


@pytest.mark.parametrize(("given", "expected"), [({}, "1"), ({"OPENBLAS_NUM_THREADS": "3"}, "3")])
def test_numpy_starts_no_threads_beside_the_workers_unless_told(given, expected):
    run = subprocess.run([sys.executable, "-c", CODE], env=given, capture_output=True, text=True)
    assert run.stdout.splitlines()[-1] == expected, run.stderr
