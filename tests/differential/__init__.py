"""The path differential: what the gateway authorised is what a real server believes it got, for any target.

One gateway stands in front of four servers that nobody here wrote (``tests.support.pathservers``), chosen by ``Host``.
A target goes to all four; each tells, in its answer's headers, the path it read and which operation its own router
makes of it, and writes the number of every request that it was given to a file.

``targets`` makes the targets: a corpus of known tricks, mutations of it from a seed, and hypothesis strategies over the
same pieces. ``client`` carries them, pipelined. ``judge`` knows the routes and what they authorise, and compares.
``campaign`` runs it all, for the tests and for ``make soak``, and minimises what is found.
"""
