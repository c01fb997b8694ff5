"""Users, organisations, memberships, invitations and roles: creating, reading and changing them."""
