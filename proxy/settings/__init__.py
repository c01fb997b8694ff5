"""The operator's configuration: one YAML file, overridden by environment variables.

Data flows one way: file and environment → ``load`` (reports all problems at once, each with its line) → ``model``
(frozen; unknown keys are errors) → ``compile`` (the route table, identity headers and token format for the processes).

Primitives: ``Settings`` and its sections; each component gets only its own section. Problems are
``ConfigurationProblem`` values (path, line, message).
"""
