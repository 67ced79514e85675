"""The architecture is checked: one way of the data, one file per library."""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = ROOT / "nodemanager_trellis"


def files_matching(pattern: str) -> set[str]:
    expression = re.compile(pattern, re.MULTILINE)
    return {str(p.relative_to(PACKAGE)) for p in PACKAGE.rglob("*.py") if expression.search(p.read_text())}


def test_layers_hold():
    """import-linter finds every contract of setup.cfg kept."""
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()", "--no-cache"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip

    assert 0 == done.returncode, done.stdout + done.stderr


def test_each_library_has_one_door():
    """pyroute2, lxc and libbpf are each imported in exactly one file."""
    assert {"substrate/netlink.py"} == files_matching(r"^\s*(import pyroute2|from pyroute2)")
    assert {"substrate/lxc_worker.py"} == files_matching(r"^\s*(import lxc|from lxc)\b")
    assert {"substrate/bpf.py"} == files_matching(r"libbpf\.so")
    assert {"intake/xmlrpc.py"} == files_matching(r"^\s*(import defusedxml|from defusedxml)")
    assert {"intake/schema.py"} == files_matching(r"^\s*(import jsonschema|from jsonschema)")


def test_nothing_is_evaluated():
    """No code of ours evaluates text as code, unpickles, or goes through a shell."""
    assert set() == files_matching(r"(?<![\w.])(eval|exec)\(|\bpickle\b|shell=True|os\.system\(")


def test_only_reconcile_changes_the_kernel():
    """In a node manager, only the reconciler calls ensure or absent (lab and benchmarks make worlds of their own)."""
    callers = {
        f for f in files_matching(r"\.(ensure|absent)\(") if not f.startswith(("substrate/", "benchmarks/", "lab/"))
    }

    assert {"reconcile.py"} == callers
