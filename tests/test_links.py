"""Links between the project's pages lead somewhere, for whoever clones it."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)(?:#[^)]*)?\)")


def tracked():
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / line for line in done.stdout.splitlines()]


def test_relative_links_lead_to_files_that_are_committed():
    files = set(tracked())
    there = files | {folder for file in files for folder in file.parents}
    links = [
        (page, link)
        for page in files
        if page.suffix == ".md"
        for link in LINK.findall(page.read_text())
    ]
    assert len(links) >= 10
    dead = [
        f"{page.relative_to(ROOT)}: {link}"
        for page, link in links
        if (page.parent / link).resolve() not in there
    ]
    assert not dead
