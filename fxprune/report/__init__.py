"""The report: one HTML file that shows what a training did, and opens without a network."""
