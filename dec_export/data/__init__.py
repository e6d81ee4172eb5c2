"""Images and labelled data."""
