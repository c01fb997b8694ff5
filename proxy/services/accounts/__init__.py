"""Users, organisations, members, invitations and roles: the verbs of people and of what they belong to.

``emails`` and ``lookalikes`` hold the rules for addresses and for names that could be taken for others.
"""
