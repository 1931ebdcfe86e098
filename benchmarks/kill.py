"""kill -9 while indexing, at random moments, then a run to the end: is the content that of an undisturbed run?

    python benchmarks/kill.py SOURCE [--kills 5] [--seed 1] [--encoder builtin] [--whole CATALOG]

``--whole`` names a catalog of SOURCE that was made undisturbed, else one is made. Prints the photos that each killed run
left, what ``verify`` says of them, and whether the exports are the same bytes. Exit code 1 where they are not.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import lookalike


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--encoder", default="builtin")
    parser.add_argument("--longest", type=float, default=40.0, help="seconds until a kill, at most")
    parser.add_argument("--whole", type=Path)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        killed, whole = Path(folder, "killed"), options.whole or Path(folder, "whole")
        command = [sys.executable, "-m", "lookalike", "index", options.source, "--encoder", options.encoder, "--json"]
        for n in range(options.kills):
            process = subprocess.Popen([*command, "--catalog", str(killed)], stdout=subprocess.DEVNULL)
            wait = chance.uniform(1.0, options.longest)
            time.sleep(wait)
            over = process.poll() is not None
            process.kill()
            process.wait()
            catalog = lookalike.open(killed)
            found = catalog.verify() if catalog.store.exists else {"photos": 0, "damaged": []}
            print(
                f"kill {n + 1} after {wait:.1f} s: {found['photos']} photos, damaged: {found['damaged']}{', over' * over}"
            )
        for target in [killed] if options.whole else [killed, whole]:
            start = time.monotonic()
            done = subprocess.run([*command, "--catalog", str(target)], capture_output=True, text=True, check=True)
            print(f"{target.name}, to the end in {time.monotonic() - start:.0f} s: {done.stdout.strip()}")
        exports = []
        for n, target in enumerate((killed, whole)):
            lookalike.open(target).export(Path(folder, f"{n}.csv"))
            exports.append(Path(folder, f"{n}.csv").read_bytes())
        same = exports[0] == exports[1]
        print(f"exports of {len(exports[0])} bytes: {'the same' if same else 'DIFFERENT'}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
