"""The gateway worker as a process: how it starts, serves, reloads its configuration, and drains.

``worker`` puts the other rooms together; ``reload`` replaces the configuration while requests run; ``drain`` ends the
process without breaking them; ``build`` says whether the compiled modules are in use.
"""
