"""What keeping freed memory is worth to training: steps of voice and face with the C library as is, and set.

python benchmarks/training_allocator.py artifacts/base_llm artifacts/dialogues

The allocator is set for a whole process, so each measurement is a process of its own; they take turns. The
voice continues the starter in batches of 16 rows, the face distils the committed sample. Prints a table and,
last, a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from ohlora.allocator import keep_freed_memory
from ohlora.config import load_config
from ohlora.stage import Journal

ROOT = Path(__file__).parents[1]


def voice_rate(base: Path, dialogues: Path, steps: int) -> float:
    """Tokens a second, without padding."""
    from pyarrow import parquet

    from ohlora.llm.sft import train
    from ohlora.persona.dialogues import SPLITS

    batch = 16
    with tempfile.TemporaryDirectory() as scratch:
        rows = Path(scratch) / "dialogues"
        rows.mkdir()
        for split in SPLITS:  # a few rows each: one pass is the measurement
            table = parquet.read_table(dialogues / f"{split}.parquet")
            parquet.write_table(
                table.slice(0, steps * batch if split == "train" else 2), rows / f"{split}.parquet"
            )
        settings = [
            "voice.epochs=1",
            f"voice.batch_size={batch}",
            "voice.evaluate_every=1",
            f"state={scratch}",
        ]
        config = load_config(ROOT, None, settings)
        output = Path(scratch) / "voice"
        report = train(config, {"base": base, "dialogues": rows}, {"output": output}, Journal(output))
    return report.metrics["tokens_per_second"]


def face_rate(steps: int) -> float:
    """Portraits a second at full resolution."""
    from ohlora.corpus.portraits import Portraits
    from ohlora.gan.data import TrainingSet, conditions_of
    from ohlora.gan.training import Device, Distillation

    config = load_config(ROOT)
    portraits = Portraits.load(ROOT / config.corpus.sample)
    face = config.face.model_copy(update={"growth": [0.0, 0.0]})
    data = TrainingSet(
        portraits, conditions_of(portraits, None, "truth"), face.persona_share, None, face.repainted
    )
    distillation = Distillation(face, data, Device.choose(config))
    distillation.step()
    started = time.perf_counter()
    for _ in range(steps):
        distillation.step()
    return face.batch_size * steps / (time.perf_counter() - started)


def measure(options: argparse.Namespace) -> None:
    """One measurement in this process."""
    torch.set_num_threads(options.threads)
    if options.keep:
        keep_freed_memory()
    work = {
        "voice": lambda: voice_rate(options.base, options.dialogues, options.steps),
        "face": lambda: face_rate(options.steps),
    }
    rate = work[options.only]()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({"rate": rate, "system_s": usage.ru_stime, "peak_mib": usage.ru_maxrss / 1024}))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("base", type=Path, help="folder of the stage base_llm")
    arguments.add_argument("dialogues", type=Path, help="folder of the stage dialogues")
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--steps", type=int, default=15)
    arguments.add_argument("--rounds", type=int, default=2)
    arguments.add_argument("--only", choices=["voice", "face"], help=argparse.SUPPRESS)
    arguments.add_argument("--keep", action="store_true", help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.only:
        measure(options)
        return
    measured: dict[tuple[str, bool], list[dict[str, float]]] = {}
    for _ in range(options.rounds):
        for name in ("voice", "face"):
            for keep in (False, True):
                command = [
                    sys.executable,
                    __file__,
                    *sys.argv[1:],
                    "--only",
                    name,
                    *(["--keep"] if keep else []),
                ]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                measured.setdefault((name, keep), []).append(json.loads(done.stdout.splitlines()[-1]))
    result = {}
    print(f"{'':<28} {'rate':>8} {'system s':>9} {'peak MiB':>9}")
    for (name, keep), runs in measured.items():
        row = {key: round(statistics.median(run[key] for run in runs), 1) for key in runs[0]}
        unit = "tokens/s" if name == "voice" else "portraits/s"
        label = f"{name}, {'kept' if keep else 'returned'} ({unit})"
        print(f"{label:<28} {row['rate']:>8.1f} {row['system_s']:>9.1f} {row['peak_mib']:>9.0f}")
        result[f"{name}_{'kept' if keep else 'returned'}"] = row
    print(json.dumps({"benchmark": "training_allocator", "threads": options.threads, **result}))


if __name__ == "__main__":
    main()
