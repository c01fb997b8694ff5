"""The commands of ``patgate``, one module for each noun."""
