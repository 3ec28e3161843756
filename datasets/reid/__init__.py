"""What a re-ID training is made of, and files of features. Reading a data set stands in people/."""
