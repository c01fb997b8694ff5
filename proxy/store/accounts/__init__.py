"""Tables of users, organisations, memberships, invitations and roles."""
