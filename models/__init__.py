"""The recipes that ship with dec-export, as package data."""
