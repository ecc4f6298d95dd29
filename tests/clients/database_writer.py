"""A writer of a SQLite database that is going to lose its disk: ``python database_writer.py DATABASE NOTES JOURNAL_MODE``.

Each committed row is noted outside, durably, after its commit has returned: what stands in NOTES must be in the database.
Ends when the disk fails.
"""

from __future__ import annotations

import os
import sqlite3
import sys


def main() -> None:
    database, notes, mode = sys.argv[1:4]
    note = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    connection = sqlite3.connect(database, isolation_level=None, timeout=5)
    connection.execute(f"PRAGMA journal_mode={mode}")
    connection.execute("PRAGMA synchronous=EXTRA")  # FULL does not sync the unlink that commits in mode DELETE
    connection.execute("CREATE TABLE IF NOT EXISTS rows (id INTEGER PRIMARY KEY, data BLOB)")
    (last,) = connection.execute("SELECT coalesce(max(id), 0) FROM rows").fetchone()
    while True:
        last += 1
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO rows VALUES (?, ?)", (last, last.to_bytes(8, "big") * 100))
            connection.execute("UPDATE rows SET data = ? WHERE id = ?", (os.urandom(300), max(1, last - 50)))
            connection.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            print(f"row {last}: {error}", flush=True)
            os._exit(0)  # closing would wait for a disk that is gone
        os.write(note, f"{last}\n".encode())
        os.fsync(note)


if __name__ == "__main__":
    main()
