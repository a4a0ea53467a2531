"""Tests: a package, so that helpers are imported by name (`from tests.unets import ...`)."""
