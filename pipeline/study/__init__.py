"""A study: the way from a user's own data to an answer, as steps that are jobs, each in its own folder.

The steps, what is done of them, what they will take, and the page about them. The jobs themselves are in jobs/.
"""
