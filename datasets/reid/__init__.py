"""What a re-ID training is made of, runs as re-ID data, and files of features. Data sets are read in people/."""
