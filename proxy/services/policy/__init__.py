"""Token policies of the deployment and of organisations: reading and changing them, and finding violations."""
