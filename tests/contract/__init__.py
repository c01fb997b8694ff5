"""The contract tests of a store, and the kit that opens a store with its services."""
