"""Where files lie and how they are kept: addresses, outputs, local copies, locks, caches. Not what is in them."""
