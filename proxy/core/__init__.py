"""What every process agrees on: values and decisions, with no I/O, no clock and no third party.

Data flows through it in the order of a request: ``target`` makes a path fit to be matched or refuses it, ``routes``
names the operation it asks for, ``token`` reads a credential, ``policy`` decides from a match and a grant, ``reasons``
says what a refusal looks like from outside, ``identity`` writes what the backend is told.

Primitives: ``Grant`` (what a token may do now), ``Match`` (what a request asks for), ``Reason`` (the verdict),
``PermissionSet`` (the algebra behind both), ``wire`` and ``page`` (how processes of one host share the above).
"""
