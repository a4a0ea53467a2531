"""What a user asks for: settings, images, collages, further sources."""
