"""One HTML file from the folders of runs: what happened, without a network, a server or anything to install."""
