"""What a bundle holds (`manifest`), and how it is written, whole or not at all, and verified (`store`)."""
