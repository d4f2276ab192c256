"""Write `dvc.yaml` from the table of stages in `ohlora/stages.py`: python scripts/write_dvc_yaml.py"""

from pathlib import Path

from ohlora.pipeline import dvc_file

if __name__ == "__main__":
    target = Path(__file__).parent.parent / "dvc.yaml"
    target.write_text(dvc_file(), encoding="utf-8")
    print(f"wrote {target.name}")
