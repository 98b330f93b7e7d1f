"""The short form of the load bar: a worker is killed, requests are hostile, nothing is lost."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the extra `serve`")

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "serve_load.py"


def test_nothing_is_lost_and_nothing_mixed_up_under_load():
    command = [sys.executable, SCRIPT, "--requests", "30", "--clients", "6", "--kills", "1"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout[done.stdout.index("{") :])
    kinds = ("edited, its outside bit for bit", "malformed, refused", "cancelled by the client")
    assert sum(row.get(kind, 0) for kind in kinds) == 30
    assert row["edited, its outside bit for bit"] > 22
    assert row["workers killed"] == 1
