"""The ledger: the only SQL. A job changes state in `transitions.py`, and nowhere else."""
