import sys
from pathlib import Path

# `plain_algebra` is imported by name; tests are not a package.
sys.path.insert(0, str(Path(__file__).parent))
