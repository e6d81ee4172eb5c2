"""What a proof measures: one module for each measure."""
