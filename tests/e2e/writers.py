"""Writers at a server whose every acknowledged transaction is remembered in a ledger, so that the lake can be asked
for each of them. The workloads build on it: they say what a transaction does."""

import collections
import random
import threading
import time

import psycopg

# Share of the transactions that are rolled back.
ROLLED_BACK = 0.08
# The writer of `mark`.
MARKER = -1


class Writers:
    """Threads that write until they are stopped, each with its own random numbers. `ledger` is a table of
    (writer, seq)."""

    # Another transaction was in the way.
    AGAIN = (psycopg.errors.DeadlockDetected, psycopg.errors.UniqueViolation)
    # The server was taken away, as some tests do; the commit may or may not have happened.
    GONE = (psycopg.OperationalError,)

    def __init__(self, server, database, seed, ledger):
        self.server, self.database, self.seed, self.ledger = server, database, seed, ledger
        self.stopping, self.threads, self.failures = threading.Event(), [], []
        self.attempted, self.acknowledged, self.done = {}, {}, collections.Counter()
        self.next_writer = 0

    def connect(self):
        """A connection, in which a transaction begins with its first statement."""
        return self.server.connect(self.database)

    def transaction(self, connection, rng, number, seq):
        """What a transaction does before its row in the ledger; gives what kind it was."""
        raise NotImplementedError

    def start(self, writers=2, pause=0.01):
        """Starts writers; `pause` is between two transactions of one writer, in seconds."""
        for _ in range(writers):
            number, self.next_writer = self.next_writer, self.next_writer + 1
            thread = threading.Thread(target=self._write, args=(number, pause), name=f"writer-{number}", daemon=True)
            self.threads.append(thread)
            thread.start()

    def stop(self):
        """Ends all writers, waits for them, and raises what one of them met."""
        self.stopping.set()
        for thread in self.threads:
            thread.join(60)
        self.threads = []
        self.stopping.clear()
        if self.failures:
            raise self.failures[0]

    def run(self, seconds, **options):
        """Starts writers and stops them after so many seconds."""
        self.start(**options)
        time.sleep(seconds)
        self.stop()

    def commits(self):
        """How many were acknowledged."""
        return sum(map(len, self.acknowledged.values()))

    def mark(self):
        """Commits a row that, once it is in the lake, shows that all earlier commits are captured; gives it."""
        acknowledged = self.acknowledged.setdefault(MARKER, [])
        seq = len(acknowledged)
        self.server.execute(self.database, f"insert into {self.ledger} (writer, seq) values ({MARKER}, {seq})")
        acknowledged.append(seq)
        self.attempted[MARKER] = seq + 1
        return (MARKER, seq)

    def check_ledger(self, pairs):
        """What is wrong with the (writer, seq) pairs of the lake: lost, never written, there twice."""
        present = collections.Counter(pairs)
        lost = [(writer, seq) for writer, seqs in self.acknowledged.items() for seq in seqs if not present[writer, seq]]
        phantom = [pair for pair in present if pair[1] >= self.attempted.get(pair[0], 0)]
        twice = [pair for pair, count in present.items() if count > 1]
        found = [("acknowledged and lost", lost), ("never written", phantom), ("there twice", twice)]
        return [f"{what}: {pairs[:5]} ({len(pairs)})" for what, pairs in found if pairs]

    def _write(self, number, pause):
        rng = random.Random(f"{self.seed}/{number}")
        acknowledged, connection, seq = self.acknowledged.setdefault(number, []), None, 0
        while not self.stopping.is_set():
            self.attempted[number] = seq + 1
            try:
                connection = connection or self.connect()
                kind = self.transaction(connection, rng, number, seq)
                connection.execute(f"insert into {self.ledger} (writer, seq) values (%s, %s)", (number, seq))
                if rng.random() < ROLLED_BACK:
                    connection.rollback()
                    self.done["rolled back"] += 1
                else:
                    connection.commit()
                    acknowledged.append(seq)
                    self.done[kind] += 1
            except self.AGAIN:
                connection.rollback()
            except self.GONE:
                connection = None
                time.sleep(0.2)
            except Exception as error:  # noqa: BLE001: told by `stop`
                self.failures.append(error)
                return
            seq += 1
            if pause:
                time.sleep(pause)
        if connection:
            connection.close()
