"""Organisation keys: tokens that belong to organisations and to no user. ``seat_limit`` limits their number."""
