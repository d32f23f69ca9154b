"""Every change that the project makes to third-party code at run time, one file a library, each with its reason."""
