"""The embedded stack: a private Valkey, the worker and the simulator, kept by one process a home folder."""
