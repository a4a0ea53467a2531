"""What no user of the extension loads: measurements for the documents."""
