"""The ``bones`` command line, and VM clusters."""
