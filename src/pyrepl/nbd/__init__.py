"""The NBD server: volumes, snapshots and secondaries for programs that know nothing of pyrepl."""
