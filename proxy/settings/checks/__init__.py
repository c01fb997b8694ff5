"""The rules between settings, by section; ``settings.rules`` lists them and says how they run."""
