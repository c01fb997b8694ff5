"""Communication between the processes of one host: messages on sockets and the layout of the shared memory page."""
