"""What a wheel holds: every file of the package, and only claims that were tested."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "hilotoken"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]


def test_every_file_of_the_package_is_in_the_wheel():
    """`make dist` builds one; here its list of files is held against those in the repository."""
    listed = subprocess.run(
        ["git", "ls-files", "src/hilotoken"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("needs a checkout")
    data = {ROOT / name for name in listed.stdout.splitlines() if not name.endswith(".py")}
    patterns = TOOLS["setuptools"]["package-data"]["hilotoken"]
    found = {path for pattern in patterns for path in PACKAGE.glob(pattern) if path.is_file()}
    assert {path for path in data if path.exists()} <= found
    assert all(list(PACKAGE.glob(pattern)) for pattern in patterns), "a pattern finds nothing"


def test_a_version_of_python_that_is_claimed_is_the_one_tested():
    claimed = [
        line.rpartition(" ")[2]
        for line in PROJECT["classifiers"]
        if line.startswith("Programming Language :: Python :: 3.")
    ]
    assert claimed == ["3.11"]
    assert PROJECT["requires-python"] == ">=3.11"
    assert sys.version_info >= (3, 11)


def test_every_extra_is_explained():
    text = (ROOT / "docs/how-to/install.md").read_text(encoding="utf-8")
    assert [name for name in PROJECT["optional-dependencies"] if f"| `{name}` |" not in text] == []


def test_the_citation_is_of_this_version():
    import yaml

    import hilotoken

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["version"] == hilotoken.__version__
