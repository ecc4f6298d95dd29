"""The daemon and what it offers to other processes."""
