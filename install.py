"""Run by the WebUI at start. Ditail needs nothing that the WebUI does not bring, so there is nothing to install."""
