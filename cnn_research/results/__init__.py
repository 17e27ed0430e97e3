"""The results that a checkout keeps, in results/, and the page that is made of them, RESULTS.md."""
