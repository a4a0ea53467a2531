"""The user's input: settings, images, collages, further sources, infotext."""
