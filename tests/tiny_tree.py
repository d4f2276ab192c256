"""A work tree whose pipeline is two stages that take no time: real DVC, no models."""

import subprocess
import sys
from pathlib import Path

import yaml

from ohlora.config import load_config
from ohlora.repro import dvc_environment

ROOT = Path(__file__).parent.parent
TARGET = "memory"  # needs base_encoder; both are stages of the real table
STAGE = """
import json, os, sys, time
from pathlib import Path

name = sys.argv[1]
print("working on", name, flush=True)
with open("log.txt", "a") as log:
    log.write(name + "\\n")
if Path("fail").exists():
    sys.exit("the loss is NaN")
if name == "memory" and Path("slow").exists():
    Path("pid").write_text(str(os.getpid()))
    time.sleep(120)
out = Path("artifacts") / name
out.mkdir(parents=True)
report = {"metrics": {"pearson": 0.5}, "notes": [f"{name} is done"], "tables": {"Worst pairs": [{"a": 1}]}}
(out / "report.json").write_text(json.dumps(report))
"""


def make(folder: Path) -> Path:
    """Lay the tree out; `fail` and `slow` in it change what its stages do, `log.txt` says what ran."""
    (folder / "data").mkdir(parents=True)
    (folder / "profiles").mkdir()
    (folder / "profiles/smoke.yaml").write_text("memory: {epochs: 2.0}\n")
    (folder / "data/stage.py").write_text(STAGE)
    config = load_config(ROOT)
    (folder / "params.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    stages = {
        "base_encoder": {
            "cmd": f"{sys.executable} data/stage.py base_encoder",
            "deps": ["data/stage.py"],
            "params": ["memory.base"],
            "outs": ["artifacts/base_encoder"],
        },
        "memory": {
            "cmd": f"{sys.executable} data/stage.py memory",
            "deps": ["artifacts/base_encoder"],
            "params": ["memory.epochs"],
            "outs": ["artifacts/memory"],
        },
    }
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    subprocess.run(
        [sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"],
        cwd=folder,
        env=dvc_environment(),
        check=True,
    )
    return folder


def log(folder: Path) -> list[str]:
    """Names of the stages that ran, in order."""
    path = folder / "log.txt"
    return path.read_text().split() if path.is_file() else []
