"""`cdrl data prepare` on sets of several sizes: its peak memory, which must not grow with the set, and its rows/s.

    python benchmarks/prepare.py [--rows 50000 500000] [--workers 0 2] [--folder FOLDER] [--out FOLDER]

The sets are JPEG images of 32x32 in Parquet, class after class, written into a temporary folder below FOLDER. Memory is
the proportional set size (PSS) of the command and all its children, Ray's included, several times a second. Results go
to results/prepare-MACHINE.json. Exit code 1 where memory grew by more than a tenth.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from cdrl import storage
from cdrl.bench.machine import commit, describe, result_file
from cdrl.data.manifest import Manifest

HERE = Path(__file__).parent
CDRL = str(Path(sys.executable).parent / "cdrl")
SIDE, NUM_CLASSES, DISTINCT, GROUP_ROWS = 32, 10, 1000, 5000
SAMPLE_EVERY_S = 0.25
MOST_GROWTH = 1.1
MIB = 2**20


def images() -> list[bytes]:
    """JPEG files of smooth random pictures, about as large as photographs of that size."""
    rng, files = np.random.default_rng(0), []
    for _ in range(DISTINCT):
        buffer = io.BytesIO()
        few = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
        few.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


def write_source(path: Path, num_rows: int, files: list[bytes]) -> None:
    """A Parquet file of images and labels, sorted by label, a row group at a time."""
    schema = pa.schema([("image", pa.binary()), ("label", pa.int64())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, num_rows, GROUP_ROWS):
            rows = range(start, min(start + GROUP_ROWS, num_rows))
            table = {"image": [files[row % DISTINCT] for row in rows]}
            writer.write_table(pa.table({**table, "label": [row * NUM_CLASSES // num_rows for row in rows]}, schema))


def bare_rate(files: list[bytes]) -> float:
    """Images/s of decoding alone, in this process."""
    began_s = time.perf_counter()
    for file in files * 5:
        with Image.open(io.BytesIO(file)) as image:
            np.asarray(image.convert("RGB"))
    return 5 * len(files) / (time.perf_counter() - began_s)


def family_pss(process: psutil.Process) -> list[int]:
    """PSS in bytes of the process and of each of its children."""
    found = []
    for member in [process, *process.children(recursive=True)]:
        try:
            found.append(member.memory_full_info().pss)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # it has just ended
    return found


def measure(num_rows: int, workers: int, source: Path, place: Path, files: list[bytes]) -> dict[str, Any]:
    """Prepare the set once."""
    bare = bare_rate(files)
    began_s = time.monotonic()
    command = [CDRL, "data", "prepare", "parquet", str(place), "--path", str(source), "--workers", str(workers)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    family, peak, largest, num_processes = psutil.Process(process.pid), 0, 0, 0
    while process.poll() is None:
        try:
            pss = family_pss(family)
        except psutil.NoSuchProcess:
            break
        peak, num_processes = max(peak, sum(pss)), max(num_processes, len(pss))
        largest = max(largest, *pss) if pss else largest
        time.sleep(SAMPLE_EVERY_S)
    seconds = time.monotonic() - began_s
    if process.wait():
        sys.exit(f"{' '.join(command)}: exit code {process.returncode}")
    made = Manifest.read(str(place))
    return {
        "rows": num_rows,
        "workers": workers,
        "seconds": round(seconds, 1),
        "rows_per_s": round(num_rows / seconds),
        "bare_decoding_per_s": round(bare),
        "peak_mib": round(peak / MIB),
        "largest_process_mib": round(largest / MIB),
        "processes": num_processes,
        "dataset_mib": round(sum(shard.bytes for split in made.splits.values() for shard in split.shards) / MIB),
        "digest": made.digest,
    }


def main() -> int:
    """Measure every size with every number of workers, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, nargs="+", default=[50_000, 500_000], help="sizes of the sets")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="numbers of Ray workers; 0 = none")
    parser.add_argument("--folder", type=Path, default=None, help="where the sets go; default: the temporary folder")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the results")
    arguments = parser.parse_args()
    files, measured = images(), []
    machine = describe(torch.device("cpu"))
    for num_rows in arguments.rows:
        with tempfile.TemporaryDirectory(prefix="cdrl-bench-", dir=arguments.folder) as name:
            source = Path(name) / "source.parquet"
            write_source(source, num_rows, files)
            for workers in arguments.workers:
                measured.append(measure(num_rows, workers, source, Path(name) / str(workers), files))
                print(measured[-1], flush=True)
            if len({row["digest"] for row in measured if row["rows"] == num_rows}) > 1:
                sys.exit(f"{num_rows} rows: the dataset depends on the number of workers")
    growth = {}
    for workers in arguments.workers:
        peaks = [row["peak_mib"] for row in measured if row["workers"] == workers]
        growth[str(workers)] = round(peaks[-1] / peaks[0], 3)
    print(f"peak memory of the last size over the first, by workers: {growth}")
    result = {"commit": commit(), "machine": machine, "runs": measured, "growth": growth}
    storage.write_bytes(
        str(result_file(arguments.out, "prepare", machine)), (json.dumps(result, indent=1) + "\n").encode()
    )
    return int(any(ratio > MOST_GROWTH for ratio in growth.values()))


if __name__ == "__main__":
    sys.exit(main())
