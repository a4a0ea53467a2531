"""Forge as a host: subclasses of the WebUI's classes for what differs in Forge."""
