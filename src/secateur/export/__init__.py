"""Outputs that other tools open."""
