"""Users, organisations, memberships, invitations and roles: creating, reading and changing them.

``emails`` and ``lookalikes`` have the rules for email addresses and for names that can be mistaken for others.
"""
