"""report.html: what a run did, in one file that opens without a network; and the comparison of several runs."""
