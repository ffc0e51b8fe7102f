"""The processes beside a worker: the embedded broker, the keeper, and the processes that `antrean up` runs."""
