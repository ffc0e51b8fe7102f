"""The command line. `lazy.py` lists the commands, each with its module; what they do is in `worker/operations/`."""
