"""Resolving a token into a grant: the store's answer, the argon2 verification, and the lease for cached answers.

``resolver`` turns a prefix and a secret into a grant or a refusal; ``argon2_hasher`` runs argon2 in a bounded
pool; ``lease`` renews how long workers may use their caches, in the page that ``page_writer`` writes.
"""
