"""The measures of a proof, with one module for each measure."""
