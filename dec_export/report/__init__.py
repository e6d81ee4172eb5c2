"""The presentation of a proof: tables for terminals, and one HTML page with figures and pictures."""
