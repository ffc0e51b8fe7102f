"""Every override of Celery and kombu, and nothing else: how a message becomes a call of a task."""
