"""Bundles: their manifest (`manifest`), and how they are written completely or not at all, and verified (`store`)."""
