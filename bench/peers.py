"""Full load's peer: connectorx reads the table into Arrow, and pyarrow writes it as Parquet with snappy.

    peers.py connectorx URL TABLE FILE

It is run as a process of its own, so that its memory and CPU are measured. Unlike the daemon's, its file is not
fsynced.
"""

import os
import sys
import tempfile

from measure import HERE, run_measured


def time_connectorx(server, database, table, count):
    """(wall, CPU seconds, peak bytes of memory) of one load with one connection, from the start of its process."""
    with tempfile.TemporaryDirectory(prefix="millrace-bench-") as folder:
        url = f"postgresql://shop@127.0.0.1:{server.port}/{database}"
        found = run_measured([sys.executable, os.path.join(HERE, "peers.py"), "connectorx", url, table, f"{folder}/f"])
        import pyarrow.parquet

        assert pyarrow.parquet.ParquetFile(f"{folder}/f").metadata.num_rows == count
        return found


def load_with_connectorx(url, table, file):
    """The whole load."""
    import connectorx
    import pyarrow.parquet

    rows = connectorx.read_sql(url, f"select * from {table}", return_type="arrow", protocol="binary")
    pyarrow.parquet.write_table(rows, file, compression="snappy")


if __name__ == "__main__":
    peer, *arguments = sys.argv[1:]
    {"connectorx": load_with_connectorx}[peer](*arguments)
