"""The proof: an engine beside the float64 reference and the noise floor."""
