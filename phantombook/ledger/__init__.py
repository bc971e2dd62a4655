"""What is claimed, what would count, and what the measurements say."""
