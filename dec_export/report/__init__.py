"""A proof for people: tables for terminals, one page with figures and pictures."""
