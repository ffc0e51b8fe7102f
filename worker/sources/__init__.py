"""Where requests come from: documents with a prompt, and files of requests. One kind of source a module.

To add one: docs/architecture.md, "Where to put a new thing". `worker/operations/run_input.py` chooses between them.
"""
