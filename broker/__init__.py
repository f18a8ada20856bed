"""The main node: cluster state, store, sockets and sweeps."""
