"""What a VM runs on, behind one interface: :mod:`orchestrator.backends.base`."""
