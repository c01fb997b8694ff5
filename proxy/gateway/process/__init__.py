"""The gateway worker as a process: how it starts, serves, reloads its configuration, and drains.

``worker`` assembles the other packages and runs the event loop; ``reload`` replaces the configuration while requests
run; ``drain`` ends the process without breaking requests; ``build`` detects whether the compiled modules are in use.
"""
