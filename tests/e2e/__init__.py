"""Real processes, real sockets, real ingresses and clients."""
