"""Personal access tokens: issuing, listing, changing and revoking them.

``service`` has the operations. ``authorization`` decides whether a caller may do something with a token; ``ownership``
and ``issuance`` validate a new token and generate its secret; ``loading`` finds a token for the caller; ``queries``
has the list filters; ``scope_changes``, ``revocation`` and ``regeneration`` change tokens; ``expiry_notices`` finds the
tokens that expire soon.
"""
