"""The foreground stack of `antrean up`: its parts, their output, their restarts and their end."""
