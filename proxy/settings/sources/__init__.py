"""Where settings come from: the YAML document with its line numbers, the environment, secrets and certificates."""
