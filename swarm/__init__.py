"""What agents and people do with slots."""
