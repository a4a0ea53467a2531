"""Ditail in the AUTOMATIC1111 WebUI: the only package here that imports `modules` and gradio."""
