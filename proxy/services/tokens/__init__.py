"""Personal access tokens: issuing, listing, changing and revoking them.

``service`` has the verbs. ``authorization`` decides who may do what to which token; ``issuance`` validates a new one
and generates its secret; ``loading`` finds a token for the caller; ``scope_changes``, ``revocation`` and
``regeneration`` change it.
"""
