"""Slots whose leaf is dead, and those whose leaf lives. Standard library and foundation only."""
