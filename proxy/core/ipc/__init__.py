"""What the processes of one host say to each other: messages on sockets, and the layout of the shared memory page."""
