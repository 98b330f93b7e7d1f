"""Measurements that anyone can repeat: commands, never timed tests."""
