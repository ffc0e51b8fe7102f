"""Flower's settings, its history and its guard."""
