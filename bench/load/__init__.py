"""Load generators and clients: wrk, an open loop, held and aborted connections, and the requests and tokens sent."""
