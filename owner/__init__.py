"""Lease-based ownership: one owner per path, followers that know it, and a token that fences."""
