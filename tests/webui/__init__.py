"""Tests in a real WebUI."""
