"""The broker, apart from Celery's worker: its client, the wire form of hints, and publishing."""
