"""Forge as a host: what differs from AUTOMATIC1111's WebUI, whose classes these build on."""
