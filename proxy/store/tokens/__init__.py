"""Tables of tokens, their organisations and their usage: reading, writing, listing, and finding what expires."""
