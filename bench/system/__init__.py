"""The machine, its processes and programs: cores, CPU time, interpreter, the build under test, nginx and daemons."""
