"""The processes beside a worker: the embedded broker, the keeper, and the parts of `antrean up`."""
