"""A photo's category on a web page: the page, the function behind it, their infrastructure."""
