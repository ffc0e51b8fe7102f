"""One attempt at a job: the slot, the credential, the call, and what its outcome means."""
