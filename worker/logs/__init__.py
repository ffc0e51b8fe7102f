"""Logs: how a line is made, counted and written. No prompt, completion or key is in one."""
