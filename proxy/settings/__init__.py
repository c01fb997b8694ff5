"""The operator's configuration: one YAML file, overridden by the environment.

Data flows one way: file and environment → ``load`` (every problem at once, each with its line) → ``model`` (frozen,
unknown keys are errors) → ``compile`` (the route table, identity names and token format that the processes run on).

Primitives: ``Settings`` and its sections, of which each component gets its own and never the whole; ``Problem`` (path,
line, sentence).
"""
