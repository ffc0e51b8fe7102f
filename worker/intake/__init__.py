"""Intake, the only way in: a call or a message becomes a validated request, a job row, and a published hint."""
