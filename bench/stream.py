"""The stream's durable throughput, PutRecords' shapes: 500 records of 1 KiB per append, and single records from 64
callers, every append fsynced, beside a bare loop of `pwrite` and `fdatasync` of the same bytes.
`examples/put_records.rs` drives the stream as the daemon does; there is no Kinesis surface in front of it yet."""

import json
import os
import subprocess
import tempfile

from measure import result, say

NAMES = {
    "500-records": "PutRecords, 500 × 1 KiB, 1 caller",
    "500-records-4-callers": "PutRecords, 500 × 1 KiB, 4 callers",
    "single-64-callers": "single records of 1 KiB, 64 callers",
}


def program():
    """The example, beside the binary."""
    return os.path.join(os.path.dirname(os.environ["MILLRACE_BIN"]), "examples", "put_records")


def bench(options):
    """Pairs of the loop and the stream, in each shape."""
    found = {shape: [] for shape in NAMES}
    with tempfile.TemporaryDirectory(prefix="millrace-bench-") as folder:
        command = [program(), folder, str(options.pairs), "3"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                pair = json.loads(line)
                shape = pair.pop("shape")
                say(
                    f"stream {pair.pop('pair') + 1}/{options.pairs}, {NAMES[shape]}: {pair['mib_per_s']:.0f} MiB/s, "
                    f"{pair['ratio']:.2f} of the bare loop"
                )
                found[shape].append(pair)
        if process.returncode != 0:
            raise RuntimeError(f"{command[0]} ended with {process.returncode}")
    return {
        f"stream-{shape}": result(
            NAMES[shape],
            "pwrite and fdatasync of the same bytes",
            rows,
            {"ratio": (">=", 0.7)},
            "ratio of rates",
        )
        for shape, rows in found.items()
    }
