"""The proof, which compares an engine with the float64 reference by the noise floor."""
