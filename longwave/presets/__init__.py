"""Run files that come with the package: small ones, and one for each published run."""
