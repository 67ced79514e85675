"""Metadata, versions and files that must agree."""

import configparser
import pathlib
import re
import subprocess

import nodemanager_trellis

ROOT = pathlib.Path(__file__).parents[2]


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg")
    return parser


def test_pyproject_only_names_the_build_backend():
    """All metadata lives in setup.cfg; pyproject.toml has its three lines."""
    lines = [line for line in (ROOT / "pyproject.toml").read_text().splitlines() if line.strip()]

    assert ["[build-system]", "requires", "build-backend"] == [line.split(" =")[0] for line in lines]


def test_console_scripts_can_be_called():
    """Each console script's function exists."""
    for line in setup_cfg()["options.entry_points"]["console_scripts"].strip().splitlines():
        module, function = line.split("=")[1].strip().split(":")
        source = (ROOT / (module.replace(".", "/") + ".py")).read_text()
        assert f"def {function}(" in source


def test_version_is_said_once():
    """setup.cfg takes the version from the package."""
    assert "attr: nodemanager_trellis.__version__" == setup_cfg()["metadata"]["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", nodemanager_trellis.__version__)


def test_make_help_lists_the_promised_targets():
    """make help names every target that the README promises."""
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = {line.split()[0] for line in done.stdout.splitlines()}

    assert {"help", "setup", "demo", "test", "lint", "bench"} <= listed | {"help"}


def test_ci_calls_what_the_readme_calls():
    """CI runs the README's test and demo commands."""
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci/run").read_text()

    for command in ("make demo", "make test"):
        assert command in readme
        assert command in ci


def test_layout_is_the_fixed_one():
    """The top level holds what the project's users were promised."""
    for name in ("setup.cfg", "nodemanager_trellis/plugins", "kmod", "schemas", "tests", "packaging/rpm"):
        assert (ROOT / name).exists(), name


def test_service_leaves_slivers_running():
    """The unit ends only the manager, keeps its run-time directory, and starts the installed command."""
    unit = (ROOT / "packaging/rpm/trellis-nm.service").read_text().splitlines()

    assert {"KillMode=process", "RuntimeDirectoryPreserve=yes", "Type=notify"} <= set(unit)
    assert any(line.startswith("ExecStart=/usr/bin/trellis-nm ") for line in unit)
