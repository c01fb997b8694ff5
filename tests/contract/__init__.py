"""What every store must do, run against each one, and the kit that opens a store with its services."""
