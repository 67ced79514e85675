"""The README's own lab: every command it shows is run, in its order."""

import os
import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


def test_readme_lab_commands_work():
    """A newcomer who types the README's lab commands sees slivers, addresses, a map, and a clean end."""
    block = re.search(r"```sh\n(make setup\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    commands = [line for line in block.splitlines() if line and line != "make setup"]
    output = {}
    try:
        for command in commands:
            done = subprocess.run(command.split(), cwd=ROOT, capture_output=True, text=True, timeout=120)
            assert 0 == done.returncode, f"{command}: {done.stderr}"
            output[command.split("trellis ")[1].split()[1]] = done.stdout
    finally:
        subprocess.run([".venv/bin/trellis", "lab", "down"], cwd=ROOT, capture_output=True, timeout=120)

    assert ["up", "run", "status", "exec", "map", "down"] == list(output)
    assert 11 == output["status"].count("vini_first")
    assert "192.168." in output["exec"]
    assert "seat-snva" in output["map"]
    assert "nothing is left" in output["down"]
