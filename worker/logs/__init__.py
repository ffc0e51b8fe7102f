"""Logs: how a line is made, counted and written. No line holds a prompt, a completion or a key."""
