"""What people do with a trained agent."""
