"""Organisation keys: tokens that belong to an organisation and to no person. ``seat_limit`` bounds their number."""
