"""Envoy's ``ext_authz`` over gRPC: a call becomes a forward-auth call of the shape ``/envoy``, and is decided as one.

``connection`` has the HTTP/2 connections of Envoy, ``messages`` the protocol buffers, ``translation`` makes the head of
an HTTP/1.1 request of a call and the answer to it of the response, and ``listener`` has the forward-auth listener that
decides. So parsing, phases, refusals, log, reload and drain are those of the other ingresses (decision 21). Only this
room imports ``h2`` and ``google.protobuf``, which the extra ``patgate[grpc]`` installs.
"""
