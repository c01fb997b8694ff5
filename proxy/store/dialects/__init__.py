"""What only one database can do. Everything else in the store is written once, for all of them."""
