"""The sections of the settings that have many fields; ``settings.model`` combines them with the small ones."""
