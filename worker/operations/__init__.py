"""Use cases that every face shares: what a command line and a gateway call."""
