"""What sets the project up and makes its pages: the environment, the rubric, the site."""
